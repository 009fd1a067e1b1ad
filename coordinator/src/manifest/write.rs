//! Writes the manifests of what is over.

use std::collections::BTreeSet;

use deltaconv_proto::code::Code;
use deltaconv_proto::ids::JobId;
use deltaconv_proto::keys::Manifest;
use deltaconv_proto::objects::{self, Objects};
use futures::TryStreamExt;

use crate::archive::Writer;
use crate::core::{Handle, Unserved};
use crate::schedule::Over;

/// Why a manifest wasn't written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The store failed.
    #[error(transparent)]
    Objects(#[from] objects::Error),
    /// The coordinator stops.
    #[error(transparent)]
    Unserved(#[from] Unserved),
}

impl Error {
    /// Names the cause, and what helps.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Objects(error) => error.code(),
            Self::Unserved(error) => error.code(),
        }
    }
}

/// Writes those that the job has none of yet by a coordinator on this state.
pub(crate) async fn write(
    core: &Handle,
    job: &JobId,
    objects: &Objects,
    term: u32,
    identity: &str,
) -> Result<(), Error> {
    let id = job.clone();
    let over = core.call(move |state, _, _| state.over(&id)).await?;
    let folder = Manifest::folder(job);
    let there = objects.below(&folder)?.listing().map_ok(|(key, _)| format!("{folder}/{key}"));
    let there: Vec<String> = there.try_collect().await?;
    let own = there.iter().filter_map(|key| Manifest::parse(key)).filter(|manifest| manifest.identity == identity);
    let own: BTreeSet<u32> = own.map(|manifest| manifest.position).collect();
    // The last first: interrupted anywhere, those of a coordinator before this one that still count are the earlier ones.
    for Over { position, name, step } in over.into_iter().rev().filter(|over| !own.contains(&over.position)) {
        let manifest = Manifest { job: job.clone(), position, step: name, term, identity: identity.to_owned() };
        let key = manifest.to_string();
        let mut writer = Writer::new(objects, &key).await?;
        let id = job.clone();
        let Some(records) = core.call(move |state, _, _| state.job_records(&id)).await? else { return Ok(()) };
        writer.write(&records).await?;
        let mut next = Some(0);
        while let (Some(step), Some(from)) = (step, next) {
            let id = job.clone();
            let (writes, to) = core.call(move |state, _, _| state.task_records(&id, step, from)).await?;
            writer.write(&writes).await?;
            next = to;
        }
        let (records, bytes) = writer.finish().await?;
        tracing::debug!(%job, key, records, bytes, "manifest written");
    }
    Ok(())
}
