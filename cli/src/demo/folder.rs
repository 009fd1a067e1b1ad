//! The demo's folder: whose it is, who uses it, and where things lie in it.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use deltaconv_proto::v1;
use serde::{Deserialize, Serialize};

use super::outcome::Outcome;
use crate::error::Error;
use crate::location;

/// The demo's own notes; their being there marks the folder as a demo's.
const NOTES: &str = ".demo";

/// What a demo remembers from run to run.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    spec: v1::JobSpec,
    /// Set once the demo is finished.
    outcome: Option<Outcome>,
}

const RECORD_VERSION: u32 = 1;

/// A folder that this process alone uses for a demo.
pub(super) struct Folder {
    root: PathBuf,
    record: Option<Record>,
    /// Held as long as this lives; the kernel gives it back even if the process is killed.
    _lock: File,
}

impl Folder {
    /// Takes the folder, making it if it isn't there. Refuses one that holds something else or is in use, and leaves
    /// that untouched.
    pub(super) fn open(root: &Path) -> Result<Self, Error> {
        fs::create_dir_all(root).map_err(Error::file("create", root))?;
        let notes = root.join(NOTES);
        if !notes.is_dir() {
            refuse_what_is_there(root)?;
            fs::create_dir(&notes).or_else(unless_there).map_err(Error::file("create", &notes))?;
        }
        let lock = lock(&notes.join("lock"), root)?;
        let record = read_record(&notes.join("demo.json"))?;
        Ok(Self { root: root.into(), record, _lock: lock })
    }

    /// Where something lies.
    pub(super) fn path(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }

    /// The folder's URL.
    pub(super) fn url(&self, below: &str) -> Result<String, Error> {
        location::folder_url(&self.root.join(below))
    }

    /// Where the coordinator says its address.
    pub(super) fn address_file(&self) -> PathBuf {
        self.root.join(NOTES).join("address")
    }

    /// Where a process writes its log.
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.root.join("logs").join(format!("{name}.log"))
    }

    /// Binds the folder to `spec`, or checks that this is the one it is bound to. Answers with the outcome of a
    /// demo that is finished.
    pub(super) fn bind(&mut self, spec: &v1::JobSpec) -> Result<Option<Outcome>, Error> {
        let Some(record) = &self.record else {
            self.save(Record { version: RECORD_VERSION, spec: spec.clone(), outcome: None })?;
            return Ok(None);
        };
        if let Some((held, asked)) = difference(&record.spec, spec) {
            return Err(Error::OtherDemo { folder: self.root.clone(), held, asked });
        }
        let outcome = record.outcome.clone();
        if outcome.is_some() {
            self.expect_output()?;
        }
        Ok(outcome)
    }

    /// Remembers how the demo ended.
    pub(super) fn finish(&mut self, outcome: &Outcome) -> Result<(), Error> {
        let Some(record) = self.record.take() else { return Ok(()) };
        self.save(Record { outcome: Some(outcome.clone()), ..record })
    }

    fn save(&mut self, record: Record) -> Result<(), Error> {
        let path = self.root.join(NOTES).join("demo.json");
        let part = path.with_extension("json.part");
        let text = serde_json::to_vec_pretty(&record).map_err(std::io::Error::from);
        let written = text.and_then(|text| fs::write(&part, text)).and_then(|()| fs::rename(&part, &path));
        written.map_err(Error::file("write", &path))?;
        self.record = Some(record);
        Ok(())
    }

    fn expect_output(&self) -> Result<(), Error> {
        for below in ["output/deltaconv.json", "output/blocks.safetensors", "report/report.json"] {
            let path = self.path(below);
            if !path.exists() {
                return Err(Error::OutcomeGone { path, folder: self.root.clone() });
            }
        }
        Ok(())
    }

    /// Removes what only the conversion needed, and answers with the bytes that this set free.
    pub(super) fn reclaim(&self) -> Result<u64, Error> {
        let mut folders = vec![self.path("checkpoints")];
        if let Ok(rounds) = fs::read_dir(self.path("rounds")) {
            folders.extend(rounds.flatten().map(|round| round.path().join("activations")));
        }
        let mut freed = 0;
        for folder in folders.iter().filter(|folder| folder.exists()) {
            freed += size(folder).map_err(Error::file("read", folder))?;
            fs::remove_dir_all(folder).map_err(Error::file("remove", folder))?;
        }
        Ok(freed)
    }
}

fn refuse_what_is_there(root: &Path) -> Result<(), Error> {
    let mut entries = fs::read_dir(root).map_err(Error::file("read", root))?;
    match entries.next() {
        None => Ok(()),
        Some(entry) => {
            let found = entry.map_err(Error::file("read", root))?.file_name().to_string_lossy().into_owned();
            Err(Error::NotADemo { folder: root.into(), found })
        }
    }
}

fn unless_there(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}

fn lock(path: &Path, root: &Path) -> Result<File, Error> {
    let file = File::create(path).map_err(Error::file("create", path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::DemoRunning { folder: root.into() }),
        Err(TryLockError::Error(source)) => Err(Error::File { action: "lock", path: path.into(), source }),
    }
}

fn read_record(path: &Path) -> Result<Option<Record>, Error> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::File { action: "read", path: path.into(), source }),
    };
    let record = serde_json::from_slice(&text).map_err(std::io::Error::from).map_err(Error::file("read", path))?;
    Ok(Some(record))
}

/// What differs first between two demos, as held and as asked for.
fn difference(held: &v1::JobSpec, asked: &v1::JobSpec) -> Option<(String, String)> {
    if held == asked {
        return None;
    }
    let seed = |spec: &v1::JobSpec| spec.data.as_ref().map_or(0, |data| data.seed);
    let pairs = [
        (format!("seed {}", seed(held)), format!("seed {}", seed(asked))),
        (format!("the output {}", held.output_url), format!("the output {}", asked.output_url)),
    ];
    let other =
        || ("other settings of samples, steps or evaluation".into(), "those of this version and command".into());
    Some(pairs.into_iter().find(|(held, asked)| held != asked).unwrap_or_else(other))
}

fn size(folder: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        bytes += if kind.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_something_else_stays_untouched() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("thesis.txt"), "years of work").expect("written");
        let error = Folder::open(folder.path()).err().expect("refused").to_string();
        assert!(error.contains("thesis.txt"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 1);
    }

    #[test]
    fn one_demo_at_a_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let held = Folder::open(folder.path()).expect("taken");
        assert!(matches!(Folder::open(folder.path()), Err(Error::DemoRunning { .. })));
        drop(held);
        Folder::open(folder.path()).expect("taken again");
    }

    #[test]
    fn other_settings_are_refused_and_the_same_go_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let spec =
            |seed| v1::JobSpec { data: Some(v1::Data { seed, ..v1::Data::default() }), ..v1::JobSpec::default() };
        Folder::open(folder.path()).and_then(|mut folder| folder.bind(&spec(0))).expect("bound");
        let mut again = Folder::open(folder.path()).expect("taken");
        assert!(again.bind(&spec(0)).expect("the same").is_none());
        let error = again.bind(&spec(3)).expect_err("refused").to_string();
        assert!(error.contains("seed 0") && error.contains("seed 3"), "{error}");
    }
}
