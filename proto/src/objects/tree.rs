//! Digests of objects from those of their parts, which are read and written beside each other.

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

/// The largest part. A power of two of 1 KiB chunks, so that parts are subtrees of BLAKE3's tree and are hashed apart.
pub const PART: usize = 8 << 20;

/// What BLAKE3's tree has of a part ("BLAKE3: one function, fast everywhere", section 2.1).
#[derive(Debug)]
pub(super) enum Value {
    Whole(blake3::Hash),
    Subtree(ChainingValue),
}

impl Value {
    fn subtree(&self) -> Option<ChainingValue> {
        if let Self::Subtree(value) = self { Some(*value) } else { None }
    }
}

/// Hashes a part, which is a subtree or the whole object.
pub(super) struct PartHasher {
    hasher: Hasher,
    is_whole: bool,
}

impl PartHasher {
    /// Of the part that begins with byte `start` of its object.
    pub(super) fn new(start: u64, is_whole: bool) -> Self {
        let mut hasher = Hasher::new();
        if !is_whole {
            hasher.set_input_offset(start);
        }
        Self { hasher, is_whole }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    pub(super) fn finish(self) -> Value {
        match self.is_whole {
            true => Value::Whole(self.hasher.finalize()),
            false => Value::Subtree(self.hasher.finalize_non_root()),
        }
    }
}

/// The digest of an object, from the values of all its parts: one that is the whole, or several subtrees.
pub(super) fn root(values: &[Value]) -> blake3::Hash {
    if let [Value::Whole(hash)] = values {
        return *hash;
    }
    let subtrees: Vec<ChainingValue> = values.iter().filter_map(Value::subtree).collect();
    let (left, right) = halves(&subtrees);
    merge_subtrees_root(&merged(left), &merged(right), Mode::Hash)
}

/// The value of the subtree above at least one.
fn merged(values: &[ChainingValue]) -> ChainingValue {
    if let [value] = values {
        return *value;
    }
    let (left, right) = halves(values);
    merge_subtrees_non_root(&merged(left), &merged(right), Mode::Hash)
}

/// Of at least two: the left half is the largest power of two that leaves something on the right.
fn halves(values: &[ChainingValue]) -> (&[ChainingValue], &[ChainingValue]) {
    values.split_at(values.len().next_power_of_two() / 2)
}
