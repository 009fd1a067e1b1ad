use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::{Dtype, Error, LENGTH_BYTES, MAX_DIMENSIONS, MAX_HEADER_BYTES, MAX_NAME_BYTES};
use crate::brief::Brief;

/// Where one tensor lies and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost dimension first; empty for a scalar.
    pub shape: Vec<usize>,
    /// First byte, relative to the data section.
    pub start: u64,
    /// One past the last byte, relative to the data section.
    pub end: u64,
}

/// A checked header: every tensor lies inside the file, and none overlaps another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The tensors by name.
    pub tensors: BTreeMap<String, TensorInfo>,
    /// The `__metadata__` of the file.
    pub metadata: BTreeMap<String, String>,
    /// Bytes of JSON, without the eight of the length before it.
    pub header_len: u64,
}

impl Header {
    /// The file position of the data section's first byte.
    pub fn data_start(&self) -> u64 {
        LENGTH_BYTES + self.header_len
    }
}

/// Checks the first eight bytes of a file of `file_len` bytes and returns the length of the JSON after them.
///
/// # Errors
/// [`Error::TooShort`], [`Error::HeaderTooLong`], [`Error::HeaderCutOff`]: nothing should be allocated for such a file.
pub fn parse_length(first: &[u8; 8], file_len: u64) -> Result<u64, Error> {
    let length = u64::from_le_bytes(*first);
    let room = file_len.checked_sub(LENGTH_BYTES).ok_or(Error::TooShort { file_len })?;
    if length > MAX_HEADER_BYTES {
        return Err(Error::HeaderTooLong { length });
    }
    if length > room {
        return Err(Error::HeaderCutOff { length, file_len });
    }
    Ok(length)
}

/// Splits a whole file into its header and its data section. Copies no tensor; every tensor's range lies in the data.
///
/// # Errors
/// As [`parse_length`] and [`parse_header`].
pub fn parse(bytes: &[u8]) -> Result<(Header, &[u8]), Error> {
    let file_len = bytes.len() as u64;
    let (first, rest) = bytes.split_first_chunk::<8>().ok_or(Error::TooShort { file_len })?;
    // The length is at most what is left of the file, so it fits and the split can't fail.
    let (json, data) = rest.split_at(parse_length(first, file_len)? as usize);
    Ok((parse_header(json, file_len)?, data))
}

/// Parses the JSON of a header, exactly the bytes that [`parse_length`] counted, of a file of `file_len` bytes.
///
/// # Errors
/// Anything that is not a header whose tensors fill the data section without gap or overlap, each with as many bytes
/// as its shape needs, and each named once.
pub fn parse_header(json: &[u8], file_len: u64) -> Result<Header, Error> {
    let header_len = json.len() as u64;
    parse_length(&header_len.to_le_bytes(), file_len)?;
    let data_len = file_len - LENGTH_BYTES - header_len;

    let RawHeader { tensors: raw, metadata } = serde_json::from_slice(json)?;
    let mut tensors = BTreeMap::new();
    for (name, RawTensor { dtype, shape, data_offsets: (start, end) }) in raw {
        let Some(bytes) = dtype.bytes(&shape) else {
            return Err(Error::Overflow { name, shape, dtype });
        };
        if start.checked_add(bytes) != Some(end) {
            return Err(Error::WrongSize { name, shape, dtype, bytes, start, end });
        }
        tensors.insert(name, TensorInfo { dtype, shape, start, end });
    }

    let mut in_file_order: Vec<(&String, &TensorInfo)> = tensors.iter().collect();
    in_file_order.sort_by_key(|(_, tensor)| (tensor.start, tensor.end));
    let mut expected = 0;
    for (name, tensor) in in_file_order {
        if tensor.start != expected {
            return Err(Error::NotContiguous { name: name.clone(), start: tensor.start, expected });
        }
        expected = tensor.end;
    }
    if expected != data_len {
        return Err(Error::WrongEnd { end: expected, data_len });
    }
    Ok(Header { tensors, metadata, header_len })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: Dtype,
    #[serde(deserialize_with = "dimensions")]
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// A shape, read no farther than any tensor has dimensions: two bytes of text would take eight of memory.
fn dimensions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    struct Dimensions;
    impl<'de> Visitor<'de> for Dimensions {
        type Value = Vec<usize>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a shape of at most {MAX_DIMENSIONS} dimensions")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<usize>, A::Error> {
            let mut shape = Vec::new();
            while let Some(dimension) = seq.next_element()? {
                if shape.len() == MAX_DIMENSIONS {
                    return Err(A::Error::invalid_length(MAX_DIMENSIONS + 1, &self));
                }
                shape.push(dimension);
            }
            Ok(shape)
        }
    }
    deserializer.deserialize_seq(Dimensions)
}

