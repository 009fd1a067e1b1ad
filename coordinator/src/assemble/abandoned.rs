//! What a killed process leaves of an upload to a folder: a local store writes `name` to `name#1`, `name#2`, … and renames
//! it at the end. Other stores keep parts of uploads out of sight, and drop them by a rule of the bucket's.

use std::io;
use std::path::{Path, PathBuf};

use deltaconv_proto::objects::Objects;
use url::Url;

/// Removes what earlier, killed uploads of `key` left. Only for keys that nobody else is writing now. A failure costs space
/// and nothing else, so it is only logged.
pub(super) async fn remove(objects: &Objects, key: &str) {
    let Some(folder) = folder(objects) else { return };
    let path = folder.join(key);
    match remove_beside(&path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "what a former upload left can't be removed");
        }
        _ => {}
    }
}

async fn remove_beside(path: &Path) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(());
    };
    let mut entries = tokio::fs::read_dir(folder).await?;
    while let Some(entry) = entries.next_entry().await? {
        if entry.file_name().to_str().and_then(destination) == Some(name) {
            tokio::fs::remove_file(entry.path()).await?;
        }
    }
    Ok(())
}

/// Where these objects lie on this machine, if they do.
pub(crate) fn folder(objects: &Objects) -> Option<PathBuf> {
    Url::parse(objects.url()).ok().filter(|url| url.scheme() == "file")?.to_file_path().ok()
}

/// What an upload to the file of this name would have become; `None` for files that aren't an upload's.
pub(crate) fn destination(name: &str) -> Option<&str> {
    let (destination, number) = name.rsplit_once('#')?;
    let is_upload = !destination.is_empty() && !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
    is_upload.then_some(destination)
}
