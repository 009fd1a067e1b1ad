//! Who this worker is to a coordinator: what an invitation became, kept so that a restart needs no other.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use deltaconv_proto::tls::{self, Credentials, Fingerprint, Invitation, write_secret};
use deltaconv_proto::v1;
use rcgen::{KeyPair, PublicKeyData};
use serde::{Deserialize, Serialize};

use super::Error;

/// An identity is renewed so long before its end: it lasts 30 days.
const RENEWED: Duration = Duration::from_secs(20 * 24 * 3600);
/// One of ours has two kilobytes.
const MAX_BYTES: u64 = 64 << 10;

/// Who this worker is, and the coordinator to which it is that.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Identity {
    /// URLs of the coordinator.
    pub(super) addresses: Vec<String>,
    /// SHA-256 of its authority's certificate in hexadecimal digits; empty where it speaks no TLS.
    authority: String,
    /// "worker:…".
    pub(super) identity: String,
    /// The private key: PKCS#8 in DER, in Base64.
    key: String,
    /// Certificates in DER, in Base64; none where the coordinator speaks no TLS.
    certificates: Vec<String>,
    /// What is said with each call where the coordinator speaks no TLS.
    pub(super) secret: String,
    expires_unix_ms: u64,
}

/// A key whose identity is not known yet.
pub(super) struct Key(KeyPair);

impl Key {
    /// A new one.
    pub(super) fn new() -> Result<Self, Error> {
        KeyPair::generate().map(Self).map_err(|error| Error::Key(error.to_string()))
    }

    /// The public one: a SubjectPublicKeyInfo in DER.
    pub(super) fn public(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }
}

impl Identity {
    /// What came of an invitation.
    pub(super) fn new(invitation: &Invitation, key: &Key, enrolled: v1::EnrolResponse) -> Self {
        Self {
            addresses: invitation.addresses.clone(),
            authority: invitation.authority.map(|authority| authority.to_string()).unwrap_or_default(),
            identity: enrolled.identity,
            key: BASE64.encode(key.0.serialized_der()),
            certificates: enrolled.certificates.iter().map(|der| BASE64.encode(der)).collect(),
            secret: enrolled.secret,
            expires_unix_ms: enrolled.expires_unix_ms,
        }
    }

    /// What a connection shows.
    pub(super) fn credentials(&self) -> Result<Credentials, Error> {
        let damaged = |reason: &str| Error::Identity { path: PathBuf::from(&self.identity), reason: reason.to_owned() };
        if self.authority.is_empty() {
            return Ok(Credentials::none()?);
        }
        let authority: Fingerprint = self.authority.parse().map_err(|_| damaged("names no authority"))?;
        let certificates = self.certificates.iter().map(|text| BASE64.decode(text)).collect::<Result<_, _>>();
        let certificates = certificates.map_err(|_| damaged("holds no certificates"))?;
        let key = BASE64.decode(&self.key).map_err(|_| damaged("holds no key"))?;
        Ok(Credentials::pinned_with(authority, certificates, key)?)
    }

    /// The public key, if the identity is to be renewed by now.
    pub(super) fn to_renew(&self, now: SystemTime) -> Option<Vec<u8>> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        if now + RENEWED < Duration::from_millis(self.expires_unix_ms) {
            return None;
        }
        let der = BASE64.decode(&self.key).ok()?;
        KeyPair::try_from(der).ok().map(|key| key.subject_public_key_info())
    }

    /// Lasts longer from now on.
    pub(super) fn renewed(&mut self, renewed: &v1::RenewResponse) {
        self.expires_unix_ms = renewed.expires_unix_ms;
        if !renewed.certificates.is_empty() {
            self.certificates = renewed.certificates.iter().map(|der| BASE64.encode(der)).collect();
        }
    }

    /// Whether it is this invitation's coordinator's.
    fn is_for(&self, invitation: &Invitation) -> bool {
        match invitation.authority {
            Some(authority) => self.authority == authority.to_string(),
            None => self.authority.is_empty() && self.addresses.iter().any(|url| invitation.addresses.contains(url)),
        }
    }

    fn file(&self) -> String {
        // One for each coordinator.
        let of = if self.authority.is_empty() { self.addresses.concat() } else { self.authority.clone() };
        format!("{}.json", &blake3::hash(of.as_bytes()).to_hex()[..16])
    }
}

