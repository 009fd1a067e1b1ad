//! BLAKE3 digests, as they stand in manifests and messages.

/// BLAKE3 of `bytes`, in hex.
pub fn of(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// Whether `text` has the form of a digest. One that a peer sent is checked before it is kept.
pub fn is_valid(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}
