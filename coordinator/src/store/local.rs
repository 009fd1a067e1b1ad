//! The state folder: a sled database, a lock, and the identity that belongs to it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use deltaconv_proto::code::Code;
use prost::Message;

use super::format::{self, OLDEST, VERSION};
use super::{Entry, Journal, Store, Write};
use crate::schedule::KEPT;

/// The database, within the folder.
pub(crate) const DATABASE: &str = "sled";
/// The identity, within the folder.
pub(crate) const IDENTITY: &str = "IDENTITY";
/// sled leaks the space of larger values.
pub(crate) const MAX_VALUE: usize = 64 * 1024;
/// What sled keeps of the database in memory. All of it is read once, at the start.
const CACHE_BYTES: u64 = 64 << 20;

/// Records that are read together, and how many such pieces are read ahead.
const PIECE: usize = 1024;
const READ_AHEAD: usize = 4;

/// What must fit on a disk that is to be written again.
const PROBE_BYTES: usize = 64 << 10;

/// There while a coordinator has the database open: whether it closed it.
pub(crate) const RUNNING: &str = "RUNNING";
/// Held by the process that has the state.
pub(crate) const LOCK: &str = "LOCK";
/// What may lie in the folder before there is a state: who starts a coordinator may have put it there, or the coordinator itself.
pub(crate) const BESIDE: [&str; 7] = [
    LOCK,
    "worker.token",
    "address",
    "webhook.sequence",
    "workers-authority.pem",
    "workers-authority.key",
    format::FILE,
];

/// What can go wrong with the state folder.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another coordinator has it.
    #[error("another coordinator runs on the state in {0}; stop it first, or give this one another --state")]
    InUse(PathBuf),
    /// The database was lost or emptied, and starting on it would forget every job.
    #[error(
        "{0} has an IDENTITY but its database is empty: the state was lost; restore it from a copy, or start with another --state"
    )]
    Lost(PathBuf),
    /// Something else lies there.
    #[error("{folder} holds {found:?} and is no state folder; give --state an empty or a new one")]
    NotState {
        /// The folder.
        folder: PathBuf,
        /// What was found first.
        found: String,
    },
    /// Written by a later version, or by one that is too old.
    #[error("{}", format::unread("the state", *found, by))]
    Version {
        /// The version byte.
        found: u8,
        /// The release that wrote it; empty where that isn't known.
        by: String,
    },
    /// Not what was written.
    #[error("record {key:?} of the state can't be read: {source}; restore the state from a copy")]
    Record {
        /// Its key.
        key: String,
        /// What the decoder said.
        source: prost::DecodeError,
    },
    /// A value that the database must not hold.
    #[error("record {key:?} has {size} bytes, and the state takes at most {MAX_VALUE}")]
    TooLarge {
        /// Its key.
        key: String,
        /// Its size.
        size: usize,
    },
    /// More would fill the disk.
    #[error("{folder} has {free} bytes free, and {keep} are to stay so (--keep-free)")]
    Full {
        /// The state's folder.
        folder: PathBuf,
        /// What is left.
        free: u64,
        /// What is to be left.
        keep: u64,
    },
    /// The file system failed.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// The database failed.
    #[error("the database in {path}: {source}")]
    Database {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: sled::Error,
    },
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::InUse(_) => Code::StateInUse,
            Self::Lost(_) => Code::StateLost,
            Self::NotState { .. } => Code::NotState,
            Self::Version { .. } => Code::LaterVersion,
            Self::Record { .. } => Code::StateRecord,
            Self::TooLarge { .. } => Code::RecordTooLarge,
            Self::Full { .. } => Code::StateFull,
            Self::Io { .. } | Self::Database { .. } => Code::StateUnwritable,
        }
    }
}

/// sled in a folder. One thread owns it.
pub struct LocalStore {
    folder: PathBuf,
    keep_free: u64,
    identity: String,
    /// Gone after it failed: sled takes nothing more then, and what it holds is found by opening it again.
    database: Option<Database>,
    journal: Journal,
    /// The folder says which format is written.
    is_noted: bool,
    _lock: File,
}

