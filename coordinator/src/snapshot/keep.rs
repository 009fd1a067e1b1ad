//! Takes snapshots at intervals, and removes those that newer ones take the place of.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use deltaconv_proto::objects::Objects;
use futures::TryStreamExt;
use tokio_util::sync::CancellationToken;

use super::{Error, Snapshot, take};
use crate::core::{Handle, Unserved};
use crate::store::Journal;

/// So many of a state's snapshots are kept.
const KEPT: usize = 3;
/// After one that could not be written, where the interval is longer.
const RETRY: Duration = Duration::from_secs(30);
/// A coordinator that stops waits so long for its last one.
const LAST: Duration = Duration::from_secs(60);

/// Where snapshots go, and how often.
#[derive(Clone, Debug)]
pub struct Options {
    /// URL of a folder that is theirs.
    pub url: String,
    /// Time between two, where something changed.
    pub every: Duration,
}

/// What a coordinator's snapshots need.
pub(crate) struct Keeper {
    core: Handle,
    journal: Journal,
    objects: Objects,
    every: Duration,
    identity: String,
    /// As [`Journal::groups`] before the last one was taken.
    covered: Option<u64>,
    /// Time of the last one, so that the next has a later one whatever the clock says.
    last_ms: u64,
}

impl Keeper {
    /// Snapshots of the state that `core` has and `journal` tells of.
    pub(crate) fn new(objects: Objects, every: Duration, core: Handle, journal: Journal, identity: String) -> Self {
        Self { core, journal, objects, every, identity, covered: None, last_ms: 0 }
    }

    /// Until `stop`; then takes a last one, for as long as the core still answers.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            let taken = stop.run_until_cancelled(self.take_if_changed()).await;
            let wait = match taken {
                None => break,
                Some(Ok(())) => self.every,
                Some(Err(Error::Unserved(Unserved::Stopped))) => return,
                Some(Err(error)) => {
                    let code = error.code();
                    tracing::warn!(url = self.objects.url(), %code, %error, "no snapshot; it is tried again");
                    self.every.min(RETRY)
                }
            };
            if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                break;
            }
        }
        match tokio::time::timeout(LAST, self.take_if_changed()).await {
            Ok(Ok(()) | Err(Error::Unserved(Unserved::Stopped))) => {}
            Ok(Err(error)) => tracing::warn!(url = self.objects.url(), %error, "no last snapshot"),
            Err(_) => tracing::warn!(url = self.objects.url(), "no last snapshot: it took too long"),
        }
    }

    /// Takes one unless nothing changed since the last, or there is no job yet.
    pub(crate) async fn take_if_changed(&mut self) -> Result<(), Error> {
        let groups = self.journal.groups();
        // A state that was lost and begun anew would have the newest snapshot, of nothing.
        if self.covered == Some(groups) || !self.core.call(|state, _, _| state.has_jobs()).await? {
            return Ok(());
        }
        let mut own = Snapshot::list(&self.objects).await?;
        own.retain(|snapshot| snapshot.identity == self.identity);
        let newest = own.last().map_or(0, |snapshot| snapshot.unix_ms).max(self.last_ms);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let snapshot = Snapshot { unix_ms: now.max(newest + 1), identity: self.identity.clone() };
        let key = snapshot.key();
        self.last_ms = snapshot.unix_ms;
        let (records, bytes) = take(&self.core, &self.journal, &self.objects, &key).await?;
        self.covered = Some(groups);
        tracing::info!(url = self.objects.url(), key, records, bytes, "snapshot written");
        let former = own.len().saturating_sub(KEPT - 1);
        let former = own[..former].iter().map(Snapshot::key).collect();
        if let Err(error) = self.objects.remove(former).try_for_each(|_| async { Ok(()) }).await {
            tracing::warn!(url = self.objects.url(), %error, "a former snapshot can't be removed; the next one tries again");
        }
        Ok(())
    }
}
