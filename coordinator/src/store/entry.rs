//! A record as the state folder has it, key and value, and back: what lies in object storage is the same, so that one rule
//! says which formats are read.

use deltaconv_proto::ids::WorkerId;

use super::local::{decode, key, value};
use super::{Error, Write};

/// One record, or that there is none any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its table and name.
    pub(crate) key: String,
    /// A version byte and the record; nothing where it was removed.
    pub(crate) value: Option<Vec<u8>>,
}

impl Entry {
    /// What `write` makes of its record.
    pub(crate) fn of(write: &Write) -> Self {
        Self { key: key(write), value: value(write) }
    }

    /// The write that makes this record; `None` for one that no table of ours has.
    ///
    /// # Errors
    /// A format that isn't read, and bytes that are no record.
    pub(crate) fn write(&self) -> Result<Option<Write>, Error> {
        let (table, name) = self.key.split_once('/').unwrap_or((&self.key, ""));
        let key = self.key.as_str();
        let write = match (table, &self.value) {
            ("meta", Some(value)) => Write::Meta(decode(key, value)?),
            ("job", Some(value)) => Write::Job(Box::new(decode(key, value)?)),
            ("task", Some(value)) => Write::Task(Box::new(decode(key, value)?)),
            ("worker", Some(value)) => Write::Worker(Box::new(decode(key, value)?)),
            ("node", Some(value)) => Write::Node(Box::new(decode(key, value)?)),
            ("request", Some(value)) => Write::Request(decode(key, value)?),
            ("event", Some(value)) => Write::Event(Box::new(decode(key, value)?)),
            ("invitation", Some(value)) => Write::Invitation(Box::new(decode(key, value)?)),
            ("identity", Some(value)) => Write::Identity(Box::new(decode(key, value)?)),
            ("worker", None) => match WorkerId::new(name) {
                Ok(id) => Write::ForgetWorker(id),
                Err(_) => return Ok(None),
            },
            ("node", None) => Write::ForgetNode(name.to_owned()),
            ("request", None) => Write::ForgetRequest(name.to_owned()),
            ("invitation", None) => Write::ForgetInvitation(name.to_owned()),
            ("identity", None) => Write::ForgetIdentity(name.to_owned()),
            _ => return Ok(None),
        };
        // Its own id decides where it goes.
        Ok(Some(write).filter(|write| super::local::key(write) == self.key))
    }
}
