//! Who did what: a line of JSON for each change that was asked for, each worker that came, and what was denied.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use deltaconv_proto::code::Code;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::Status;

use super::Who;

/// The file in the state's folder.
pub(crate) const FILE: &str = "audit.jsonl";
/// A file as large as this is put aside.
const LARGEST: u64 = 64 << 20;
/// So many of those are kept.
const KEPT: u64 = 9;
/// Denied calls that are written a second: somebody who is denied could else fill the disk.
const DENIED: u32 = 10;

/// Writes lines. Cheap to share.
#[derive(Debug)]
pub(crate) struct Audit(Mutex<Open>);

#[derive(Debug)]
struct Open {
    path: PathBuf,
    file: File,
    bytes: u64,
    denials: Denials,
}

/// How many denied calls were written of late.
#[derive(Debug)]
struct Denials {
    second: Instant,
    written: u32,
    left_out: u64,
}

#[derive(Serialize)]
struct Line<'a> {
    at: String,
    who: &'a str,
    from: String,
    did: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    to: &'a str,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// Calls that were denied before and are not in the file, since they were too many.
    #[serde(skip_serializing_if = "is_zero")]
    left_out: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Audit {
    /// Appends to the file in this folder.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        let path = folder.join(FILE);
        let file = append(&path)?;
        let bytes = file.metadata()?.len();
        Ok(Self(Mutex::new(Open { path, file, bytes, denials: Denials::new(Instant::now()) })))
    }

    /// Writes that a change was made, or refused; and gives what came of it back.
    pub(crate) fn note<T>(&self, who: &Who, did: &str, to: &str, came: Result<T, Status>) -> Result<T, Status> {
        let refused = came.as_ref().err();
        let line = Line {
            at: now(),
            who: &who.name,
            from: who.from.to_string(),
            did,
            to,
            outcome: if refused.is_some() { "refused" } else { "done" },
            code: refused.and_then(Code::of_status).map(Code::as_str),
            reason: refused.map(Status::message),
            left_out: 0,
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(line);
        came
    }

    /// Writes that somebody was denied.
    pub(crate) fn denied(&self, who: &Who, did: &str, why: &Status) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(left_out) = open.denials.next(Instant::now()) else { return };
        let (code, reason) = (Code::of_status(why).map(Code::as_str), Some(why.message()));
        let from = who.from.to_string();
        open.write(Line { at: now(), who: &who.name, from, did, to: "", outcome: "denied", code, reason, left_out });
    }
}

impl Denials {
    fn new(now: Instant) -> Self {
        Self { second: now, written: 0, left_out: 0 }
    }

    /// How many were left out before this one; none if it is left out itself.
    fn next(&mut self, now: Instant) -> Option<u64> {
        if now.duration_since(self.second) >= Duration::from_secs(1) {
            (self.second, self.written) = (now, 0);
        }
        if self.written == DENIED {
            self.left_out += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

impl Open {
    fn write(&mut self, line: Line<'_>) {
        let written = serde_json::to_vec(&line).map_err(io::Error::from).and_then(|mut bytes| {
            bytes.push(b'\n');
            if self.bytes + bytes.len() as u64 > LARGEST {
                self.put_aside()?;
            }
            self.bytes += bytes.len() as u64;
            self.file.write_all(&bytes)
        });
        if let Err(error) = written {
            // What was asked for is not held up by it; the log has both.
            tracing::error!(%error, path = %self.path.display(), who = line.who, did = line.did, "the audit log can't be written");
        }
    }

    /// The file is audit.1.jsonl from now on, and the one before it audit.2.jsonl, and so on.
    fn put_aside(&mut self) -> io::Result<()> {
        let numbered = |number: u64| self.path.with_extension(format!("{number}.jsonl"));
        let aside = (1..KEPT).rev().map(|number| (numbered(number), numbered(number + 1)));
        for (from, to) in aside.chain([(self.path.clone(), numbered(1))]) {
            match std::fs::rename(from, to) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.file = append(&self.path)?;
        self.bytes = 0;
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn now() -> String {
    // Nothing but a year of five digits can't be written so.
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_flood_of_denials_few_are_written_and_the_rest_is_counted() {
        let start = Instant::now();
        let mut denials = Denials::new(start);
        for _ in 0..DENIED {
            assert_eq!(denials.next(start), Some(0));
        }
        for _ in 0..1000 {
            assert_eq!(denials.next(start + Duration::from_millis(999)), None);
        }
        let later = start + Duration::from_secs(1);
        assert_eq!(denials.next(later), Some(1000));
        assert_eq!(denials.next(later), Some(0));
    }

    #[test]
    fn a_full_log_is_put_aside_and_the_oldest_is_dropped() {
        let folder = tempfile::tempdir().expect("a folder");
        let audit = Audit::open(folder.path()).expect("opens");
        let who = Who { role: None, name: "somebody".into(), from: ([127, 0, 0, 1], 1).into() };
        let write = |to: String| audit.note(&who, "Test", &to, Ok(())).expect("what came of it");
        let is_full = || audit.0.lock().expect("no panic").bytes = LARGEST;
        for number in 0..KEPT + 3 {
            write(format!("job-{number}"));
            is_full();
        }
        // Somebody else put it aside meanwhile.
        std::fs::remove_file(folder.path().join(FILE)).expect("removed");
        write("job-last".into());

        let told = |file: &str| {
            let text = std::fs::read_to_string(folder.path().join(file)).expect("a log");
            let line: serde_json::Value = serde_json::from_str(&text).expect("one line");
            line["to"].as_str().expect("a job").to_owned()
        };
        assert_eq!(told(FILE), "job-last");
        assert_eq!(told("audit.2.jsonl"), format!("job-{}", KEPT + 1));
        assert_eq!(told("audit.9.jsonl"), "job-3");
        let files = std::fs::read_dir(folder.path()).expect("a folder").count();
        assert_eq!(files as u64, KEPT, "the newest, and those put aside but for the one that somebody took");
    }
}
