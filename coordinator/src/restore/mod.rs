//! A state folder anew, when the one that was is lost: from the newest backup or snapshot that is whole, and from what the manifests
//! of its jobs say beyond it; or from manifests alone.
//!
//! Workers that still hold leases of the snapshot go on with them. The state has an identity of its own, so that no attempt is
//! called as one before, and takes over the outputs of the jobs that run.

mod backup;
mod error;
mod folder;
mod jobs;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use deltaconv_proto::objects::Objects;
use deltaconv_proto::utc;
use serde::Serialize;

use crate::archive;
use crate::schedule::{Now, Settings, State};
use crate::snapshot::Snapshot;
use crate::store::{Records, Store, Write};
use crate::term::Terms;

pub use error::Error;

use folder::Building;

/// Above every epoch that can have been given since the snapshot: at 5000 leases a second ten days' worth.
const EPOCHS: u64 = 1 << 32;

/// What is restored, and to where.
#[derive(Clone, Debug)]
pub struct Options {
    /// The state folder. May hold a token for workers, and nothing of a state.
    pub state: PathBuf,
    /// A backup, or where backups lie. Takes the place of snapshots.
    pub backup: Option<String>,
    /// Where snapshots lie.
    pub snapshots: Option<String>,
    /// The key of the one to take; the newest that is whole where none is named.
    pub snapshot: Option<String>,
    /// Outputs of jobs that are to be taken up by their manifests, beside those of the snapshot.
    pub jobs: Vec<String>,
    /// The machine, for who finds its name at an output.
    pub host: String,
}

/// What was restored.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Restored {
    /// Of the new state.
    pub identity: String,
    /// The backup's URL; empty where none was asked for.
    pub backup: String,
    /// Names of the backup's files that lie beside the new state now.
    pub files: Vec<String>,
    /// The snapshot's key; empty where none was asked for.
    pub snapshot: String,
    /// When it, or the backup, was begun, by the clock of who took it.
    pub snapshot_unix_ms: u64,
    /// Every job.
    pub jobs: Vec<Job>,
    /// What was passed over, and why.
    pub remarks: Vec<String>,
}

/// A job of a restored state.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Job {
    /// Its id.
    pub job_id: String,
    /// Where it stands.
    pub state: String,
    /// Where it writes.
    pub output_url: String,
    /// Tasks whose outputs are accepted.
    pub committed: u64,
    /// Those of them that only the manifests have.
    pub from_manifests: u64,
}

/// Makes the state folder.
///
/// # Errors
/// A folder that has a state, no backup or snapshot that is whole, a job without manifests; then nothing is changed.
pub async fn restore(options: Options) -> Result<Restored, Error> {
    if options.backup.is_none() && options.snapshots.is_none() && options.jobs.is_empty() {
        return Err(Error::NothingNamed);
    }
    folder::refuse_state(&options.state)?;
    let mut restored = Restored::default();
    let mut building = match (&options.backup, &options.snapshots) {
        (Some(url), _) => backup::newest(&options, url, &mut restored).await?,
        (None, Some(url)) => from_snapshot(&options, url, &mut restored).await?,
        (None, None) => Building::new(&options.state)?,
    };
    let store = building.store();
    restored.identity = store.identity().to_owned();

    let mut records = store.load()?;
    let taken = jobs::from_manifests(&mut records, &options.jobs, &mut restored).await?;
    records.meta.epoch = records.meta.epoch.saturating_add(EPOCHS);
    records.meta.jobs = records.jobs.iter().map(|job| job.sequence).max().unwrap_or(0).max(records.meta.jobs);
    store.apply(&[taken, vec![Write::Meta(records.meta)]].concat())?;
    check(records, &restored.identity)?;

    // From here on a coordinator that is still there stops.
    let terms = Terms::new(&restored.identity, &options.host).map_err(|error| Error::Random(error.to_string()))?;
    for job in restored.jobs.iter().filter(|job| job.state == "running") {
        if let Err(error) = terms.take_over(&job.output_url).await {
            let job = &job.job_id;
            restored.remarks.push(format!(
                "the output of {job} could not be taken over, which `deltaconv retry {job} --take-over` does later: {error}"
            ));
        }
    }
    for stays in building.finish()? {
        restored.files.retain(|name| *name != stays);
        restored
            .remarks
            .push(format!("{stays} lies in the folder already and stays as it is; the backup's is not taken"));
    }
    Ok(restored)
}

/// The records of the snapshot that was named, or of the newest that is whole, in a folder that is not the state's yet.
async fn from_snapshot(options: &Options, url: &str, restored: &mut Restored) -> Result<Building, Error> {
    let objects = Objects::open(url)?;
    let mut snapshots = Snapshot::list(&objects).await?;
    if let Some(named) = &options.snapshot {
        snapshots.retain(|snapshot| snapshot.key() == *named);
    }
    if snapshots.is_empty() {
        return Err(Error::NoSnapshot { url: objects.url().to_owned(), named: options.snapshot.clone() });
    }
    if let Some(newest) = snapshots.last().map(|newest| newest.identity.clone()) {
        let other = snapshots.iter().rfind(|other| other.identity != newest);
        restored.remarks.extend(other.map(|other| {
            let (key, taken) = (other.key(), utc(other.unix_ms));
            format!("the last snapshot of another state is of {taken}; `--snapshot {key}` takes that one")
        }));
    }
    while let Some(snapshot) = snapshots.pop() {
        let mut building = Building::new(&options.state)?;
        let key = snapshot.key();
        let store = building.store();
        match archive::read(&objects, &key, |writes| store.apply(&writes)).await {
            Ok(()) => {
                (restored.snapshot, restored.snapshot_unix_ms) = (key, snapshot.unix_ms);
                return Ok(building);
            }
            Err(error) if error.is_broken() && !snapshots.is_empty() => {
                restored.remarks.push(format!("{error}; the one before is taken"));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::NoSnapshot { url: objects.url().to_owned(), named: None })
}

/// That a coordinator can start on the records.
fn check(records: Records, identity: &str) -> Result<(), Error> {
    let settings = Settings {
        lease_ttl: Duration::from_secs(10),
        max_failures: 1,
        max_lost: 1,
        max_recaptures: 1,
        forget_workers: Duration::from_secs(600),
        identity: identity.to_owned(),
        #[cfg(feature = "planted-bugs")]
        planted: None,
    };
    State::restore(settings, records, Now::default())?;
    Ok(())
}
