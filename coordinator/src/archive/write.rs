//! Records to an object, piece by piece.

use deltaconv_proto::objects::{self, Objects, Outgoing, PART, Upload};
use prost::encoding::encode_varint;

use super::MAGIC;
use crate::store::{self, Entry, Write, format};

/// For parts on their way.
const MEMORY: usize = 2 * PART;

/// An object that is being written. Nobody sees it before it is finished.
pub(crate) struct Writer {
    upload: Upload,
    hasher: blake3::Hasher,
    records: u64,
}

impl Writer {
    /// Begins to write.
    pub(crate) async fn new(objects: &Objects, key: &str) -> Result<Self, objects::Error> {
        let upload = objects.upload(key, &Outgoing::new(MEMORY))?;
        let mut writer = Self { upload, hasher: blake3::Hasher::new(), records: 0 };
        let mut begin = [MAGIC, &[store::VERSION]].concat();
        encode(&Entry { key: format::RELEASE.to_owned(), value: Some(format::release_value()) }, &mut begin);
        writer.put(&begin).await?;
        Ok(writer)
    }

    /// Takes the next records.
    pub(crate) async fn write(&mut self, writes: &[Write]) -> Result<(), objects::Error> {
        let mut bytes = Vec::new();
        writes.iter().for_each(|write| encode(&Entry::of(write), &mut bytes));
        self.records += writes.len() as u64;
        self.put(&bytes).await
    }

    /// Lets others see the object, and says how many records and bytes it has.
    pub(crate) async fn finish(mut self) -> Result<(u64, u64), objects::Error> {
        self.put(&[0]).await?;
        let digest = self.hasher.finalize();
        self.upload.write(digest.as_bytes()).await?;
        Ok((self.records, self.upload.finish().await?.size))
    }

    async fn put(&mut self, bytes: &[u8]) -> Result<(), objects::Error> {
        self.hasher.update(bytes);
        self.upload.write(bytes).await
    }
}

/// Appends a record.
pub(crate) fn encode(entry: &Entry, bytes: &mut Vec<u8>) {
    encode_varint(entry.key.len() as u64, bytes);
    bytes.extend_from_slice(entry.key.as_bytes());
    encode_varint(entry.value.as_ref().map_or(0, |value| 1 + value.len() as u64), bytes);
    bytes.extend_from_slice(entry.value.as_deref().unwrap_or_default());
}
