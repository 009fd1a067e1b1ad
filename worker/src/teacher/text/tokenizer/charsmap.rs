//! SentencePiece's table of characters that are replaced before a text is split (`normalizer.cc`): a length in bytes, a trie of so
//! many as a double array of 32-bit units (darts-clone), and the replacements, each of which ends with a 0. The library that reads it
//! believes all of that, so that it is checked here: a search must not leave the trie, nor end in the middle of a character.

/// What a search looks at from one place.
const BLOCK: usize = 0xff;

/// Whether every search stays within the table.
pub(super) fn check(table: &[u8]) -> Result<(), &'static str> {
    let (length, rest) = table.split_first_chunk::<4>().ok_or("it has no length")?;
    let length = u32::from_le_bytes(*length) as usize;
    let (trie, replacements) = rest.split_at_checked(length).ok_or("it is cut off")?;
    let replacements = std::str::from_utf8(replacements).map_err(|_| "a replacement is no text in UTF-8")?;
    let (units, odd) = trie.as_chunks::<4>();
    let units: Vec<Unit> = units.iter().map(|unit| Unit(u32::from_le_bytes(*unit))).collect();
    if !odd.is_empty() || units.is_empty() {
        return Err("its trie is no list of units");
    }
    let mut seen = vec![false; units.len()];
    let mut pending = vec![units[0].offset()];
    while let Some(at) = pending.pop() {
        if at | BLOCK >= units.len() {
            return Err("its trie leads out of it");
        }
        if std::mem::replace(&mut seen[at], true) {
            continue;
        }
        for byte in 1..=BLOCK {
            let unit = units[at ^ byte];
            if unit.label() != byte {
                continue;
            }
            let next = at ^ byte ^ unit.offset();
            let leaf = units.get(next).ok_or("its trie leads out of it")?;
            if unit.has_leaf() && !replacements.is_char_boundary(leaf.value()) {
                return Err("a replacement begins where there is none");
            }
            pending.push(next);
        }
    }
    Ok(())
}

/// One of the trie's.
#[derive(Clone, Copy)]
struct Unit(u32);

impl Unit {
    fn has_leaf(self) -> bool {
        self.0 >> 8 & 1 == 1
    }

    fn value(self) -> usize {
        (self.0 & 0x7fff_ffff) as usize
    }

    /// More than a byte of one that holds a value.
    fn label(self) -> usize {
        (self.0 & 0x8000_00ff) as usize
    }

    fn offset(self) -> usize {
        ((self.0 >> 10) << ((self.0 & 1 << 9) >> 6)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table in which `a` becomes what begins at `value`.
    fn table(value: u32, replacements: &[u8]) -> Vec<u8> {
        let mut units = [0_u32; 512];
        // From the root to the block at 256; there `a`, which leads back to the first block and has a leaf there.
        units[0] = 256 << 10;
        units[256 ^ 0x61] = (0x61 ^ 256 ^ 1) << 10 | 1 << 8 | 0x61;
        units[1] = 1 << 31 | value;
        let trie: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        [&2048_u32.to_le_bytes()[..], &trie, replacements].concat()
    }

    #[test]
    fn searches_that_would_leave_the_table_are_found() {
        let good = table(0, "é\0".as_bytes());
        assert_eq!(check(&good), Ok(()));
        for value in [1, 4, 0x7fff_ffff] {
            assert!(check(&table(value, "é\0".as_bytes())).is_err(), "{value}");
        }
        assert!(check(&table(0, &[0xc3])).is_err());
        for length in 0..2052 {
            assert!(check(&good[..length]).is_err(), "{length} bytes were taken");
        }
        // A length that would have gigabytes reserved, and a root that leads out.
        assert!(check(&[0xff; 4]).is_err());
        assert!(check(&[&4_u32.to_le_bytes()[..], &[0xff; 4]].concat()).is_err());
    }
}
