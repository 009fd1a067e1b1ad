//! Removes what a job needs no more: activations, latents and checkpoints once it is over, and at any time what attempts left
//! that nobody will come back to. The output, the report, accepted blocks and the spec stay.
//!
//! What there is to remove is what the store lists, so that this can be interrupted anywhere and begun again. Only keys that
//! an attempt would have written are touched.

mod folder;
mod tally;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use deltaconv_proto::code::Code;
use deltaconv_proto::ids::JobId;
use deltaconv_proto::keys::{self, Written};
use deltaconv_proto::objects::{self, Objects};
use futures::{StreamExt, TryStreamExt};

use crate::assemble::{self, abandoned};
use crate::core::{Handle, Unserved};
use crate::plan;
use crate::schedule::{self, Fate, Job};
use crate::term::{self, Terms};

pub(crate) use tally::Tally;

use folder::{Interrupted, Left};
use tally::Kind;

/// Objects that are looked up and removed at a time: as many as a request to S3 may name.
const AT_A_TIME: usize = 1000;

/// Why nothing, or not everything, could be looked at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is no such job.
    #[error(transparent)]
    Job(schedule::Error),
    /// The prefix can't be taken for the job's.
    #[error("nothing is removed: {0}")]
    Output(#[from] plan::Error),
    /// The prefix isn't this coordinator's.
    #[error("nothing is removed: {0}")]
    Term(#[from] term::Error),
    /// The store failed.
    #[error(transparent)]
    Objects(#[from] objects::Error),
    /// The coordinator stops, or can't say what is durable.
    #[error(transparent)]
    Unserved(#[from] Unserved),
}

impl Error {
    /// Names the cause, and what helps.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Job(error) => error.code(),
            Self::Output(error) => error.code(),
            Self::Term(error) => error.code(),
            Self::Objects(error) => error.code(),
            Self::Unserved(error) => error.code(),
        }
    }
}

/// What is removed under the output of a job that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// What no process needs any more.
    Unneeded,
    /// The logs of its tasks, too.
    AndLogs,
}

/// Removes what can go under the output of a job, which must be this coordinator's: to another, what that one's attempts write
/// is left by nobody it knows. Gives the output back where no job is running there.
pub(crate) async fn collect(core: &Handle, terms: &Terms, job: &JobId, extent: Extent) -> Result<Tally, Error> {
    let id = job.clone();
    let url = core.call(move |state, _, _| {
        state.job(&id).map(|job| job.spec.output_url.clone()).ok_or(schedule::Error::UnknownJob(id))
    });
    let url = url.await?.map_err(Error::Job)?;
    let tally = terms.hold(&url, |_| reclaim(core, job, extent, false)).await??;
    if !tally.running {
        terms.release(&url).await?;
    }
    Ok(tally)
}

/// Removes what can go under the output of a job, or with `dry_run` counts it alone.
///
/// # Errors
/// [`Error::Output`] when something else lies there by now; failures of the store to list. What it fails to remove is counted
/// and no error.
pub(crate) async fn reclaim(core: &Handle, job: &JobId, extent: Extent, dry_run: bool) -> Result<Tally, Error> {
    let id = job.clone();
    let known = core.call(move |state, _, _| Ok(state.job(&id).ok_or(schedule::Error::UnknownJob(id))?.clone()));
    let job: Job = known.await?.map_err(Error::Job)?;
    plan::check_output(&job.spec).await?;
    let objects = Objects::open(&job.spec.output_url)?;
    let sweep = Sweep { core, job: &job, objects: &objects, extent, dry_run };
    let mut tally = Tally::default();
    let mut listing = objects.listing().try_chunks(AT_A_TIME);
    while let Some(listed) = listing.try_next().await.map_err(|e| e.1)? {
        sweep.objects(listed, &mut tally).await?;
    }
    sweep.interrupted(&mut tally).await?;
    Ok(tally)
}

struct Sweep<'a> {
    core: &'a Handle,
    job: &'a Job,
    objects: &'a Objects,
    extent: Extent,
    dry_run: bool,
}

