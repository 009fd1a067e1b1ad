//! Reads the manifests under a prefix.

use std::collections::BTreeMap;
use std::convert::Infallible;

use deltaconv_proto::ids::JobId;
use deltaconv_proto::keys::{MANIFESTS, Manifest};
use deltaconv_proto::objects::{self, Objects};
use deltaconv_proto::v1;
use futures::TryStreamExt;

use crate::archive::{self, ReadError};
use crate::store::Write;

/// A job as its manifests have it.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The counters beside it.
    pub(crate) meta: v1::MetaRecord,
    /// As the last of them has it.
    pub(crate) job: v1::JobRecord,
    /// Of the steps that were over.
    pub(crate) tasks: BTreeMap<String, v1::TaskRecord>,
}

/// The manifests that count, of the job that is named or of the one that wrote under the prefix last: in the order of their
/// steps, from each coordinator what it had when the next took over.
async fn counting(objects: &Objects, job: Option<&JobId>) -> Result<Vec<Manifest>, objects::Error> {
    let listed = objects.below(MANIFESTS)?.listing();
    let listed = listed.try_filter_map(|(key, _)| async move { Ok(Manifest::parse(&format!("{MANIFESTS}/{key}"))) });
    let mut all: Vec<Manifest> = listed.try_collect().await?;
    // Of jobs in one term the later one has the higher number.
    let number = |job: &JobId| job.as_str().rsplit_once('-').and_then(|(_, number)| number.parse::<u64>().ok());
    let last = all.iter().max_by_key(|manifest| (manifest.term, number(&manifest.job))).map(|last| last.job.clone());
    let Some(job) = job.cloned().or(last) else { return Ok(Vec::new()) };
    all.retain(|manifest| manifest.job == job);
    all.sort_by_key(|manifest| (manifest.position, manifest.term));
    let mut newest: Vec<Manifest> = Vec::new();
    for manifest in all {
        match newest.last_mut() {
            Some(last) if last.position == manifest.position => *last = manifest,
            _ => newest.push(manifest),
        }
    }
    // A step that was over before one of those before it began anew is not over any more.
    let mut term = 0;
    newest.retain(|manifest| {
        let counts = manifest.term >= term;
        term = term.max(manifest.term);
        counts
    });
    Ok(newest)
}

/// The job that is named, or that wrote under the prefix last, with the tasks of steps from the manifest's position `from` on;
/// `None` where no manifest of it is there.
pub(crate) async fn find(
    objects: &Objects,
    job: Option<&JobId>,
    from: u32,
) -> Result<Option<Found>, ReadError<Infallible>> {
    let mut manifests = counting(objects, job).await?;
    manifests.retain(|manifest| manifest.position >= from);
    let Some(last) = manifests.iter().max_by_key(|manifest| (manifest.term, manifest.position)) else {
        return Ok(None);
    };
    let mut found = Found::default();
    for manifest in &manifests {
        let take = |writes: Vec<Write>| {
            for write in writes {
                match write {
                    Write::Meta(meta) => found.meta.epoch = found.meta.epoch.max(meta.epoch),
                    Write::Job(job) if manifest == last => found.job = *job,
                    Write::Task(task) => _ = found.tasks.insert(task.task_id.clone(), *task),
                    _ => {}
                }
            }
            Ok(())
        };
        archive::read(objects, &manifest.to_string(), take).await?;
    }
    Ok(Some(found))
}
