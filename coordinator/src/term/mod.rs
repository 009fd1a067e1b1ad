//! One writer: which coordinator a job's prefix belongs to, decided in the store, which both of two coordinators reach when
//! they don't know of each other.
//!
//! Whoever wants to write under a prefix creates the next term there, which succeeds for one alone. The highest term's
//! coordinator may write; who finds a higher one than its own stops. A store can't refuse a write by an older term, so what was
//! sent before somebody looked again still arrives: outputs are the same bytes whoever writes them, and nothing is removed but
//! after a look.

#[cfg(test)]
mod tests;
mod watch;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use deltaconv_proto::code::Code;
use deltaconv_proto::objects::{self, Objects};
use deltaconv_proto::{Brief, keys, utc};
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

pub(crate) use watch::{fence, watch};

/// A term's object has a tenth of it.
const MAX_BYTES: u64 = 4096;
/// So often two coordinators may take the next term from each other before one gives up.
const TRIES: usize = 16;

/// Why a coordinator may not write under a prefix.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is another's.
    #[error(
        "{url} belongs to coordinator {} on {} since {} (term {}); where that one is gone or shall stop, take it over: \
         `deltaconv submit --take-over` for a new job, `deltaconv retry --take-over` for one that ended so",
        Brief(&.by.identity), Brief(&.by.host), utc(.by.since_unix_ms), .by.term
    )]
    Held {
        /// The prefix.
        url: String,
        /// Whose it is.
        by: Box<Term>,
    },
    /// What lies there is no term.
    #[error("{url}/{key} is no term of a coordinator ({reason}); remove it if it is not deltaconv's")]
    Foreign {
        /// The prefix.
        url: String,
        /// The key below it.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Others were faster each time.
    #[error("other coordinators take {url} over all the time; stop all but one")]
    Contended {
        /// The prefix.
        url: String,
    },
    /// The store failed.
    #[error(transparent)]
    Objects(#[from] objects::Error),
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::Held { .. } => Code::OutputHeld,
            Self::Foreign { .. } => Code::TermForeign,
            Self::Contended { .. } => Code::TermContended,
            Self::Objects(error) => error.code(),
        }
    }
}

/// A coordinator's turn at a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Term {
    /// Its number.
    pub term: u32,
    /// The identity of the coordinator's state.
    pub identity: String,
    /// Differs between processes, also those on copies of one state.
    pub process: String,
    /// The machine.
    pub host: String,
    /// When it was taken, by that machine's clock.
    pub since_unix_ms: u64,
    /// The job is over: anybody may take the next one.
    #[serde(default)]
    pub released: bool,
}

/// What one coordinator process holds. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Terms(Arc<Inner>);

struct Inner {
    identity: String,
    process: String,
    host: String,
    /// By URL: prefixes that were this process'; cancelled when another took them.
    held: Mutex<HashMap<String, CancellationToken>>,
}

