//! The places that jobs may name.

use std::fmt;
use std::path::{Component, PathBuf};

use object_store::path::Path;
use url::Url;

use super::{Error, parse_url};
use crate::v1::JobSpec;

/// Stores and folders in them that may be read and written: all of them, or those below some URLs.
#[derive(Clone, Debug, Default)]
pub struct Allowed(Option<Vec<Place>>);

/// A place that is allowed.
#[derive(Clone, Debug)]
enum Place {
    /// All of a scheme.
    Scheme(String),
    /// What lies at or below.
    Below(Url),
}

impl Place {
    fn new(named: &str) -> Result<Self, Error> {
        match named.strip_suffix("://") {
            // The host of a URL can't be empty with some schemes.
            Some(scheme) => Ok(Self::Scheme(parse_url(&format!("{scheme}://any"))?.scheme().to_owned())),
            None => parse_url(named).map(Self::Below),
        }
    }

    fn has(&self, url: &Url) -> bool {
        match self {
            Self::Scheme(scheme) => url.scheme() == scheme,
            Self::Below(allowed) => is_below(url, allowed),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scheme(scheme) => write!(f, "{scheme}://"),
            Self::Below(url) => f.write_str(url.as_str()),
        }
    }
}

impl Allowed {
    /// Every place.
    pub fn any() -> Self {
        Self(None)
    }

    /// What lies at or below these URLs. `s3://bucket/folder` allows `s3://bucket/folder/model`, and not `s3://bucket/folder-2`;
    /// a scheme without a host, as in `hf://`, all of its hosts; `any` every place.
    ///
    /// # Errors
    /// What is no URL of a store.
    pub fn new(urls: &[String]) -> Result<Self, Error> {
        if urls.iter().any(|url| url == "any") {
            return Ok(Self::any());
        }
        urls.iter().map(|url| Place::new(url)).collect::<Result<_, _>>().map(|places| Self(Some(places)))
    }

    /// Whether the place is allowed.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] where it isn't, and what is no URL of a store where not every place is.
    pub fn check(&self, url: &str) -> Result<(), Error> {
        let Some(allowed) = &self.0 else { return Ok(()) };
        let parsed = parse_url(url)?;
        match allowed.iter().any(|allowed| allowed.has(&parsed)) {
            true => Ok(()),
            false => {
                let allowed = allowed.iter().map(Place::to_string).collect::<Vec<_>>().join(", ");
                Err(Error::NotAllowed { url: url.into(), allowed })
            }
        }
    }

    /// Whether every place is allowed that a job names: what it reads and what it writes.
    ///
    /// # Errors
    /// As [`Self::check`], of the first that isn't.
    pub fn check_job(&self, spec: &JobSpec) -> Result<(), Error> {
        let data = spec.data.as_ref();
        let images = data.and_then(|data| data.images.as_ref()).map(|images| images.url.as_str());
        let prompts = data.and_then(|data| data.synthesis.as_ref()).map(|synthesis| synthesis.prompts_url.as_str());
        let data = data.map(|data| data.url.as_str());
        let named = [Some(spec.teacher_url.as_str()), Some(spec.output_url.as_str()), data, images, prompts];
        // What is empty or no URL is refused by what it is in the job.
        let urls = named.into_iter().flatten().filter(|url| !url.is_empty());
        urls.map(|url| self.check(url)).find(Result::is_err).unwrap_or(Ok(()))
    }
}

fn is_below(url: &Url, allowed: &Url) -> bool {
    if url.scheme() != allowed.scheme() {
        return false;
    }
    if url.scheme() == "file" {
        let (Ok(path), Ok(allowed)) = (url.to_file_path(), allowed.to_file_path()) else { return false };
        // Links lead where they lead.
        return match (resolved(path), resolved(allowed)) {
            (Some(path), Some(allowed)) => path.starts_with(allowed),
            _ => false,
        };
    }
    if (url.host_str(), url.port_or_known_default()) != (allowed.host_str(), allowed.port_or_known_default()) {
        return false;
    }
    // As the store will see them: a name that is written in other letters is the same.
    let (Ok(path), Ok(allowed)) = (Path::from_url_path(url.path()), Path::from_url_path(allowed.path())) else {
        return false;
    };
    path.prefix_matches(&allowed)
}

