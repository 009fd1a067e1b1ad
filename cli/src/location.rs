//! Folders as an operator names them, by path or by URL, turned into URLs.

use std::path::{Component, Path, PathBuf};

use deltaconv_proto::objects::Allowed;
use url::Url;

use crate::error::Error;

/// The URL of `named`: itself if it is one, else that of the folder at this path, relative to `base`.
pub(crate) fn url(named: &str, base: &Path) -> Result<String, Error> {
    if named.contains("://") {
        return Ok(named.trim_end_matches('/').to_owned());
    }
    folder_url(&base.join(named))
}

/// The places that are named, by path or by URL, as those that are allowed.
pub(crate) fn allowed(named: &[String]) -> Result<Allowed, Error> {
    let urls = named.iter().map(|named| match named.as_str() {
        "any" => Ok(named.clone()),
        // A scheme alone, which allows all of its hosts.
        named if named.ends_with("://") => Ok(named.to_owned()),
        named => url(named, Path::new("")),
    });
    let urls: Vec<String> = urls.collect::<Result<_, _>>()?;
    Allowed::new(&urls)
        .map_err(|error| Error::Stores { message: format!("--allow-store: {error}"), code: error.code() })
}

/// The `file://` URL of a folder, which need not exist.
pub(crate) fn folder_url(path: &Path) -> Result<String, Error> {
    let absolute = std::path::absolute(path).map_err(Error::file("find", path))?;
    let refused = || Error::Location { path: path.display().to_string() };
    let url = Url::from_file_path(without_dots(&absolute)).map_err(|()| refused())?;
    Ok(url.to_string().trim_end_matches('/').to_owned())
}

/// The same path without `.` and `..`, by its text alone: a folder that does not exist yet has the URL that it will
/// have.
fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_urls_and_urls_stay() {
        let base = Path::new("/jobs/tiny");
        let cases = [
            ("../teachers/a", "file:///jobs/teachers/a"),
            ("./a/", "file:///jobs/tiny/a"),
            ("/x y", "file:///x%20y"),
            ("s3://bucket/a/", "s3://bucket/a"),
        ];
        for (named, expected) in cases {
            assert_eq!(url(named, base).expect("a location"), expected);
        }
    }
}
