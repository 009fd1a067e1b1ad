//! Folders as an operator names them, by path or by URL, turned into URLs.

use std::path::{Component, Path, PathBuf};

use deltaconv_proto::objects::Allowed;
use url::{Host, Url};

use crate::error::Error;

/// The URL of `named`: itself if it is one, else that of the folder at this path, relative to `base`.
pub(crate) fn url(named: &str, base: &Path) -> Result<String, Error> {
    if named.contains("://") {
        return Ok(without_slash(named).to_owned());
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
    Ok(without_slash(url.as_str()).to_owned())
}

/// Whether only this machine answers there.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// The web server at `url`, to which `flag` has something sent: without encryption only on this machine, or where that is allowed.
///
/// # Errors
/// [`Error::PlainUrl`].
#[cfg_attr(
    not(any(feature = "webhook", feature = "otlp")),
    allow(dead_code, reason = "nothing is sent to web servers")
)]
pub(crate) fn encrypted(url: Url, flag: &'static str, allow: &'static str, is_allowed: bool) -> Result<Url, Error> {
    match url.scheme() == "https" || is_loopback(&url) || is_allowed {
        true => Ok(url),
        false => Err(Error::PlainUrl { flag, host: url.host_str().unwrap_or_default().to_owned(), allow }),
    }
}

/// A URL without the slashes that it ends with, but for those of its scheme.
fn without_slash(url: &str) -> &str {
    let shorter = url.trim_end_matches('/');
    if shorter.contains("://") { shorter } else { url }
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
            ("/", "file:///"),
            ("file:///", "file:///"),
            ("s3://", "s3://"),
        ];
        for (named, expected) in cases {
            assert_eq!(url(named, base).expect("a location"), expected);
        }
    }

    #[test]
    fn nothing_is_sent_to_other_machines_without_encryption_unless_that_is_allowed() {
        let sent = |url: &str, is_allowed| {
            let url = Url::parse(url).expect("a URL");
            encrypted(url, "--webhook", "--webhook-plaintext", is_allowed).map(String::from)
        };
        for url in ["https://example.org/a?key=secret", "http://localhost:8080/", "http://127.0.0.9/", "http://[::1]/"]
        {
            assert_eq!(sent(url, false).expect("encrypted, or here"), url);
        }
        for url in ["http://example.org/a?key=secret", "http://10.0.0.1/", "http://localhost.example.org/"] {
            let refused = sent(url, false).expect_err("elsewhere").to_string();
            assert!(refused.contains("--webhook") && !refused.contains("secret"), "{refused}");
            assert_eq!(sent(url, true).expect("allowed"), url);
        }
    }
}
