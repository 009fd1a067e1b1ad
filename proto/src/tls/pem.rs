//! PEM files.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::Path;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::Error;

/// A chain of certificates has some kilobytes.
const MAX_BYTES: u64 = 1 << 20;

/// Certificates in their order, and a key, as one file holds them.
#[derive(Debug)]
pub struct Bundle {
    /// At least one.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The private key, where the file has one.
    pub key: Option<PrivateKeyDer<'static>>,
}

impl Bundle {
    /// Reads a file.
    ///
    /// # Errors
    /// That it can't be read, is larger than 1 MiB, or holds no certificate.
    pub fn read(path: &Path) -> Result<Self, Error> {
        Self::parse(&read(path)?).map_err(|reason| Error::Contents { path: path.into(), reason })
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// What is wrong with it, as what follows its name.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let certificates = CertificateDer::pem_slice_iter(bytes).collect::<Result<Vec<_>, _>>();
        let certificates =
            certificates.map_err(|error| format!("holds a certificate that can't be read: {}", said(&error)))?;
        if certificates.is_empty() {
            return Err("holds no certificate; one in PEM begins with -----BEGIN CERTIFICATE-----".to_owned());
        }
        Ok(Self { certificates, key: key(bytes)? })
    }

    /// Reads the key in a file that need hold nothing else.
    ///
    /// # Errors
    /// That it can't be read, or holds none.
    pub fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
        let contents = |reason| Error::Contents { path: path.into(), reason };
        key(&read(path)?).map_err(contents)?.ok_or_else(|| contents("holds no private key in PEM".to_owned()))
    }
}

fn key(bytes: &[u8]) -> Result<Option<PrivateKeyDer<'static>>, String> {
    match PrivateKeyDer::from_pem_slice(bytes) {
        Ok(key) => Ok(Some(key)),
        Err(pem::Error::NoItemsFound) => Ok(None),
        Err(error) => Err(format!("holds a private key that can't be read: {}", said(&error))),
    }
}

/// What is wrong, without the bytes that are: they may be a key's.
fn said(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no end",
        pem::Error::IllegalSectionStart { .. } => "a section does not begin with -----BEGIN NAME-----",
        pem::Error::Base64Decode(_) => "a section is not base64",
        _ => "it is damaged",
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let io = |source| Error::File { path: path.into(), source };
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(io)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    match bytes.len() as u64 > MAX_BYTES {
        true => Err(Error::Contents { path: path.into(), reason: "is larger than 1 MiB".to_owned() }),
        false => Ok(bytes),
    }
}

/// Writes a file that its owner alone can read, so that it is there whole or not at all.
///
/// # Errors
/// What the system says.
pub fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    let temporary = path.with_added_extension("new");
    // One that a process left behind may be readable to others.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_key_is_refused_without_being_shown() {
        let certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let damaged = format!("{certificate}-----BEGIN PRIVATE KEY-----c2VjcmV0\n");
        let refused = Bundle::parse(damaged.as_bytes()).expect_err("refused");
        let numbers = "c2VjcmV0".bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ");
        assert!(!refused.contains("c2VjcmV0") && !refused.contains(&numbers), "{refused}");
    }
}
