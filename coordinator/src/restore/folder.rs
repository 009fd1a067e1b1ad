//! The state folder: that it has no state yet, and how it gets one, whole or not at all.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::Error;
use crate::store::{self, LocalStore};

/// Within the folder of a state that is being made: what shall lie beside it.
const FILES: &str = "files";

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, source }
}

/// Refuses a folder with a state in it, or with what is none of ours.
pub(super) fn refuse_state(folder: &Path) -> Result<(), Error> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed(folder))?,
    };
    for entry in entries {
        let found = entry.map_err(failed(folder))?.file_name().to_string_lossy().into_owned();
        // A coordinator may have been given a token to use.
        if !store::BESIDE.contains(&found.as_str()) && !found.ends_with(".new") {
            return Err(Error::State { folder: folder.to_owned(), found });
        }
    }
    Ok(())
}

/// A state that is not in its place yet.
pub(super) struct Building {
    state: PathBuf,
    folder: PathBuf,
    store: LocalStore,
    /// By name.
    files: Vec<String>,
}

impl Building {
    /// An empty one.
    pub(super) fn new(state: &Path) -> Result<Self, Error> {
        // sled lets go of a folder a moment after it was closed, so that each has another.
        let folder = (0..).map(|number| state.join(format!("restored-{number}.new"))).find(|folder| !folder.exists());
        let folder = folder.unwrap_or_else(|| state.join("restored.new"));
        let store = LocalStore::open(&folder, 0)?;
        Ok(Self { state: state.to_owned(), folder, store, files: Vec::new() })
    }

    pub(super) fn store(&mut self) -> &mut LocalStore {
        &mut self.store
    }

    /// Where a file is to be written that shall lie beside the state.
    pub(super) fn file(&mut self, name: &str) -> Result<PathBuf, Error> {
        let files = self.folder.join(FILES);
        fs::create_dir_all(&files).map_err(failed(&files))?;
        self.files.push(name.to_owned());
        Ok(files.join(name))
    }

    /// Puts it in its place, and says which files are not taken since others of their names are there.
    pub(super) fn finish(self) -> Result<Vec<String>, Error> {
        let Self { state, folder, store, files } = self;
        store.close()?;
        let (there, missing): (Vec<String>, Vec<String>) =
            files.into_iter().partition(|name| state.join(name).exists());
        for name in missing {
            let to = state.join(&name);
            fs::rename(folder.join(FILES).join(&name), &to).map_err(failed(&to))?;
        }
        let moved = |name: &str| {
            let to = state.join(name);
            fs::rename(folder.join(name), &to).map_err(failed(&to))
        };
        moved(store::format::FILE)?;
        // Without its identity the database is taken for whole; the other way round it would be taken for lost.
        moved(store::DATABASE)?;
        moved(store::IDENTITY)?;
        File::open(&state).and_then(|folder| folder.sync_all()).map_err(failed(&state))?;
        for entry in fs::read_dir(&state).map_err(failed(&state))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("restored-") {
                // It costs space and nothing else.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(there)
    }
}
