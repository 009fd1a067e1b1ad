//! What coordinators write beside a job's objects: who of them it belongs to, and what each step came to.

use std::fmt;

use super::{MANIFESTS, TERMS, is_plain};
use crate::ids::JobId;

/// The key of a term: whose is the highest may write under the prefix.
pub fn term(number: u32) -> String {
    format!("{TERMS}/{number:08}.json")
}

/// The number of a term, from its key.
pub fn term_of(key: &str) -> Option<u32> {
    let name = key.strip_prefix(TERMS)?.strip_prefix('/')?.strip_suffix(".json")?;
    name.parse().ok().filter(|number| term(*number) == key)
}

/// A job's manifest: the records that one of its steps ended with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The job.
    pub job: JobId,
    /// The step's position among all manifests of the job; 0 has the job as it was submitted.
    pub position: u32,
    /// The step in words.
    pub step: String,
    /// The term in which it was written.
    pub term: u32,
    /// The identity of the state of the coordinator that wrote it.
    pub identity: String,
}

impl Manifest {
    /// What the keys of all manifests of a job begin with.
    pub fn folder(job: &JobId) -> String {
        format!("{MANIFESTS}/{job}")
    }

    /// Reads a key back. `None` for every key that no manifest has.
    pub fn parse(key: &str) -> Option<Self> {
        let (job, name) = key.strip_prefix(MANIFESTS)?.strip_prefix('/')?.split_once('/')?;
        let (position, rest) = name.strip_suffix(".records")?.split_once('-')?;
        let (rest, identity) = rest.rsplit_once('-')?;
        let (step, term) = rest.rsplit_once('-')?;
        if !is_plain(step) || !is_plain(identity) {
            return None;
        }
        let parsed = Self {
            job: JobId::new(job).ok()?,
            position: position.parse().ok()?,
            step: step.to_owned(),
            term: term.parse().ok()?,
            identity: identity.to_owned(),
        };
        (parsed.to_string() == key).then_some(parsed)
    }
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { job, position, step, term, identity } = self;
        write!(f, "{}/{position:04}-{step}-{term:08}-{identity}.records", Self::folder(job))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_back_and_others_are_nobodys() {
        assert_eq!(term_of(&term(7)), Some(7));
        for key in
            ["coordinator/7.json", "coordinator/00000007.json.bak", "00000007.json", "x/coordinator/00000007.json"]
        {
            assert_eq!(term_of(key), None, "{key}");
        }
        let manifest = Manifest {
            job: JobId::new("tiny-unet-1").expect("valid"),
            position: 3,
            step: "distill-r0".into(),
            term: 12,
            identity: "0a1b2c3d".into(),
        };
        let key = manifest.to_string();
        assert_eq!(key, "manifests/tiny-unet-1/0003-distill-r0-00000012-0a1b2c3d.records");
        assert_eq!(Manifest::parse(&key), Some(manifest));
        for key in
            ["manifests/a/3-x-00000001-i.records", "manifests/0003-x-00000001-i.records", "manifests/a/notes.txt"]
                .into_iter()
                .chain(["manifests/a/0003-x/../../y-00000001-i.records", "manifests/a/0003-x-00000001-i/j.records"])
        {
            assert_eq!(Manifest::parse(key), None, "{key}");
        }
    }
}
