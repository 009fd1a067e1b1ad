//! What lies beside the database in a state's folder.

use std::path::{Path, PathBuf};

use super::Error;
use crate::store;

/// What is never backed up: the database is, as records; the rest belongs to a process, or to this folder alone.
const OWN: [&str; 7] =
    [store::DATABASE, store::IDENTITY, store::LOCK, store::RUNNING, store::format::FILE, "before-recovery", "address"];
/// What anybody may see who sees the records. Whatever else lies there is taken for a secret.
const NO_SECRETS: [&str; 2] = ["webhook.sequence", "workers-authority.pem"];
/// How names begin that are no secrets, either.
const NO_SECRET: &str = "audit";
/// Names are no longer.
const LONGEST: usize = 128;

/// Where a backup has the file.
pub(crate) fn key(name: &str) -> String {
    format!("files/{name}")
}

/// Whether a file of this name is a part of backups: it can't be one that leads elsewhere.
pub(crate) fn is_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let is_text = !name.is_empty() && name.len() <= LONGEST && name.chars().all(is_plain) && !name.starts_with('.');
    is_text && !name.ends_with(".new") && !OWN.contains(&name)
}

pub(super) fn is_secret(name: &str) -> bool {
    !NO_SECRETS.contains(&name) && !name.starts_with(NO_SECRET)
}

/// The files of a state's folder that are a part of its backups, by name.
pub(super) fn list(state: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let failed = |source| Error::Io { path: state.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(state).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Through links: a token may lie elsewhere.
        if is_name(&name) && std::fs::metadata(entry.path()).is_ok_and(|found| found.is_file()) {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_and_are_none_of_the_states_own() {
        for name in ["worker.token", "webhook.sequence", "workers-authority.key", "audit.log", "a"] {
            assert!(is_name(name), "{name}");
        }
        let long = "a".repeat(200);
        for name in ["", ".", "..", ".bashrc", "../x", "a/b", "a\\b", "sled", "IDENTITY", "LOCK", "x.new", "ä", &long]
        {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn what_is_not_known_is_a_secret() {
        for secret in ["worker.token", "workers-authority.key", "operator.pem", "notes"] {
            assert!(is_secret(secret), "{secret}");
        }
        assert!(!is_secret("webhook.sequence") && !is_secret("audit.log") && !is_secret("workers-authority.pem"));
    }
}
