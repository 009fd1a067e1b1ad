//! What a parser says of somebody's file, on its way to a terminal: no more than can be read, and nothing that the terminal obeys.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Bytes of a message.
const LONGEST: usize = 2000;
/// Of a file that somebody writes by hand.
const LARGEST: u64 = 1 << 20;

/// The message, cut and escaped; lines stay.
pub(crate) fn said(text: &str) -> String {
    let mut said = String::new();
    for c in text.trim_end().chars() {
        match c.is_control() && c != '\n' {
            true => said.extend(c.escape_default()),
            false => said.push(c),
        }
        if said.len() > LONGEST {
            said.push('…');
            break;
        }
    }
    said
}

/// A file's text, if it has no more bytes than such a file has.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LARGEST + 1).read_to_string(&mut text)?;
    match text.len() as u64 > LARGEST {
        true => Err(io::Error::other(format!("it has more than {LARGEST} bytes"))),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_and_escaped_and_files_are_read_no_farther_than_they_may_go() {
        assert_eq!(said("line 1\n  \x1b[2J\n"), "line 1\n  \\u{1b}[2J");
        assert!(said(&"é".repeat(2000)).chars().count() < 1005 && said(&"\0".repeat(2000)).len() < 2020);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("job.toml");
        std::fs::write(&path, "a".repeat(1 << 20)).expect("written");
        assert_eq!(read(&path).expect("read").len(), 1 << 20);
        assert!(cfg!(not(unix)) || read(Path::new("/dev/zero")).is_err());
    }
}
