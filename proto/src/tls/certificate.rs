//! What a certificate says.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::brief::Brief;

/// What the URI begins with that says who a certificate is for: `deltaconv:operator:alice`.
const SCHEME: &str = "deltaconv:";
/// Characters of a name.
const MAX_NAME: usize = 64;

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Looks.
    Viewer,
    /// Submits, changes and cancels jobs, invites and revokes, and looks.
    Operator,
    /// Joins and computes, and looks at nothing.
    Worker,
}

impl Role {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Worker => "worker",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no identity: write ROLE:NAME, with viewer, operator or worker, and up to 64 letters, digits, '.', '_', '@' or '-'"
)]
pub struct UnknownRole(pub String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        let found = [Self::Viewer, Self::Operator, Self::Worker].into_iter().find(|role| role.name() == text);
        found.ok_or_else(|| UnknownRole(text.chars().take(2 * MAX_NAME).collect()))
    }
}

/// Whom a certificate is for. Written `operator:alice`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// What it may do.
    pub role: Role,
    name: String,
}

impl Identity {
    /// An identity of this name.
    ///
    /// # Errors
    /// A name that is none.
    pub fn new(role: Role, name: &str) -> Result<Self, UnknownRole> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._@-".contains(&byte);
        match !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(is_plain) {
            true => Ok(Self { role, name: name.to_owned() }),
            false => Err(UnknownRole(format!("{role}:{}", name.chars().take(2 * MAX_NAME).collect::<String>()))),
        }
    }

    /// Among those of its role.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// As a certificate carries it, among the URIs of its alternative names.
    pub fn uri(&self) -> String {
        format!("{SCHEME}{self}")
    }

    fn from_uri(uri: &str) -> Option<Self> {
        uri.strip_prefix(SCHEME)?.parse().ok()
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.role, self.name)
    }
}

impl FromStr for Identity {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        let unknown = || UnknownRole(text.chars().take(2 * MAX_NAME).collect());
        let (role, name) = text.split_once(':').ok_or_else(unknown)?;
        Self::new(role.parse().map_err(|_| unknown())?, name)
    }
}

/// SHA-256 of a certificate's DER. Written as 64 hexadecimal digits, as `openssl x509 -fingerprint -sha256` does but for its
/// colons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// That of a certificate in DER.
    pub fn of(der: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, der).as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// No fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint has 64 hexadecimal digits")]
pub struct InvalidFingerprint;

impl FromStr for Fingerprint {
    type Err = InvalidFingerprint;

    fn from_str(text: &str) -> Result<Self, InvalidFingerprint> {
        // Read and written as BLAKE3's are.
        let hash = blake3::Hash::from_hex(text).map_err(|_| InvalidFingerprint)?;
        Ok(Self(*hash.as_bytes()))
    }
}

/// What a certificate says. Nothing of it is verified here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Whom it is for, as a distinguished name.
    pub subject: String,
    /// Who signed it, as a distinguished name in DER.
    pub issuer: Vec<u8>,
    /// Whether it signed itself, as its names have it.
    pub is_root: bool,
    /// Whether it may sign others.
    pub is_authority: bool,
    /// Whom it is for among deltaconv's processes and people, where it says so.
    pub identity: Option<Identity>,
    /// The hosts that it is for: names and addresses.
    pub hosts: Vec<String>,
    /// In hexadecimal digits.
    pub serial: String,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
    /// Of the whole certificate.
    pub fingerprint: Fingerprint,
}

impl Certificate {
    /// Reads a certificate in DER.
    ///
    /// # Errors
    /// That it is none.
    pub fn parse(der: &[u8]) -> Result<Self, String> {
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|error| format!("is no certificate: {error}"))?;
        if !rest.is_empty() {
            return Err("has something after its certificate".to_owned());
        }
        let names = parsed.subject_alternative_name().map_err(|error| format!("has no readable names: {error}"))?;
        let names = names.map_or(&[][..], |names| &names.value.general_names);
        let hosts = names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(Brief(*name).to_string()),
            GeneralName::IPAddress(bytes) => address(bytes),
            _ => None,
        });
        let mut identities = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Identity::from_uri(uri),
            _ => None,
        });
        let identity = identities.next();
        if identities.next().is_some() {
            return Err("names more than one identity".to_owned());
        }
        Ok(Self {
            subject: Brief(parsed.subject()).to_string(),
            issuer: parsed.issuer().as_raw().to_vec(),
            is_root: parsed.subject().as_raw() == parsed.issuer().as_raw(),
            is_authority: parsed.is_ca(),
            identity,
            hosts: hosts.collect(),
            serial: parsed.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            fingerprint: Fingerprint::of(der),
        })
    }
}

/// The public key of a certificate in DER: a SubjectPublicKeyInfo in DER. `None` for what is no certificate.
pub fn public_key(der: &[u8]) -> Option<Vec<u8>> {
    X509Certificate::from_der(der).ok().map(|(_, parsed)| parsed.public_key().raw.to_vec())
}

fn address(bytes: &[u8]) -> Option<String> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(bytes).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|bytes| std::net::Ipv6Addr::from(bytes).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_read_as_they_are_written() {
        let alice = Identity::new(Role::Operator, "alice@example.org").expect("a name");
        assert_eq!(alice.to_string(), "operator:alice@example.org");
        assert_eq!(alice.to_string().parse(), Ok(alice.clone()));
        assert_eq!(Identity::from_uri(&alice.uri()), Some(alice));
        let long = format!("worker:{}", "x".repeat(65));
        for wrong in
            ["", "operator", "operator:", "operator:a b", "operator:a:b", "root:alice", "viewer:ä", long.as_str()]
        {
            assert!(wrong.parse::<Identity>().is_err(), "{wrong}");
        }
        for foreign in
            ["https://example.org", "deltaconv:", "deltaconv:admin:alice", "spiffe://deltaconv/operator:alice"]
        {
            assert_eq!(Identity::from_uri(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        for wrong in [&b""[..], b"\x30", b"\x30\x80", &[0x30; 64]] {
            assert!(Certificate::parse(wrong).is_err());
        }
    }
}
