//! The disk that a worker would keep samples on.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use deltaconv_proto::code::Code;

use super::Finding;
use crate::table;

/// What is written and read.
const SIZE: usize = 256 << 20;
const PIECE: usize = 4 << 20;
/// Less feeds no GPU (docs/recipe.md has what training reads).
const SLOW: f64 = 500e6;
/// Samples of a job of a usual size.
const LITTLE_SPACE: u64 = 100_000_000_000;

pub(super) async fn look(folder: &Path) -> Vec<Finding> {
    let folder = folder.to_owned();
    let looked = tokio::task::spawn_blocking(move || [space(&folder), speed(&folder)].into()).await;
    looked.unwrap_or_else(|panic| vec![Finding::failed("disk", panic.to_string(), Code::Fault)])
}

fn space(folder: &Path) -> Finding {
    const CHECK: &str = "disk space";
    match free(folder) {
        Err(error) => Finding::failed(CHECK, format!("{}: {error}", folder.display()), Code::File),
        Ok(free) => {
            let found = format!("{} free at {}", table::bytes(free), folder.display());
            match free < LITTLE_SPACE {
                false => Finding::ok(CHECK, found),
                true => Finding::warning(
                    CHECK,
                    found,
                    "give a worker that has a --disk-cache there a smaller --disk-cache-size, or name another disk",
                ),
            }
        }
    }
}

/// Bytes that this user may still write there.
fn free(folder: &Path) -> io::Result<u64> {
    use std::os::unix::ffi::OsStrExt;

    let path = std::ffi::CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: all zeros are a statvfs.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` ends with a zero, and both live through the call.
    match unsafe { libc::statvfs(path.as_ptr(), &raw mut found) } {
        0 => Ok(found.f_bavail.saturating_mul(found.f_frsize)),
        _ => Err(io::Error::last_os_error()),
    }
}

fn speed(folder: &Path) -> Finding {
    const CHECK: &str = "disk speed";
    let path = folder.join(format!("deltaconv-doctor-{}", std::process::id()));
    let measured = measure(&Removed(path.clone()));
    match measured {
        Err(error) => Finding::failed(CHECK, format!("{}: {error}", path.display()), Code::File),
        Ok((write, read)) => {
            let rate = |took: Duration| SIZE as f64 / took.as_secs_f64().max(1e-9);
            let [write, read] = [write, read].map(rate);
            let per_second = |rate: f64| format!("{}/s", table::bytes(rate as u64));
            let found = format!("{} written (and synced), {} read", per_second(write), per_second(read));
            match write < SLOW {
                false => Finding::ok(CHECK, found),
                true => Finding::warning(
                    CHECK,
                    found,
                    "a local NVMe disk is faster; without --disk-cache samples come from the store, which may be, too",
                ),
            }
        }
    }
}

/// A file that goes with this.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The times to write a file through to the disk, and to read it without what memory holds of it.
fn measure(path: &Removed) -> io::Result<(Duration, Duration)> {
    let mut piece: Vec<u8> = (0..PIECE).map(|index| (index * 31 % 251) as u8).collect();
    let began = Instant::now();
    let mut file = File::options().create_new(true).read(true).write(true).open(&path.0)?;
    for _ in 0..SIZE / PIECE {
        file.write_all(&piece)?;
    }
    file.sync_all()?;
    let wrote = began.elapsed();
    forget(&file);
    file.rewind()?;
    let began = Instant::now();
    for _ in 0..SIZE / PIECE {
        file.read_exact(&mut piece)?;
    }
    Ok((wrote, began.elapsed()))
}

/// Has the system forget what memory holds of a file, where it can.
#[cfg(target_os = "linux")]
fn forget(file: &File) {
    use std::os::fd::AsRawFd;

    // SAFETY: an open file; the call is advice, and what it answers changes nothing.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

#[cfg(not(target_os = "linux"))]
fn forget(_: &File) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_is_found_and_nothing_is_left_in_one_that_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let gone = folder.path().join("gone");
        assert_eq!(speed(&gone).code, Some("DC0005"));
        assert_eq!(space(&gone).code, Some("DC0005"));
        assert!(space(folder.path()).code.is_none());
        assert!(speed(folder.path()).code.is_none());
        assert_eq!(std::fs::read_dir(folder.path()).expect("there").count(), 0);
    }
}
