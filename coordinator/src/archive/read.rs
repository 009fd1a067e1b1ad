//! Records from an object, piece by piece.

use deltaconv_proto::objects::{self, Objects, PART};

use super::Error;
use super::decode::Decoder;
use crate::store::Write;

/// A state of 10 million tasks has a tenth of it.
const LARGEST: u64 = 64 << 30;

/// Why an object wasn't read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError<E> {
    /// The store failed.
    #[error(transparent)]
    Objects(#[from] objects::Error),
    /// It is not as it was written.
    #[error("{url}/{key} can't be read: {source}")]
    Archive {
        /// Where it lies.
        url: String,
        /// Its key there.
        key: String,
        /// What is wrong.
        source: Error,
    },
    /// Who takes the records can't.
    #[error(transparent)]
    Taker(E),
}

impl<E> ReadError<E> {
    /// Whether what was written is lost. One of a later version can still be read, by that version.
    pub(crate) fn is_broken(&self) -> bool {
        let Self::Archive { source, .. } = self else { return false };
        !source.is_later()
    }
}

/// Gives every record of an object to `take`, in their order. Only once this returns is it known that they are right.
pub(crate) async fn read<E>(
    objects: &Objects,
    key: &str,
    mut take: impl FnMut(Vec<Write>) -> Result<(), E>,
) -> Result<(), ReadError<E>> {
    let broken = |source| ReadError::Archive { url: objects.url().to_owned(), key: key.to_owned(), source };
    let size = objects.size(key).await?;
    if size > LARGEST {
        let (url, key) = (objects.url().to_owned(), key.to_owned());
        return Err(objects::Error::TooLarge { url, key, size, limit: LARGEST }.into());
    }
    let mut decoder = Decoder::default();
    let mut at = 0;
    while at < size {
        let end = size.min(at + PART as u64);
        let writes = decoder.push(&objects.get_range(key, at, end).await?).map_err(broken)?;
        take(writes).map_err(ReadError::Taker)?;
        at = end;
    }
    decoder.finish().map_err(broken)
}
