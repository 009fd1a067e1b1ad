//! BLAKE3 digests, as they stand in manifests and messages.

use crate::v1::ObjectRef;

impl ObjectRef {
    /// These bytes, where they are to be.
    pub fn of(key: impl Into<String>, bytes: &[u8]) -> Self {
        Self { key: key.into(), size: bytes.len() as u64, digest: of(bytes) }
    }
}

/// BLAKE3 of `bytes`, in hex.
pub fn of(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// Whether `text` has the form of a digest. One that a peer sent is checked before it is kept.
pub fn is_valid(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A digest's bytes. `None` if it isn't one.
pub fn bytes(digest: &str) -> Option<[u8; 32]> {
    let hash = blake3::Hash::from_hex(digest).ok().filter(|_| is_valid(digest))?;
    Some(*hash.as_bytes())
}

/// The digest of these bytes, in hex.
pub fn text(bytes: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*bytes).to_hex().to_string()
}

/// As many shards a worker states at most that its node holds, and the coordinator keeps: 32 KiB of prefixes.
pub const MAX_STATED: usize = 4096;

/// The first 8 bytes of a digest, enough to tell shards apart where being wrong costs time alone. `None` if it isn't one.
pub fn prefix(digest: &str) -> Option<u64> {
    is_valid(digest).then(|| u64::from_str_radix(&digest[..16], 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_its_bytes_and_nothing_else_is_one() {
        let digest = of(b"abc");
        assert_eq!(bytes(&digest).map(|bytes| text(&bytes)), Some(digest.clone()));
        for bad in ["", &digest[1..], &digest.to_uppercase()] {
            assert_eq!(bytes(bad), None);
        }
    }

    #[test]
    fn a_digests_prefix_is_its_first_bytes() {
        let bytes = blake3::hash(b"abc").as_bytes()[..8].try_into().expect("8 bytes");
        assert_eq!(prefix(&of(b"abc")), Some(u64::from_be_bytes(bytes)));
        for bad in ["", "é", &"+".repeat(64), &"é".repeat(32)] {
            assert_eq!(prefix(bad), None);
        }
    }
}