/// The folder of identities: one for each coordinator, shared by all workers of a machine and user.
#[derive(Clone, Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// The one that is named, or where the system wants such things; none where nothing says so.
    pub(super) fn new(named: Option<&Path>) -> Option<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let named = named.map(Path::to_owned);
        // systemd's may be several, parted by colons; ours has one.
        let by_system = || variable("STATE_DIRECTORY").map(|folder| folder.join("identity"));
        let by_user = || variable("XDG_DATA_HOME").map(|folder| folder.join("deltaconv/identity"));
        let at_home = || variable("HOME").map(|folder| folder.join(".local/share/deltaconv/identity"));
        named.or_else(by_system).or_else(by_user).or_else(at_home).map(Self)
    }

    /// Who this worker is to the invitation's coordinator, or to the only one that there is where nothing invites.
    ///
    /// # Errors
    /// A file that holds something else, and several where nothing says which.
    pub(super) fn find(&self, invitation: Option<&Invitation>) -> Result<Option<Identity>, Error> {
        let mut found = Vec::new();
        let entries = match std::fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.wrong(&self.0, &error.to_string())),
        };
        for entry in entries {
            let path = entry.map_err(|error| self.wrong(&self.0, &error.to_string()))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let identity = self.read(&path)?;
                if invitation.is_none_or(|invitation| identity.is_for(invitation)) {
                    found.push(identity);
                }
            }
        }
        match (found.pop(), found.is_empty()) {
            (found, true) => Ok(found),
            _ => Err(self.wrong(&self.0, "holds identities for several coordinators: say which with --invitation")),
        }
    }

    fn read(&self, path: &Path) -> Result<Identity, Error> {
        use std::io::Read;
        let mut text = String::new();
        let read = std::fs::File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text));
        read.map_err(|error| self.wrong(path, &error.to_string()))?;
        serde_json::from_str(&text).map_err(|error| self.wrong(path, &format!("is no identity: {error}")))
    }

    /// Where it is.
    pub(super) fn path(&self) -> PathBuf {
        self.0.clone()
    }

    /// Keeps it, in the place of the one before.
    pub(super) fn keep(&self, identity: &Identity) -> io::Result<()> {
        std::fs::create_dir_all(&self.0)?;
        write_secret(&self.0.join(identity.file()), &serde_json::to_string(identity)?)
    }

    fn wrong(&self, path: &Path, reason: &str) -> Error {
        Error::Identity { path: path.into(), reason: reason.to_owned() }
    }
}

impl From<tls::Error> for Error {
    fn from(error: tls::Error) -> Self {
        match error {
            tls::Error::Address { url, reason } => Self::Address { url, reason },
            error => Self::Tls(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use deltaconv_proto::tls::{Secret, Token};

    use super::*;

    fn invitation(address: &str) -> Invitation {
        let token = Token { id: "inv1".into(), secret: Secret::random().expect("random numbers") };
        Invitation { addresses: vec![address.into()], authority: None, token }
    }

    fn identity(invitation: &Invitation, expires: Duration) -> Identity {
        let enrolled = v1::EnrolResponse {
            identity: "worker:1-x".into(),
            secret: "a secret".into(),
            expires_unix_ms: expires.as_millis() as u64,
            ..v1::EnrolResponse::default()
        };
        Identity::new(invitation, &Key::new().expect("a key"), enrolled)
    }

    #[test]
    fn an_identity_is_found_again_by_who_invited() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = Folder(folder.path().join("identity"));
        let [here, there] = ["http://here:1", "http://there:1"].map(invitation);
        assert!(folder.find(None).expect("none yet").is_none());
        folder.keep(&identity(&here, Duration::ZERO)).expect("kept");
        assert_eq!(folder.find(None).expect("reads").expect("one").addresses, here.addresses);
        assert!(folder.find(Some(&there)).expect("reads").is_none());
        folder.keep(&identity(&there, Duration::ZERO)).expect("kept");
        assert_eq!(folder.find(Some(&here)).expect("reads").expect("one").addresses, here.addresses);
        let several = folder.find(None).map(|_| ()).expect_err("which one?");
        assert!(several.to_string().contains("--invitation"), "{several}");

        let path = folder.0.join(identity(&here, Duration::ZERO).file());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        }
        std::fs::write(&path, "{").expect("written");
        let damaged = folder.find(Some(&here)).map(|_| ()).expect_err("no identity");
        assert!(damaged.to_string().contains(path.to_str().expect("UTF-8")), "{damaged}");
    }

    #[test]
    fn an_identity_is_renewed_in_its_last_twenty_days() {
        let day = Duration::from_secs(24 * 3600);
        let mut identity = identity(&invitation("http://here:1"), 30 * day);
        assert!(identity.to_renew(UNIX_EPOCH + 9 * day).is_none());
        let key = identity.to_renew(UNIX_EPOCH + 11 * day).expect("a key");
        identity.renewed(&v1::RenewResponse { expires_unix_ms: (41 * day).as_millis() as u64, ..Default::default() });
        assert!(identity.to_renew(UNIX_EPOCH + 20 * day).is_none());
        assert_eq!(identity.to_renew(UNIX_EPOCH + 40 * day), Some(key), "the key stays");
    }
}
