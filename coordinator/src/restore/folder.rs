//! The state folder: that it has no state yet, and how it gets one, whole or not at all.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::Error;
use crate::store::{self, LocalStore};

/// What may lie in the folder: a coordinator may have been given a token to use.
const BESIDE: [&str; 3] = ["LOCK", "worker.token", "address"];

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
        if !BESIDE.contains(&found.as_str()) && !found.ends_with(".new") {
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
}

impl Building {
    /// An empty one.
    pub(super) fn new(state: &Path) -> Result<Self, Error> {
        // sled lets go of a folder a moment after it was closed, so that each has another.
        let folder = (0..).map(|number| state.join(format!("restored-{number}.new"))).find(|folder| !folder.exists());
        let folder = folder.unwrap_or_else(|| state.join("restored.new"));
        let store = LocalStore::open(&folder, 0)?;
        Ok(Self { state: state.to_owned(), folder, store })
    }

    pub(super) fn store(&mut self) -> &mut LocalStore {
        &mut self.store
    }

    /// Puts it in its place.
    pub(super) fn finish(self) -> Result<(), Error> {
        let Self { state, folder, store } = self;
        store.close()?;
        let moved = |name: &str| {
            let to = state.join(name);
            fs::rename(folder.join(name), &to).map_err(failed(&to))
        };
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
        Ok(())
    }
}
