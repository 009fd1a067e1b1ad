//! The state of a backup.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use deltaconv_proto::objects::{Objects, PART};

use super::folder::Building;
use super::{Error, Options, Restored};
use crate::archive;
use crate::backup::{self, Description, File, Unusable};
use crate::store::Store;

/// What the backup has that `url` names, or the newest that lies there and is whole, in a folder that is not the state's yet.
pub(super) async fn newest(options: &Options, url: &str, restored: &mut Restored) -> Result<Building, Error> {
    let mut found = backup::find(url).await?;
    while let Some(objects) = found.pop() {
        match taken(options, &objects, restored).await {
            Ok(building) => return Ok(building),
            Err(error) if error.is_of_broken_backup() && !found.is_empty() => {
                restored.remarks.push(format!("{error}; the one before is taken"));
            }
            Err(error) => return Err(error),
        }
    }
    Err(Error::NoBackup { url: url.to_owned() })
}

async fn taken(options: &Options, objects: &Objects, restored: &mut Restored) -> Result<Building, Error> {
    let unusable = |unusable| match unusable {
        Unusable::Later(reason) => Error::LaterBackup { url: objects.url().to_owned(), reason },
        Unusable::Broken(reason) => Error::Backup { url: objects.url().to_owned(), reason },
        Unusable::Objects(error) => error.into(),
    };
    let Description { unix_ms, files, left_out, .. } = Description::read(objects).await.map_err(unusable)?;
    let mut building = Building::new(&options.state)?;
    let store = building.store();
    archive::read(objects, backup::RECORDS, |writes| store.apply(&writes)).await?;
    for file in &files {
        if !backup::is_name(&file.name) {
            return Err(unusable(Unusable::Broken(format!("it has a file of the name {:?}", file.name))));
        }
        let path = building.file(&file.name)?;
        fetch(objects, file, &path).await?;
    }
    restored.backup = objects.url().to_owned();
    restored.snapshot_unix_ms = unix_ms;
    restored.files = files.into_iter().map(|file| file.name).collect();
    if !left_out.is_empty() {
        restored.remarks.push(format!(
            "the backup was made without {}: put them beside the state, or new ones are made",
            left_out.join(", ")
        ));
    }
    Ok(building)
}

/// Writes a file of the backup, for its owner alone to read.
async fn fetch(objects: &Objects, file: &File, path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    let broken = |what: &str| Error::Backup { url: objects.url().to_owned(), reason: format!("{} {what}", file.name) };
    let key = backup::key(&file.name);
    if objects.size(&key).await? != file.size {
        return Err(broken("has another size than it had"));
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut to = options.open(path).map_err(failed)?;
    let (mut hasher, mut at) = (blake3::Hasher::new(), 0);
    while at < file.size {
        let end = file.size.min(at + PART as u64);
        let bytes = objects.get_range(&key, at, end).await?;
        hasher.update(&bytes);
        to.write_all(&bytes).map_err(failed)?;
        at = end;
    }
    to.sync_all().map_err(failed)?;
    match hasher.finalize().to_hex().as_str() == file.digest {
        true => Ok(()),
        false => Err(broken("was altered")),
    }
}