struct Database {
    sled: sled::Db,
    /// fsynced after every flush, which by itself isn't one.
    log: File,
}

impl LocalStore {
    /// Opens the state in `folder`, or makes it. It is not written while fewer than `keep_free` bytes are free there, since a
    /// disk that fills up in the middle of a write costs more than one that is known to be nearly full.
    pub fn open(folder: &Path, keep_free: u64) -> Result<Self, Error> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { path, source }
        };
        format::check(folder)?;
        std::fs::create_dir_all(folder).map_err(io(folder))?;
        refuse_foreign(folder)?;
        let lock_path = folder.join(LOCK);
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path).map_err(io(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(Error::InUse(folder.into())),
            Err(std::fs::TryLockError::Error(source)) => return Err(Error::Io { path: lock_path, source }),
        }
        let database = Database::open(folder)?;
        let identity = identity(folder, database.sled.is_empty())?;
        let running = folder.join(RUNNING);
        write_durably(&running, identity.as_bytes()).map_err(io(&running))?;
        let (database, journal) = (Some(database), Journal::default());
        Ok(Self { folder: folder.into(), keep_free, identity, database, journal, is_noted: false, _lock: lock })
    }

    /// Names this state; differs from that of every other.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Hears what is applied from now on.
    pub(crate) fn journal(&self) -> Journal {
        self.journal.clone()
    }

    /// Closes the state in order.
    pub fn close(self) -> Result<(), Error> {
        // One that failed is left to be repaired by the next start.
        let Some(database) = self.database else { return Ok(()) };
        database.flush(&self.folder)?;
        drop(database);
        let path = self.folder.join(RUNNING);
        std::fs::remove_file(&path).map_err(|source| Error::Io { path, source })
    }

    /// The database; opened again if it failed.
    fn database(&mut self) -> Result<&Database, Error> {
        let database = match self.database.take() {
            Some(database) => database,
            None => {
                let database = Database::open(&self.folder)?;
                if database.sled.is_empty() && self.folder.join(IDENTITY).exists() {
                    return Err(Error::Lost(self.folder.clone()));
                }
                database
            }
        };
        Ok(self.database.insert(database))
    }

    /// Refuses to fill the disk up.
    fn check_room(&self) -> Result<(), Error> {
        let io = |source: rustix::io::Errno| Error::Io { path: self.folder.clone(), source: source.into() };
        let disk = rustix::fs::statvfs(&self.folder).map_err(io)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        match free < self.keep_free {
            true => Err(Error::Full { folder: self.folder.clone(), free, keep: self.keep_free }),
            false => Ok(()),
        }
    }
}

impl Database {
    fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(DATABASE);
        if folder.join(RUNNING).exists() && path.exists() {
            // The database was not closed. sled repairs it while opening; should that go wrong, the copy still has
            // everything.
            let copy = folder.join("before-recovery");
            copy_folder(&path, &copy).map_err(|source| Error::Io { path: copy, source })?;
        }
        let config = sled::Config::new().path(&path).flush_every_ms(None).cache_capacity(CACHE_BYTES);
        let sled = config.open().map_err(|source| Error::Database { path: path.clone(), source })?;
        let log_path = path.join("db");
        let log = File::open(&log_path).map_err(|source| Error::Io { path: log_path, source })?;
        Ok(Self { sled, log })
    }

    fn flush(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join(DATABASE);
        self.sled.flush().map_err(|source| Error::Database { path: path.clone(), source })?;
        self.log.sync_all().map_err(|source| Error::Io { path: path.join("db"), source })
    }

    fn apply(&self, folder: &Path, batch: sled::Batch) -> Result<(), Error> {
        let applied = self.sled.apply_batch(batch);
        applied.map_err(|source| Error::Database { path: folder.join(DATABASE), source })?;
        self.flush(folder)
    }
}

