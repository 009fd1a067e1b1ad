//! The coordinator's side of TLS: its certificate, and whose certificates it accepts; read again when the files change.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use deltaconv_proto::tls::{self, Bundle, Certificate, Fingerprint, Identity, Role, provider};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};

use super::Authority;

/// Certificates are reported so long before their end.
const AHEAD: Duration = Duration::from_secs(30 * 24 * 3600);

/// Where a coordinator's certificates lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Its certificate in PEM, and those between it and its authority; the authority's own, too, where workers are invited.
    pub certificate: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
    /// Certificates in PEM of who signs those of operators and viewers.
    pub authority: PathBuf,
}

/// What the files hold.
#[derive(Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    clients: Arc<dyn ClientCertVerifier>,
    /// Of the last certificate of the chain.
    authority: Fingerprint,
    /// With the files that they are in.
    certificates: Vec<(&'static str, Certificate)>,
}

/// Certificates as they were last read.
#[derive(Debug)]
pub(crate) struct Tls {
    files: TlsFiles,
    workers: Arc<Authority>,
    loaded: RwLock<Arc<Loaded>>,
}

/// A certificate that is over soon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expiring {
    /// "coordinator", "authority" or "workers".
    pub(crate) certificate: &'static str,
    /// Milliseconds since 1970.
    pub(crate) unix_ms: u64,
    /// Whether it is over already.
    pub(crate) is_over: bool,
}

impl Tls {
    /// Reads the files. Workers' certificates are those that `workers` signed.
    ///
    /// # Errors
    /// Files that can't be read, or that don't go together.
    pub(crate) fn open(files: TlsFiles, workers: Arc<Authority>) -> Result<Self, tls::Error> {
        let loaded = RwLock::new(Arc::new(load(&files, &workers)?));
        Ok(Self { files, workers, loaded })
    }

    fn loaded(&self) -> Arc<Loaded> {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How the next connection is encrypted.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.loaded().config.clone()
    }

    /// What invitations know the coordinator by.
    pub(crate) fn authority(&self) -> Fingerprint {
        self.loaded().authority
    }

    /// Reads the files again; says whether something changed. What was read before stays where they can't be used.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn reload(&self) -> Result<bool, tls::Error> {
        let read = load(&self.files, &self.workers)?;
        let prints =
            |loaded: &Loaded| loaded.certificates.iter().map(|(_, facts)| facts.fingerprint.0).collect::<Vec<_>>();
        let changed = prints(&read) != prints(&self.loaded());
        if changed {
            *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(read);
        }
        Ok(changed)
    }

    /// When each certificate ends, in seconds since 1970.
    pub(crate) fn ends(&self) -> Vec<(&'static str, i64)> {
        let mut ends: Vec<(&'static str, i64)> = Vec::new();
        for (name, facts) in &self.loaded().certificates {
            match ends.iter_mut().find(|(known, _)| known == name) {
                Some((_, end)) => *end = facts.not_after.min(*end),
                None => ends.push((name, facts.not_after)),
            }
        }
        ends
    }

    /// Certificates that end within 30 days.
    pub(crate) fn expiring(&self, now: SystemTime) -> Vec<Expiring> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
        let soon = now + AHEAD.as_secs() as i64;
        let ends = self.ends().into_iter().filter(|(_, end)| *end < soon);
        ends.map(|(certificate, end)| Expiring { certificate, unix_ms: end.max(0) as u64 * 1000, is_over: end <= now })
            .collect()
    }

    /// Whom a certificate is for that was shown with those between it and its authority.
    ///
    /// # Errors
    /// Why it is nobody's: it is over, or of another authority; it says nothing of whom it is for, or what its authority can't
    /// say: workers are signed by the coordinator's own, and by no other.
    pub(crate) fn identity(&self, chain: &[CertificateDer<'_>]) -> Result<Identity, String> {
        let (leaf, between) = chain.split_first().ok_or("there is none")?;
        let verified = self.loaded().clients.verify_client_cert(leaf, between, UnixTime::now());
        verified.map_err(|error| match error {
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                "it is of an authority that this coordinator doesn't know".to_owned()
            }
            rustls::Error::InvalidCertificate(wrong) => wrong.to_string(),
            error => error.to_string(),
        })?;
        let facts = Certificate::parse(leaf)?;
        let of_workers = Certificate::parse(self.workers.certificate())?;
        let is_of_workers = facts.issuer == of_workers.issuer;
        let identity = facts.identity.ok_or("it doesn't say for whom it is")?;
        match (identity.role == Role::Worker) == is_of_workers {
            true => Ok(identity),
            false => Err(format!("its authority can't make somebody {identity}")),
        }
    }
}

/// Has every certificate shown whose key its holder has, whoever signed it: [`Tls::identity`] judges it, and its holder is told
/// why it isn't accepted. A handshake that is broken off tells nothing, and with TLS 1.3 comes to that only after it is done.
#[derive(Debug)]
struct Unjudged(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Unjudged {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Adds the authority to a chain that ends below it, as some who issue certificates leave it: workers know the coordinator by it.
fn complete(chain: &mut Vec<CertificateDer<'static>>, authorities: &[CertificateDer<'static>]) {
    let Some(last) = chain.last().and_then(|last| Certificate::parse(last).ok()) else { return };
    let is_issuer = |authority: &&CertificateDer<'static>| {
        Certificate::parse(authority).is_ok_and(|authority| authority.is_root && authority.issuer == last.issuer)
    };
    if !last.is_root
        && let Some(authority) = authorities.iter().find(is_issuer)
    {
        chain.push(authority.clone());
    }
}

fn load(files: &TlsFiles, workers: &Authority) -> Result<Loaded, tls::Error> {
    let contents = |path: &PathBuf| {
        let path = path.clone();
        |reason: String| tls::Error::Contents { path, reason }
    };
    let mut chain = Bundle::read(&files.certificate)?.certificates;
    let key = Bundle::read_key(&files.key)?;
    let authorities = Bundle::read(&files.authority)?.certificates;
    complete(&mut chain, &authorities);
    let mut certificates = Vec::new();
    for certificate in &chain {
        certificates.push(("coordinator", Certificate::parse(certificate).map_err(contents(&files.certificate))?));
    }
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        certificates.push(("authority", Certificate::parse(&authority).map_err(contents(&files.authority))?));
        roots.add(authority).map_err(|error| contents(&files.authority)(format!("can't be used: {error}")))?;
    }
    let of_workers = workers.certificate().clone();
    certificates.push(("workers", Certificate::parse(&of_workers).map_err(contents(&files.authority))?));
    roots.add(of_workers)?;
    let last = chain.last().map(|last| Fingerprint::of(last)).unwrap_or(Fingerprint([0; 32]));

    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).allow_unauthenticated().build();
    let clients = clients.map_err(|error| contents(&files.authority)(format!("can't be used: {error}")))?;
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let config = builder.with_client_cert_verifier(Arc::new(Unjudged(clients.clone()))).with_single_cert(chain, key);
    let unlike =
        |error| contents(&files.certificate)(format!("and {} don't go together: {error}", files.key.display()));
    let mut config = config.map_err(unlike)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Loaded { config: Arc::new(config), clients, authority: last, certificates })
}