impl Terms {
    /// Of a process on this machine with the state of this identity.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub(crate) fn new(identity: &str, host: &str) -> Result<Self, getrandom::Error> {
        let mut random = [0; 8];
        getrandom::fill(&mut random)?;
        let process = blake3::hash(&random).to_hex()[..16].to_owned();
        let inner = Inner { identity: identity.into(), process, host: host.into(), held: Mutex::default() };
        Ok(Self(Arc::new(inner)))
    }

    /// The identity of the coordinator's state.
    pub(crate) fn identity(&self) -> &str {
        &self.0.identity
    }

    /// Sees to it that the prefix is this process', and says in which term. It is taken where it is nobody's, was given back, or
    /// belongs to an earlier process on the same state; never from who took it from this process.
    ///
    /// # Errors
    /// [`Error::Held`] where it is another's.
    pub(crate) async fn own(&self, url: &str) -> Result<u32, Error> {
        let objects = Objects::open(url)?;
        let was_mine = self.held(objects.url()).is_some();
        self.take(&objects, |newest| !was_mine && newest.identity == self.0.identity).await
    }

    /// The same, from whoever has it.
    pub(crate) async fn take_over(&self, url: &str) -> Result<u32, Error> {
        self.take(&Objects::open(url)?, |_| true).await
    }

    /// Does `work`, which is told the term, under the prefix for as long as it is this process'; what is under way when another is found there is
    /// dropped.
    ///
    /// # Errors
    /// As of [`Self::own`].
    pub(crate) async fn hold<T, W: Future<Output = T>>(
        &self,
        url: &str,
        work: impl FnOnce(u32) -> W,
    ) -> Result<T, Error> {
        let term = self.own(url).await?;
        let lost = self.held(url).unwrap_or_default();
        match lost.run_until_cancelled(work(term)).await {
            Some(done) => Ok(done),
            None => Err(self.own(url).await.err().unwrap_or_else(|| Error::Contended { url: url.to_owned() })),
        }
    }

    /// Gives the prefix back, and removes the terms before.
    pub(crate) async fn release(&self, url: &str) -> Result<(), Error> {
        let objects = Objects::open(url)?;
        let Some(newest) = newest(&objects).await?.filter(|newest| self.is_mine(newest) && !newest.released) else {
            return Ok(());
        };
        let term = newest.term + 1;
        match self.create(&objects, term, true).await {
            Ok(()) => {}
            // Another was faster, and it is its own.
            Err(objects::Error::AlreadyExists { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let former = numbers(&objects).await?.into_iter().filter(|number| *number < term).map(keys::term).collect();
        objects.remove(former).try_for_each(|_| async { Ok(()) }).await?;
        Ok(())
    }

    async fn take(&self, objects: &Objects, may_follow: impl Fn(&Term) -> bool) -> Result<u32, Error> {
        let url = objects.url();
        for _ in 0..TRIES {
            let newest = newest(objects).await?;
            match &newest {
                Some(newest) if self.is_mine(newest) && !newest.released => {
                    self.remember(url);
                    return Ok(newest.term);
                }
                Some(newest) if !self.is_mine(newest) && !newest.released && !may_follow(newest) => {
                    self.lose(url);
                    return Err(Error::Held { url: url.to_owned(), by: Box::new(newest.clone()) });
                }
                _ => {}
            }
            let term = newest.map_or(0, |newest| newest.term) + 1;
            match self.create(objects, term, false).await {
                Ok(()) => {
                    tracing::info!(url, term, "the output is this coordinator's");
                    self.remember(url);
                    return Ok(term);
                }
                // By another; or by this one, where the answer was lost.
                Err(objects::Error::AlreadyExists { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::Contended { url: url.to_owned() })
    }

    async fn create(&self, objects: &Objects, term: u32, released: bool) -> Result<(), objects::Error> {
        let since_unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let (identity, process, host) = (self.0.identity.clone(), self.0.process.clone(), self.0.host.clone());
        let term = Term { term, identity, process, host, since_unix_ms, released };
        // Strings and numbers can always be written.
        let json = serde_json::to_vec_pretty(&term).unwrap_or_default();
        objects.create(&keys::term(term.term), json).await
    }

    fn is_mine(&self, term: &Term) -> bool {
        term.identity == self.0.identity && term.process == self.0.process
    }

    fn held(&self, url: &str) -> Option<CancellationToken> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner).get(url).cloned()
    }

    fn remember(&self, url: &str) {
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        let token = held.entry(url.to_owned()).or_default();
        if token.is_cancelled() {
            *token = CancellationToken::new();
        }
    }

    fn lose(&self, url: &str) {
        if let Some(token) = self.held(url) {
            token.cancel();
        }
    }
}

async fn numbers(objects: &Objects) -> Result<Vec<u32>, objects::Error> {
    let listed = objects.below(keys::TERMS)?.listing();
    listed
        .try_filter_map(|(key, _)| async move { Ok(keys::term_of(&format!("{}/{key}", keys::TERMS))) })
        .try_collect()
        .await
}

/// The highest term, if the prefix has any.
pub(crate) async fn newest(objects: &Objects) -> Result<Option<Term>, Error> {
    for _ in 0..TRIES {
        let listed = numbers(objects).await?.into_iter().max();
        let mut number = listed.unwrap_or(0);
        let mut newest = match listed {
            Some(number) => read(objects, number).await?,
            None => None,
        };
        // A listing may miss what was just written.
        while let Some(next) = read(objects, number + 1).await? {
            number = next.term;
            newest = Some(next);
        }
        // One that was listed goes only where there is a higher one.
        if newest.is_some() || listed.is_none() {
            return Ok(newest);
        }
    }
    Err(Error::Contended { url: objects.url().to_owned() })
}

async fn read(objects: &Objects, number: u32) -> Result<Option<Term>, Error> {
    let key = keys::term(number);
    let foreign = |reason: String| Error::Foreign { url: objects.url().to_owned(), key: key.clone(), reason };
    let bytes = match objects.get(&key, MAX_BYTES).await {
        Ok(bytes) => bytes,
        Err(error) if error.is_missing() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let term: Term = serde_json::from_slice(&bytes).map_err(|error| foreign(Brief(&error).to_string()))?;
    match term.term == number {
        true => Ok(Some(term)),
        false => Err(foreign(format!("it says that it is term {}", term.term))),
    }
}