/// Refuses a folder that holds what no coordinator put there.
fn refuse_foreign(folder: &Path) -> Result<(), Error> {
    let io = |source| Error::Io { path: folder.into(), source };
    let ours = [IDENTITY, RUNNING, DATABASE, "before-recovery"];
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let name = entry.map_err(io)?.file_name().to_string_lossy().into_owned();
        let temporary = name.ends_with(".new");
        let is_ours = ours.iter().chain(&BESIDE).any(|ours| *ours == name);
        if !is_ours && !temporary && !folder.join(IDENTITY).exists() {
            return Err(Error::NotState { folder: folder.into(), found: name });
        }
    }
    Ok(())
}

/// Reads the identity of the state, or gives it one. An identity beside an empty database tells of a lost one: sled
/// opens as empty when its snapshot is gone.
fn identity(folder: &Path, database_is_empty: bool) -> Result<String, Error> {
    let path = folder.join(IDENTITY);
    let io = |source| Error::Io { path: path.clone(), source };
    if path.exists() {
        if database_is_empty {
            return Err(Error::Lost(folder.into()));
        }
        let mut text = String::new();
        File::open(&path).map_err(io)?.take(64).read_to_string(&mut text).map_err(io)?;
        return Ok(text.trim().into());
    }
    let mut seed = blake3::Hasher::new();
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    seed.update(&time.as_nanos().to_le_bytes());
    seed.update(&std::process::id().to_le_bytes());
    let identity = seed.finalize().to_hex()[..8].to_owned();
    Ok(identity)
}

pub(super) fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    let partial = to.with_extension("new");
    if partial.exists() {
        std::fs::remove_dir_all(&partial)?;
    }
    copy_below(from, &partial)?;
    if to.exists() {
        std::fs::remove_dir_all(to)?;
    }
    std::fs::rename(&partial, to)
}

