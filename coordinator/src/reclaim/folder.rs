//! What stores in folders leave behind that others don't: files of interrupted uploads, and empty folders.

use std::io;
use std::path::{Path, PathBuf};

use deltaconv_proto::keys;
use deltaconv_proto::objects::OpenUpload;

use crate::assemble::abandoned;

/// Folders that attempts write to.
const OF_ATTEMPTS: [&str; 5] = ["rounds", "checkpoints", keys::FINETUNE, "evaluate", keys::LOGS];

/// What an upload that ended before it was whole has left.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Interrupted {
    /// What it would have become.
    pub(super) key: String,
    /// Bytes; 0 where the store doesn't say.
    pub(super) size: u64,
    pub(super) left: Left,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// A file that was not renamed.
    File(PathBuf),
    /// Parts that a bucket keeps.
    Parts(OpenUpload),
}

impl From<OpenUpload> for Interrupted {
    fn from(upload: OpenUpload) -> Self {
        Self { key: upload.key.clone(), size: 0, left: Left::Parts(upload) }
    }
}

/// The files of uploads below `root`, of those too that are still going on. Folders that can't be read are passed over: what
/// lies in them costs space and nothing else.
pub(super) async fn interrupted(root: PathBuf) -> Vec<Interrupted> {
    let walk = move || {
        let mut found = Vec::new();
        if let Err(error) = collect(&root, "", &mut found) {
            tracing::warn!(path = %root.display(), %error, "interrupted uploads can't be looked for");
        }
        found
    };
    tokio::task::spawn_blocking(walk).await.unwrap_or_default()
}

/// `prefix`: of the keys in `folder`, empty or with a closing slash.
fn collect(folder: &Path, prefix: &str, found: &mut Vec<Interrupted>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        // No key of ours is anything but ASCII.
        let Some(name) = name.to_str() else { continue };
        // Of a link this is the link's own type, so that nothing is followed out of the folder.
        let kind = entry.file_type()?;
        if kind.is_dir() {
            match collect(&entry.path(), &format!("{prefix}{name}/"), found) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %entry.path().display(), %error, "interrupted uploads can't be looked for");
                }
                _ => {}
            }
        } else if kind.is_file()
            && let Some(destination) = abandoned::destination(name)
        {
            // One that was just renamed is gone.
            let Ok(metadata) = entry.metadata() else { continue };
            let (key, size) = (format!("{prefix}{destination}"), metadata.len());
            found.push(Interrupted { key, size, left: Left::File(entry.path()) });
        }
    }
    Ok(())
}

/// Removes what is empty of the folders below `root` that attempts write to. Whoever writes there makes them again.
pub(super) async fn remove_empty(root: PathBuf) {
    let walk = move || OF_ATTEMPTS.iter().for_each(|name| remove_if_empty(&root.join(name)));
    // It only fails when the process ends.
    let _ = tokio::task::spawn_blocking(walk).await;
}

fn remove_if_empty(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.for_each(|entry| remove_if_empty(&entry.path()));
    // Refused by the system unless it is empty.
    let _ = std::fs::remove_dir(folder);
}
