//! The disk of a coordinator's state, which can be filled up.
//!
//! Where the test has mounts of its own, that disk is a small one in memory, and is filled to its last byte.
//! Elsewhere it is the machine's, of which a file takes so much that less is free than the coordinator leaves.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::process::said;

/// Far more than the state and its copies take.
const SIZE: &str = "size=32m";
/// Of the machine's disk: more than other tests take and give back meanwhile.
const MARGIN: u64 = 512 << 20;

/// The disk.
pub(crate) struct Disk {
    is_own: bool,
    keep_free: u64,
    ballast: PathBuf,
}

impl Disk {
    /// A disk of its own in `folder`; the test has to be in a namespace of its own, too.
    pub(crate) fn mount(folder: &Path) -> Self {
        fs::create_dir_all(folder).expect("a folder");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", SIZE, "none"]).arg(folder).output();
        let mounted = mounted.expect("runs");
        assert!(mounted.status.success(), "{}", said(&mounted));
        Self { is_own: true, keep_free: 1, ballast: folder.join("ballast.new") }
    }

    /// The disk on which `folder` lies.
    pub(crate) fn of_machine(folder: &Path) -> Self {
        let disk = statvfs(folder).expect("a disk");
        let free = disk.f_bavail * disk.f_frsize;
        Self { is_own: false, keep_free: free.saturating_sub(MARGIN), ballast: folder.join("ballast") }
    }

    /// Bytes that the coordinator is to leave.
    pub(crate) fn keep_free(&self) -> u64 {
        self.keep_free
    }

    /// Fills it up.
    pub(crate) fn fill(&self) {
        let mut ballast = File::create(&self.ballast).expect("a file");
        if !self.is_own {
            return fallocate(&ballast, FallocateFlags::empty(), 0, 2 * MARGIN).expect("room");
        }
        let some = [1; 4096];
        let error = (0..).find_map(|_| ballast.write_all(&some).err()).expect("the disk is finite");
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    }

    /// Takes back what filled it.
    pub(crate) fn free(&self) {
        fs::remove_file(&self.ballast).expect("removed");
    }
}