/// The path without links and without steps upwards, as far as it is there.
fn resolved(path: PathBuf) -> Option<PathBuf> {
    if path.components().any(|part| matches!(part, Component::ParentDir)) {
        return None;
    }
    let mut missing = Vec::new();
    let mut there = path.as_path();
    loop {
        match there.canonicalize() {
            Ok(found) => return Some(missing.iter().rev().fold(found, |path, part| path.join(part))),
            // A link that leads nowhere yet may lead anywhere later.
            Err(_) if there.is_symlink() => return None,
            Err(_) => {
                missing.push(there.file_name()?.to_owned());
                there = there.parent()?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(allowed: &[&str], url: &str) -> bool {
        let allowed: Vec<String> = allowed.iter().map(|url| (*url).to_owned()).collect();
        Allowed::new(&allowed).expect("URLs").check(url).is_ok()
    }

    #[test]
    fn what_lies_below_is_allowed_and_nothing_beside() {
        let bucket = ["s3://models/team-a"];
        for below in
            ["s3://models/team-a", "s3://models/team-a/", "s3://models/team-a/sd15/unet", "s3://models/%74eam-a/x"]
        {
            assert!(allows(&bucket, below), "{below}");
        }
        for beside in [
            "s3://models/team-ab",
            "s3://models",
            "s3://models/",
            "s3://models/team-b",
            "s3://other/team-a",
            "gs://models/team-a",
            "s3://models/team-a/../team-b",
            "s3://models/team-a/%2e%2e/team-b",
            "s3://models/team-a/..%2Fteam-b",
            "s3://models/team-a%2F..%2Fteam-b",
            "file:///models/team-a",
            "http://models/team-a",
            "no url",
        ] {
            assert!(!allows(&bucket, beside), "{beside}");
        }
        assert!(allows(&["https://models.example/a"], "https://models.example:443/a/b"));
        assert!(!allows(&["https://models.example/a"], "https://models.example:8443/a/b"));
        assert!(!allows(&["https://models.example"], "https://models.example.evil/a"));
        assert!(!allows(&["https://models.example"], "https://models.example@evil/a"));
        assert!(allows(&["hf://"], "hf://owner/name@0123") && !allows(&["hf://"], "s3://owner/name"));
        assert!(allows(&["hf://owner"], "hf://owner/name@0123") && !allows(&["hf://owner"], "hf://other/name@0123"));
        assert!(allows(&["https://"], "https://models.example/a") && !allows(&["https://"], "http://models.example/a"));
        assert!(allows(&["any"], "s3://whatever/it/is") && allows(&["s3://a", "any"], "file:///x"));
        assert!(!allows(&[], "s3://models/x"), "none is none");
    }

    #[test]
    fn links_do_not_lead_out_of_a_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        let url = |path: &std::path::Path| Url::from_file_path(path).expect("absolute").to_string();
        let (inside, outside) = (folder.path().join("inside"), folder.path().join("outside"));
        std::fs::create_dir_all(inside.join("job")).expect("made");
        std::fs::create_dir(&outside).expect("made");
        std::os::unix::fs::symlink(&outside, inside.join("out")).expect("linked");
        std::os::unix::fs::symlink(folder.path().join("later"), inside.join("nowhere")).expect("linked");
        std::os::unix::fs::symlink(&inside, folder.path().join("in")).expect("linked");
        let allowed = [url(&inside)];
        let allows = |path: &std::path::Path| allows(&[allowed[0].as_str()], &url(path));
        for below in ["", "job", "job/later/new", "new"] {
            assert!(allows(&inside.join(below)), "{below}");
        }
        assert!(allows(&folder.path().join("in/job")));
        for beside in ["out", "out/x", "nowhere", "nowhere/x"] {
            assert!(!allows(&inside.join(beside)), "{beside}");
        }
        assert!(!allows(&outside) && !allows(folder.path()));
    }
}
