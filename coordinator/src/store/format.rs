//! Formats of what is durable, and what is said of one that isn't read.
//!
//! A format is the byte before every record, in the state's database, in snapshots, in backups and in manifests alike. Each release reads
//! every format since [`OLDEST`] and writes [`VERSION`]; records of earlier formats stay as they are until they change.
//!
//! | format | is |
//! |---|---|
//! | 2 | tasks count their failures, workers have no machines |
//! | 3 | a task's failures with their machines, quarantine, a second lease; workers' machines and drains; nodes and requests |
//! | 4 | shards of capture tasks without their keys; later, within it, events |
//!
//! A field or a table that an earlier release can leave out without doing harm needs no new format: those who don't know it pass
//! over it. Whatever else changes raises [`VERSION`] by one, adds a line above, a `format-N.records` beside those in
//! `coordinator/src/archive`, and its story to the test that reads them. How the database, snapshots and manifests are written doesn't
//! change without a new format, either, and an archive's first entry stays what [`RELEASE`] says.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use deltaconv_proto::protocol;

use super::Error;
use super::local::write_durably;

/// What is written.
pub(crate) const VERSION: u8 = 4;
/// The oldest that is still read.
pub(crate) const OLDEST: u8 = 2;

/// Within the state's folder: the format and the release that wrote there last. It is looked at before anything is opened, so that
/// an earlier release leaves everything as it is.
pub(crate) const FILE: &str = "FORMAT";
/// The key of an archive's first entry, whose value is a version byte and the release that wrote it: in every format.
pub(crate) const RELEASE: &str = "release";

/// A release in a file or an archive is no longer.
const LONGEST: usize = 64;

/// Why records aren't read that have format `found`, written by release `by`, which is empty where it isn't known.
pub(crate) fn unread(what: &str, found: u8, by: &str) -> String {
    let known = format!("deltaconv {}, which reads formats {OLDEST} to {VERSION}", protocol::RELEASE);
    if found <= VERSION {
        return format!("{what} has format {found}, and this is {known}; start a release between the two first");
    }
    let (written, install) = match by {
        "" => (String::new(), "the release that wrote it, or a later one".to_owned()),
        by => (format!(", written by deltaconv {by}"), format!("deltaconv {by} or a later one")),
    };
    format!(
        "{what} has format {found}{written}, and this is {known} and has changed nothing; install {install}, or go back to a \
         backup that an earlier release made (`deltaconv coordinator restore --state NEW --backup URL`)"
    )
}

/// The release in the value of an archive's first entry, of any format.
pub(crate) fn release(value: &[u8]) -> String {
    let text = value.get(1..).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default();
    printable(text)
}

/// What [`release`] reads.
pub(crate) fn release_value() -> Vec<u8> {
    [&[VERSION][..], protocol::RELEASE.as_bytes()].concat()
}

/// Refuses a folder in which a later release wrote. Changes nothing.
pub(super) fn check(folder: &Path) -> Result<(), Error> {
    let path = folder.join(FILE);
    let text = match read(&path) {
        Ok(text) => text,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::Io { path, source }),
    };
    let mut words = text.split_whitespace();
    let Some(found) = words.next().and_then(|format| format.parse::<u8>().ok()) else {
        let source = io::Error::new(io::ErrorKind::InvalidData, format!("it names no format: {text:?}"));
        return Err(Error::Io { path, source });
    };
    match found > VERSION {
        true => Err(Error::Version { found, by: printable(words.next().unwrap_or_default()) }),
        false => Ok(()),
    }
}

/// Says that this release writes there.
pub(super) fn note(folder: &Path) -> Result<(), Error> {
    let (path, text) = (folder.join(FILE), format!("{VERSION} {}\n", protocol::RELEASE));
    if read(&path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    write_durably(&path, text.as_bytes()).map_err(|source| Error::Io { path, source })
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(2 * LONGEST as u64).read_to_string(&mut text)?;
    Ok(text)
}

fn printable(text: &str) -> String {
    text.chars().filter(char::is_ascii_graphic).take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_later_release_wrote_is_refused_with_what_to_install() {
        let folder = tempfile::tempdir().expect("a folder");
        let says = |text: &str| std::fs::write(folder.path().join(FILE), text).expect("written");
        assert!(check(&folder.path().join("not there")).is_ok());
        assert!(check(folder.path()).is_ok(), "earlier releases said nothing");
        note(folder.path()).expect("written");
        assert!(check(folder.path()).is_ok());
        says(&format!("{OLDEST} 0.0.1\n"));
        assert!(check(folder.path()).is_ok());

        // Whatever a later release adds behind.
        says(&format!("{} 9.8.7 and more\n", VERSION + 1));
        let refused = check(folder.path()).expect_err("refused").to_string();
        let theirs = format!("has format {}, written by deltaconv 9.8.7", VERSION + 1);
        let ours = format!("this is deltaconv {}, which reads formats {OLDEST} to {VERSION}", protocol::RELEASE);
        for part in [theirs.as_str(), &ours, "install deltaconv 9.8.7"] {
            assert!(refused.contains(part), "{part:?} is missing: {refused}");
        }
        says("soon\n");
        assert!(matches!(check(folder.path()), Err(Error::Io { .. })));
    }

    #[test]
    fn the_release_is_read_from_an_entry_of_any_format() {
        assert_eq!(release(&release_value()), protocol::RELEASE);
        assert_eq!(release(b"\x639.8.7"), "9.8.7");
        for nothing in [&[][..], &[4], &[4, 0xff, 0xfe]] {
            assert_eq!(release(nothing), "");
        }
    }
}