impl Sweep<'_> {
    /// The fates of objects that were listed before, and whether a job that writes there is running.
    async fn fates(&self, written: Vec<Written>) -> Result<(Vec<Fate>, bool), Unserved> {
        let url = self.job.spec.output_url.clone();
        self.core.call(move |state, _, _| (state.fates(&url, &written), state.is_written_to(&url))).await
    }

    /// Removes those of `listed`, keys and sizes, that can go.
    async fn objects(&self, listed: Vec<(String, u64)>, tally: &mut Tally) -> Result<(), Error> {
        let (mut found, mut written) = (Vec::new(), Vec::new());
        for (key, size) in listed {
            match Written::parse(&key) {
                Some(parsed) => {
                    found.push((key, size));
                    written.push(parsed);
                }
                None if is_result(&key) => {}
                None => tally.unknown += 1,
            }
        }
        let kinds: Vec<keys::Kind> = written.iter().map(|written| written.kind).collect();
        let (fates, running) = self.fates(written).await?;
        tally.running = running;
        let spent = found.into_iter().zip(kinds.into_iter().zip(fates));
        let spent = spent.filter_map(|((key, size), (kind, fate))| Some((key, (Kind::of(kind, fate)?, size))));
        let spent = spent.filter(|(_, (kind, _))| *kind != Kind::Logs || self.extent == Extent::AndLogs);
        let mut spent: BTreeMap<String, (Kind, u64)> = spent.collect();
        if self.dry_run {
            spent.into_values().for_each(|(kind, size)| tally.add(kind, size));
            return Ok(());
        }
        let mut removed = self.objects.remove(spent.keys().cloned().collect());
        while let Some(removed) = removed.next().await {
            match removed {
                Ok(key) => spent.remove(&key).into_iter().for_each(|(kind, size)| tally.add(kind, size)),
                Err(error) => tally.fail(&error),
            }
        }
        Ok(())
    }

    /// Removes what interrupted uploads left, and in a folder the folders that are empty then.
    async fn interrupted(&self, tally: &mut Tally) -> Result<(), Error> {
        let folder = abandoned::folder(self.objects);
        let found = match &folder {
            Some(folder) => folder::interrupted(folder.clone()).await,
            None => self.objects.open_uploads().await?.into_iter().map(Interrupted::from).collect(),
        };
        let written: Vec<Option<Written>> = found.iter().map(|upload| Written::parse(&upload.key)).collect();
        let (fates, running) = self.fates(written.iter().flatten().cloned().collect()).await?;
        tally.running = running;
        let mut fates = fates.into_iter();
        let mut abandoned = Vec::new();
        for (upload, written) in found.into_iter().zip(written) {
            match written.and_then(|_| fates.next()) {
                // This coordinator's own, which may be at it.
                None if is_kept(&upload.key) => {}
                None if !self.is_of_output(&upload.key) => tally.unknown += 1,
                Some(Fate::Orphaned) => abandoned.push(upload),
                // Whoever is at work may be writing it now.
                _ if running => {}
                _ => abandoned.push(upload),
            }
        }
        for Interrupted { size, left, .. } in abandoned {
            match if self.dry_run { Ok(true) } else { self.drop_left(&left).await } {
                Ok(true) => tally.add(Kind::InterruptedUploads, size),
                // It ended meanwhile.
                Ok(false) => {}
                Err(reason) => tally.fail(&reason),
            }
        }
        if let Some(folder) = folder.filter(|_| !self.dry_run && !running) {
            folder::remove_empty(folder).await;
        }
        Ok(())
    }

    /// Whether it was still there.
    async fn drop_left(&self, left: &Left) -> Result<bool, String> {
        match left {
            Left::File(path) => match tokio::fs::remove_file(path).await {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
                removed => removed.map(|()| true).map_err(|error| format!("{}: {error}", path.display())),
            },
            Left::Parts(upload) => match self.objects.give_up(upload).await {
                Err(error) if error.is_missing() => Ok(false),
                given_up => given_up.map(|()| true).map_err(|error| error.to_string()),
            },
        }
    }

    /// Whether assembly writes an object of this key.
    fn is_of_output(&self, key: &str) -> bool {
        let named = [assemble::model_key(&self.job.plan), assemble::blocks_key(), assemble::description_key()];
        named.iter().any(|named| named == key) || self.job.output.iter().any(|object| object.key == key)
    }
}

/// Whether a key is the spec's, of what the operator asked for, or of what a coordinator needs to go on: none of these is removed
/// here.
fn is_result(key: &str) -> bool {
    let first = key.split('/').next().unwrap_or_default();
    [keys::SPEC, keys::OUTPUT, keys::REPORT].contains(&first) || is_kept(key)
}

/// Whether a coordinator needs it to go on.
fn is_kept(key: &str) -> bool {
    keys::term_of(key).is_some() || keys::Manifest::parse(key).is_some()
}
