use std::collections::{BTreeMap, BTreeSet};

use super::{Dtype, Error, LENGTH_BYTES};

/// JSON is padded with spaces to a multiple of this, so that the data section of a mapped file is aligned.
const ALIGNMENT: usize = 8;

/// The bytes before the data section, length included, of a file that holds `tensors` in the given order without gaps.
///
/// The same arguments give the same bytes. Offsets follow from dtype and shape, so a writer can stream the tensors'
/// bytes after these without having had them all in memory. Tensors of different dtypes should come in order of
/// falling size, or those after a smaller one may lie unaligned, which some readers refuse to map.
///
/// # Errors
/// [`Error::DuplicateName`], [`Error::ReservedName`], [`Error::Overflow`], [`Error::HeaderTooLong`].
pub fn serialize_header<'a>(
    tensors: impl IntoIterator<Item = (&'a str, Dtype, &'a [usize])>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, Error> {
    let mut entries = Vec::new();
    if !metadata.is_empty() {
        entries.push(format!("\"__metadata__\":{}", serde_json::to_string(metadata)?));
    }
    let mut seen = BTreeSet::new();
    let mut start = 0_u64;
    for (name, dtype, shape) in tensors {
        if name == "__metadata__" {
            return Err(Error::ReservedName);
        }
        if !seen.insert(name) {
            return Err(Error::DuplicateName { name: name.to_owned() });
        }
        let overflow = || Error::Overflow { name: name.to_owned(), shape: shape.to_vec(), dtype };
        let bytes = dtype.bytes(shape).ok_or_else(overflow)?;
        let end = start.checked_add(bytes).ok_or_else(overflow)?;
        let name = serde_json::to_string(name)?;
        let shape = serde_json::to_string(shape)?;
        entries.push(format!("{name}:{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{start},{end}]}}"));
        start = end;
    }

    let mut json = format!("{{{}}}", entries.join(","));
    let padded = json.len().next_multiple_of(ALIGNMENT);
    json.extend(std::iter::repeat_n(' ', padded - json.len()));
    let length = json.len() as u64;
    if length > super::MAX_HEADER_BYTES {
        return Err(Error::HeaderTooLong { length });
    }
    let mut bytes = Vec::with_capacity(LENGTH_BYTES as usize + json.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(json.as_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{parse_header, parse_length};
    use super::*;

    fn dtype() -> impl Strategy<Value = Dtype> {
        prop_oneof![Just(Dtype::F32), Just(Dtype::F16), Just(Dtype::BF16), Just(Dtype::I64), Just(Dtype::BOOL)]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            tensors in proptest::collection::btree_map(".{0,12}", (dtype(), proptest::collection::vec(0_usize..9, 0..4)), 0..8),
            metadata in proptest::collection::btree_map(".{0,6}", ".{0,6}", 0..3),
        ) {
            prop_assume!(!tensors.contains_key("__metadata__"));
            // The order is the writer's to choose, so it is written backwards here.
            let given: Vec<_> = tensors.iter().rev().map(|(n, (d, s))| (n.as_str(), *d, s.as_slice())).collect();
            let bytes = serialize_header(given.clone(), &metadata).unwrap();
            prop_assert_eq!(&bytes, &serialize_header(given.clone(), &metadata).unwrap());
            prop_assert_eq!(bytes.len() % ALIGNMENT, 0);

            let data_len: u64 = given.iter().map(|(_, d, s)| d.bytes(s).unwrap()).sum();
            let file_len = bytes.len() as u64 + data_len;
            let length = parse_length(bytes[..8].try_into().unwrap(), file_len).unwrap();
            let header = parse_header(&bytes[8..], file_len).unwrap();
            prop_assert_eq!(header.header_len, length);
            prop_assert_eq!(&header.metadata, &metadata);
            prop_assert_eq!(header.tensors.len(), tensors.len());
            let mut start = 0;
            for (name, dtype, shape) in given {
                let info = &header.tensors[name];
                prop_assert_eq!((info.dtype, info.shape.as_slice(), info.start), (dtype, shape, start));
                start = info.end;
            }
        }
    }

    #[test]
    fn a_name_comes_once() {
        let none = BTreeMap::new();
        let twice = [("a", Dtype::F32, &[1][..]), ("a", Dtype::F32, &[1][..])];
        assert!(matches!(serialize_header(twice, &none), Err(Error::DuplicateName { .. })));
        assert!(matches!(serialize_header([("__metadata__", Dtype::F32, &[1][..])], &none), Err(Error::ReservedName)));
    }
}