fn copy_below(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_below(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

pub(super) fn key(write: &Write) -> String {
    match write {
        Write::Meta(_) => "meta".into(),
        Write::Job(job) => format!("job/{}", job.job_id),
        Write::Task(task) => format!("task/{}", task.task_id),
        Write::Worker(worker) => format!("worker/{}", worker.worker_id),
        Write::ForgetWorker(id) => format!("worker/{id}"),
        Write::Node(node) => format!("node/{}", node.node),
        Write::ForgetNode(name) => format!("node/{name}"),
        Write::Request(request) => format!("request/{}", request.request_id),
        Write::Event(event) => format!("event/{:05}", event.sequence % KEPT),
        Write::ForgetRequest(id) => format!("request/{id}"),
        Write::Invitation(invitation) => format!("invitation/{}", invitation.id),
        Write::ForgetInvitation(id) => format!("invitation/{id}"),
        Write::Identity(identity) => format!("identity/{}", identity.identity),
        Write::ForgetIdentity(id) => format!("identity/{id}"),
    }
}

pub(super) fn value(write: &Write) -> Option<Vec<u8>> {
    let mut bytes = vec![VERSION];
    match write {
        Write::Meta(record) => bytes.extend(record.encode_to_vec()),
        Write::Job(record) => bytes.extend(record.encode_to_vec()),
        Write::Task(record) => bytes.extend(record.encode_to_vec()),
        Write::Worker(record) => bytes.extend(record.encode_to_vec()),
        Write::Node(record) => bytes.extend(record.encode_to_vec()),
        Write::Request(record) => bytes.extend(record.encode_to_vec()),
        Write::Event(record) => bytes.extend(record.encode_to_vec()),
        Write::Invitation(record) => bytes.extend(record.encode_to_vec()),
        Write::Identity(record) => bytes.extend(record.encode_to_vec()),
        Write::ForgetWorker(_) | Write::ForgetNode(_) | Write::ForgetRequest(_) => return None,
        Write::ForgetInvitation(_) | Write::ForgetIdentity(_) => return None,
    }
    Some(bytes)
}

pub(super) fn decode<T: Message + Default>(key: &str, value: &[u8]) -> Result<T, Error> {
    let (version, bytes) = value.split_first().unwrap_or((&0, &[]));
    if !(OLDEST..=VERSION).contains(version) {
        return Err(Error::Version { found: *version, by: String::new() });
    }
    T::decode(bytes).map_err(|source| Error::Record { key: key.into(), source })
}

/// An entry of the database as what it takes to write it; `None` for one of an unknown table.
fn record(entry: sled::Result<(sled::IVec, sled::IVec)>, path: &Path) -> Result<Option<Write>, Error> {
    let (key, value) = entry.map_err(|source| Error::Database { path: path.into(), source })?;
    let entry = Entry { key: String::from_utf8_lossy(&key).into_owned(), value: Some(value.to_vec()) };
    let record = entry.write()?;
    if record.is_none() {
        tracing::warn!(key = entry.key, "a record of an unknown table is left alone");
    }
    Ok(record)
}

impl Store for LocalStore {
    fn each(&mut self, take: &mut dyn FnMut(Write)) -> Result<(), Error> {
        let path = self.folder.join(DATABASE);
        let sled = self.database()?.sled.clone();
        // Reading and decoding takes about as long as what is done with it.
        std::thread::scope(|scope| {
            let (sender, read) = mpsc::sync_channel::<Result<Vec<Write>, Error>>(READ_AHEAD);
            scope.spawn(move || {
                // In the order of their keys: jobs, then tasks.
                let mut entries = sled.iter().peekable();
                while entries.peek().is_some() {
                    let piece = entries.by_ref().take(PIECE).filter_map(|entry| record(entry, &path).transpose());
                    // Who reads stops at the first error.
                    if sender.send(piece.collect()).is_err() {
                        return;
                    }
                }
            });
            for piece in read {
                piece?.into_iter().for_each(&mut *take);
            }
            Ok(())
        })
    }

    fn probe(&mut self) -> Result<(), Error> {
        self.check_room()?;
        let path = self.folder.join("probe.new");
        let written = write_durably(&path, &[0; PROBE_BYTES]).and_then(|()| std::fs::remove_file(&path));
        written.map_err(|source| Error::Io { path, source })
    }

    fn apply(&mut self, writes: &[Write]) -> Result<(), Error> {
        let mut batch = sled::Batch::default();
        for write in writes {
            let key = key(write);
            match value(write) {
                Some(value) if value.len() > MAX_VALUE => return Err(Error::TooLarge { key, size: value.len() }),
                Some(value) => batch.insert(key.as_bytes(), value),
                None => batch.remove(key.as_bytes()),
            }
        }
        self.check_room()?;
        if !self.is_noted {
            // Before there is a record that an earlier release must not take for one of its own.
            format::note(&self.folder)?;
            self.is_noted = true;
        }
        let folder = self.folder.clone();
        if let Err(error) = self.database()?.apply(&folder, batch) {
            self.database = None;
            return Err(error);
        }
        // The first record makes the database more than empty; from here on an empty one was lost.
        let identity = self.folder.join(IDENTITY);
        if !identity.exists() {
            write_durably(&identity, self.identity.as_bytes())
                .map_err(|source| Error::Io { path: identity, source })?;
        }
        self.journal.record(writes);
        Ok(())
    }
}

/// Opens again what this process had open: sled's threads let go of its file a moment after the last handle went.
#[cfg(test)]
pub(crate) fn until_open<T>(mut open: impl FnMut() -> Result<T, Error>) -> T {
    let began = std::time::Instant::now();
    loop {
        match open() {
            Err(Error::Database { source: sled::Error::Io(_), .. }) if began.elapsed().as_secs() < 10 => {
                std::thread::yield_now();
            }
            opened => return opened.expect("opens again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use deltaconv_proto::v1;

    use super::*;

    fn task(id: &str, attempts: u32) -> Write {
        Write::Task(Box::new(v1::TaskRecord { task_id: id.into(), attempts, ..v1::TaskRecord::default() }))
    }

    fn reopen(folder: &Path) -> LocalStore {
        reopen_keeping(folder, 0)
    }

    fn reopen_keeping(folder: &Path, keep_free: u64) -> LocalStore {
        until_open(|| LocalStore::open(folder, keep_free))
    }

    #[test]
    fn what_is_applied_is_there_after_a_crash() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut store = LocalStore::open(folder.path(), 0).expect("opens");
        let identity = store.identity().to_owned();
        store.apply(&[task("a/1", 1), task("a/2", 1)]).expect("applied");
        store.apply(&[task("a/1", 2)]).expect("applied");
        drop(store);
        assert!(folder.path().join("RUNNING").exists(), "dropping without close is a crash");

        let mut store = reopen(folder.path());
        assert_eq!(store.identity(), identity);
        let attempts: Vec<u32> = store.load().expect("loads").tasks.iter().map(|t| t.attempts).collect();
        assert_eq!(attempts, [2, 1]);
        assert!(folder.path().join("before-recovery/db").exists(), "a copy was made before the recovery");
        store.close().expect("closes");
        assert!(!folder.path().join("RUNNING").exists());
    }

    #[test]
    fn a_disk_is_not_filled_up_and_what_is_stored_can_be_read_meanwhile() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut store = LocalStore::open(folder.path(), 0).expect("opens");
        store.apply(&[task("a/1", 1)]).expect("applied");
        store.close().expect("closes");

        let mut store = reopen_keeping(folder.path(), u64::MAX);
        assert!(matches!(store.apply(&[task("a/1", 2)]), Err(Error::Full { .. })));
        assert!(matches!(store.probe(), Err(Error::Full { .. })));
        assert_eq!(store.load().expect("loads").tasks[0].attempts, 1);
        store.close().expect("closes");
    }

    #[test]
    fn a_database_that_failed_is_opened_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut store = LocalStore::open(folder.path(), 0).expect("opens");
        store.apply(&[task("a/1", 1)]).expect("applied");
        // As after an error: sled itself takes nothing more then.
        store.database = None;
        let tasks = until_open(|| store.load()).tasks;
        assert_eq!(tasks.len(), 1);
        store.apply(&[task("a/2", 1)]).expect("applied");
        assert_eq!(store.load().expect("loads").tasks.len(), 2);
    }

    #[test]
    fn a_second_owner_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let _first = LocalStore::open(folder.path(), 0).expect("opens");
        assert!(matches!(LocalStore::open(folder.path(), 0), Err(Error::InUse(_))));
    }

    #[test]
    fn a_lost_database_is_not_taken_for_a_new_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut store = LocalStore::open(folder.path(), 0).expect("opens");
        store.apply(&[task("a/1", 1)]).expect("applied");
        store.close().expect("closes");
        std::fs::remove_dir_all(folder.path().join(DATABASE)).expect("removed");
        assert!(matches!(LocalStore::open(folder.path(), 0), Err(Error::Lost(_))));
    }

    #[test]
    fn a_folder_with_something_else_in_it_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("thesis.tex"), "x").expect("written");
        assert!(matches!(LocalStore::open(folder.path(), 0), Err(Error::NotState { .. })));
    }

    #[test]
    fn records_of_formats_that_are_not_known_are_refused() {
        for version in [OLDEST - 1, VERSION + 1] {
            assert!(matches!(decode::<v1::TaskRecord>("task/a", &[version, 0]), Err(Error::Version { .. })));
        }
        assert!(decode::<v1::TaskRecord>("task/a", &[OLDEST]).is_ok());
        assert!(matches!(decode::<v1::TaskRecord>("task/a", &[VERSION, 0xff]), Err(Error::Record { .. })));
    }
}
