//! A backup on its way.

use std::path::{Path, PathBuf};

use deltaconv_proto::objects::{Objects, Outgoing, PART};
use deltaconv_proto::v1;
use tokio::io::AsyncReadExt;
use url::Url;

use super::files::{is_secret, key, list};
use super::{DESCRIPTION, Description, Error, File, Name, RECORDS};

/// Bytes of a file that are read at a time.
const AT_ONCE: usize = 1 << 20;
/// For parts on their way.
const MEMORY: usize = 2 * PART;

/// A backup that has its files, and has no records and no description yet.
pub(super) struct Place {
    name: Name,
    objects: Objects,
    /// Where it lies, if that is a folder of this machine.
    folder: Option<PathBuf>,
    files: Vec<File>,
    left_out: Vec<String>,
}

impl Place {
    /// Begins one in the folder `to`, with what lies in the folder `state` of the state of this identity.
    ///
    /// A folder is made so that its owner alone can look in, and has everything. Who else reads a bucket is not known here, so
    /// that it gets secrets only `with_secrets`.
    pub(super) async fn begin(to: &str, identity: &str, state: &Path, with_secrets: bool) -> Result<Self, Error> {
        Self::beside(&Objects::open(to)?, identity, state, with_secrets).await
    }

    /// The same, beside others that lie there.
    pub(super) async fn beside(
        beside: &Objects,
        identity: &str,
        state: &Path,
        with_secrets: bool,
    ) -> Result<Self, Error> {
        let name = Name::next(beside, identity).await?;
        let objects = beside.below(&name.text())?;
        let folder = folder_of(&objects);
        if let Some(folder) = &folder {
            make_private(folder).map_err(|source| Error::Io { path: folder.clone(), source })?;
        }
        let takes_secrets = with_secrets || folder.is_some();
        let (mut files, mut left_out) = (Vec::new(), Vec::new());
        for (name, path) in list(state)? {
            match takes_secrets || !is_secret(&name) {
                true => files.push(copied(&objects, name, &path).await?),
                false => left_out.push(name),
            }
        }
        Ok(Self { name, objects, folder, files, left_out })
    }

    /// Where its records go.
    pub(super) fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Makes it a backup, of so many records in so many bytes.
    pub(super) async fn finish(self, records: u64, bytes: u64) -> Result<v1::BackupResponse, Error> {
        let Self { name: Name { unix_ms, identity }, objects, folder, files, left_out } = self;
        let names: Vec<String> = files.iter().map(|file| file.name.clone()).collect();
        let size: u64 = files.iter().map(|file| file.size).sum();
        let description = Description::new(unix_ms, identity, records, files, left_out.clone());
        let json = serde_json::to_vec_pretty(&description);
        let json = json.map_err(|error| Error::Io { path: DESCRIPTION.into(), source: error.into() })?;
        let size = size + bytes + json.len() as u64;
        objects.put(DESCRIPTION, json).await?;
        if let Some(folder) = folder {
            let keys = names.iter().map(|name| key(name)).chain([RECORDS.to_owned(), DESCRIPTION.to_owned()]);
            for path in keys.map(|key| folder.join(key)) {
                let made = restrict(&path, 0o600);
                made.map_err(|source| Error::Io { path, source })?;
            }
        }
        let url = objects.url().to_owned();
        tracing::info!(url, records, bytes = size, files = names.len(), "backup written");
        Ok(v1::BackupResponse { url, unix_ms, records, bytes: size, files: names, left_out })
    }
}

/// The folder of this machine that these objects lie in.
fn folder_of(objects: &Objects) -> Option<PathBuf> {
    let url = Url::parse(objects.url()).ok().filter(|url| url.scheme() == "file")?;
    url.to_file_path().ok()
}

/// Makes a folder into which its owner alone can look.
fn make_private(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    restrict(folder, 0o700)
}

#[cfg(unix)]
fn restrict(path: &Path, mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
fn restrict(_: &Path, _: u32) -> std::io::Result<()> {
    Ok(())
}

/// Copies a file, as long as it is now: others may be writing on.
async fn copied(objects: &Objects, name: String, path: &Path) -> Result<File, Error> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let length = file.metadata().await.map_err(failed)?.len();
    let mut file = file.take(length);
    let mut upload = objects.upload(&key(&name), &Outgoing::new(MEMORY))?;
    let mut bytes = vec![0; AT_ONCE.min(length as usize)];
    loop {
        match file.read(&mut bytes).await.map_err(failed)? {
            0 => break,
            read => upload.write(&bytes[..read]).await?,
        }
    }
    let object = upload.finish().await?;
    Ok(File { name, size: object.size, digest: object.digest })
}