/// The JSON object, with names refused that come twice: a reader that keeps the first and one that keeps the last
/// would see different models.
#[derive(Default)]
struct RawHeader {
    tensors: BTreeMap<String, RawTensor>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader::default();
                let mut has_metadata = false;
                while let Some(name) = map.next_key::<String>()? {
                    if name.len() > MAX_NAME_BYTES {
                        let bytes = name.len();
                        return Err(A::Error::custom(format_args!("a tensor's name has {bytes} bytes")));
                    }
                    let is_metadata = name == "__metadata__";
                    if header.tensors.contains_key(&name) || (is_metadata && has_metadata) {
                        return Err(A::Error::custom(format_args!("`{}` is named twice", Brief(&name))));
                    }
                    if is_metadata {
                        header.metadata = map.next_value::<Metadata>()?.0;
                        has_metadata = true;
                    } else {
                        let wrong = |e| A::Error::custom(format_args!("tensor `{}`: {e}", Brief(&name)));
                        let tensor = map.next_value().map_err(wrong)?;
                        header.tensors.insert(name, tensor);
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// String to string; of a key that comes twice the last counts, since nothing that we compute depends on it.
#[derive(Deserialize)]
struct Metadata(BTreeMap<String, String>);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(json: &str, data_len: u64) -> Result<Header, Error> {
        parse_header(json.as_bytes(), 8 + json.len() as u64 + data_len)
    }

    #[test]
    fn length_is_checked_before_anything_is_allocated() {
        assert!(matches!(parse_length(&[0; 8], 7), Err(Error::TooShort { file_len: 7 })));
        assert!(matches!(parse_length(&[0xff; 8], u64::MAX), Err(Error::HeaderTooLong { .. })));
        assert!(matches!(parse_length(&9u64.to_le_bytes(), 16), Err(Error::HeaderCutOff { .. })));
        assert_eq!(parse_length(&8u64.to_le_bytes(), 16).unwrap(), 8);
    }

    #[test]
    fn hostile_headers_are_refused() {
        let a = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        assert!(parse(a, 8).is_ok());
        assert!(matches!(parse(a, 9), Err(Error::WrongEnd { end: 8, data_len: 9 })));
        assert!(matches!(parse(a, 4), Err(Error::WrongEnd { .. })));
        let wrong_size = r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#;
        assert!(matches!(parse(wrong_size, 8), Err(Error::WrongSize { bytes: 12, .. })));
        let backwards = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[18446744073709551615,7]}}"#;
        assert!(matches!(parse(backwards, 8), Err(Error::WrongSize { .. })));
        let huge = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#;
        assert!(matches!(parse(huge, 0), Err(Error::Overflow { .. })));
        let hole = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
        assert!(matches!(parse(hole, 2), Err(Error::NotContiguous { expected: 0, .. })));
        let overlap = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#;
        assert!(matches!(parse(overlap, 3), Err(Error::NotContiguous { expected: 2, .. })));
        let twice = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
        assert!(parse(twice, 1).unwrap_err().to_string().contains("`a` is named twice"));
        let unknown = r#"{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}"#;
        assert!(parse(unknown, 1).unwrap_err().to_string().contains("tensor `a`"));
        assert!(parse("[]", 0).is_err());
    }

    #[test]
    fn what_no_tensor_has_is_refused_before_it_takes_memory_and_in_few_words() {
        let deep = format!(r#"{{"a":{{"dtype":"U8","shape":[{}1],"data_offsets":[0,1]}}}}"#, "1,".repeat(64));
        let long = format!(r#"{{"{}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#, "a".repeat(1025));
        let kind = format!(r#"{{"a":{{"dtype":"{}","shape":[1],"data_offsets":[0,1]}}}}"#, "U8".repeat(1 << 20));
        for (json, said) in [(&deep, "64 dimensions"), (&long, "1025 bytes"), (&kind, "unknown variant")] {
            let error = parse(json, 1).unwrap_err().to_string();
            assert!(error.contains(said) && error.len() < 1000, "{error}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), extra in any::<u64>()) {
            let _ = parse_header(&bytes, extra);
            let _ = parse_header(&bytes, (8 + bytes.len() as u64).saturating_add(extra % 64));
        }

        #[test]
        fn arbitrary_entries_never_panic(
            dtype in "F32|F16|BOOL|C64|X",
            shape in proptest::collection::vec(any::<u64>(), 0..4),
            start in any::<u64>(),
            end in any::<u64>(),
            file_len in any::<u64>(),
        ) {
            let json = format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}}}"#);
            let _ = parse_header(json.as_bytes(), file_len);
        }
    }
}
