//! Bytes, as they come, to records.

use prost::encoding::{decode_varint, encoded_len_varint};

use super::{DIGEST, Error, LONGEST_KEY, MAGIC};
use crate::store::{self, Entry, Write, format};

/// What has come so far.
#[derive(Default)]
pub(crate) struct Decoder {
    /// Bytes that are not a whole record yet.
    pending: Vec<u8>,
    /// Bytes before those.
    taken: u64,
    hasher: blake3::Hasher,
    stage: Stage,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Header,
    Records,
    Digest,
}

/// A record at the beginning of some bytes, and how many of them it takes.
enum Found {
    Entry(Entry, usize),
    End,
    /// More bytes are needed.
    Part,
}

impl Decoder {
    /// Takes the next bytes, and gives the records that are whole now.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Write>, Error> {
        self.pending.extend_from_slice(bytes);
        if self.stage == Stage::Header && !self.header()? {
            return Ok(Vec::new());
        }
        let (mut writes, mut at) = (Vec::new(), 0);
        while self.stage == Stage::Records {
            match entry(&self.pending[at..]).map_err(|reason| Error::Broken { at: self.taken + at as u64, reason })? {
                Found::Part => break,
                Found::End => {
                    at += 1;
                    self.stage = Stage::Digest;
                }
                Found::Entry(entry, length) => {
                    at += length;
                    // What a later version of the same format added is left alone.
                    writes.extend(entry.write().map_err(Error::Record)?);
                }
            }
        }
        self.take(at);
        Ok(writes)
    }

    fn header(&mut self) -> Result<bool, Error> {
        let known = self.pending.len().min(MAGIC.len());
        if self.pending[..known] != MAGIC[..known] {
            let begin = &self.pending[..self.pending.len().min(16)];
            return Err(Error::Foreign(String::from_utf8_lossy(begin).into_owned()));
        }
        let Some(&found) = self.pending.get(MAGIC.len()) else { return Ok(false) };
        if !(store::OLDEST..=store::VERSION).contains(&found) {
            // What comes first is as it is in every format.
            return match entry(&self.pending[MAGIC.len() + 1..]) {
                Ok(Found::Part) if self.pending.len() < LONGEST_KEY => Ok(false),
                Ok(Found::Entry(Entry { key, value: Some(value) }, _)) if key == format::RELEASE => {
                    Err(Error::Version { found, by: format::release(&value) })
                }
                _ => Err(Error::Version { found, by: String::new() }),
            };
        }
        self.stage = Stage::Records;
        self.take(MAGIC.len() + 1);
        Ok(true)
    }

    fn take(&mut self, bytes: usize) {
        self.hasher.update(&self.pending[..bytes]);
        self.pending.drain(..bytes);
        self.taken += bytes as u64;
    }

    /// That nothing is missing, and that it is what was written.
    pub(crate) fn finish(self) -> Result<(), Error> {
        let length = self.taken + self.pending.len() as u64;
        match self.stage {
            Stage::Digest if self.pending.len() > DIGEST => {
                Err(Error::Broken { at: self.taken + DIGEST as u64, reason: "it goes on after its end" })
            }
            Stage::Digest if self.pending.len() == DIGEST => match self.hasher.finalize() == self.pending[..] {
                true => Ok(()),
                false => Err(Error::Altered),
            },
            _ => Err(Error::Truncated(length)),
        }
    }
}

fn entry(bytes: &[u8]) -> Result<Found, &'static str> {
    let mut at = 0;
    let Some(length) = length(bytes, &mut at)? else { return Ok(Found::Part) };
    if length == 0 {
        return Ok(Found::End);
    }
    if length > LONGEST_KEY {
        return Err("a key longer than any is");
    }
    let Some(key) = bytes.get(at..at + length) else { return Ok(Found::Part) };
    let key = std::str::from_utf8(key).map_err(|_| "a key that is no text")?.to_owned();
    at += length;
    let Some(length) = self::length(bytes, &mut at)? else { return Ok(Found::Part) };
    let Some(length) = length.checked_sub(1) else { return Ok(Found::Entry(Entry { key, value: None }, at)) };
    if length > store::MAX_VALUE {
        return Err("a record larger than any is");
    }
    let Some(value) = bytes.get(at..at + length) else { return Ok(Found::Part) };
    Ok(Found::Entry(Entry { key, value: Some(value.to_vec()) }, at + length))
}

/// The varint at `at`, which moves behind it; `None` if it isn't whole yet.
fn length(bytes: &[u8], at: &mut usize) -> Result<Option<usize>, &'static str> {
    let rest = &bytes[(*at).min(bytes.len())..];
    if !rest.iter().take(5).any(|byte| byte & 0x80 == 0) {
        return if rest.len() < 5 { Ok(None) } else { Err("a length that is none") };
    }
    let mut behind = rest;
    let value = decode_varint(&mut behind).map_err(|_| "a length that is none")?;
    let taken = rest.len() - behind.len();
    // Nobody writes zeros in front, and who left them out would read on at another byte.
    if taken != encoded_len_varint(value) {
        return Err("a length that is none");
    }
    *at += taken;
    usize::try_from(value).map(Some).map_err(|_| "a length that is none")
}
