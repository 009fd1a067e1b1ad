//! A private authority: signs certificates for a coordinator, for people and for workers.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use deltaconv_proto::tls::{Bundle, Certificate, Identity, Role, UnknownRole, public_key, write_secret};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

/// How much another machine's clock may be behind.
const SKEW: Duration = Duration::from_secs(3600);
/// How long an authority lasts.
const AUTHORITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error(transparent)]
    File(#[from] deltaconv_proto::tls::Error),
    /// What was to be signed can't be.
    #[error("no certificate was made: {0}")]
    Signing(#[from] rcgen::Error),
    /// The system has no random numbers.
    #[error("no random numbers for a certificate")]
    Random,
    /// Somebody who can't be named so.
    #[error(transparent)]
    Identity(#[from] UnknownRole),
    /// An authority that is none.
    #[error("{path} {reason}")]
    Authority {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it, as what follows its name.
        reason: String,
    },
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> deltaconv_proto::code::Code {
        use deltaconv_proto::code::Code;
        match self {
            Self::File(error) => error.code(),
            Self::Signing(_) | Self::Authority { .. } => Code::Certificate,
            Self::Identity(_) => Code::Name,
            Self::Random => Code::NotStarted,
        }
    }
}

/// A certificate and its key, in PEM.
pub struct Issued {
    /// The certificate alone.
    pub certificate: String,
    /// Its private key, in PKCS#8.
    pub key: String,
}

/// Signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// A new one of this name, and its key in PEM. It lasts ten years, and what it signs can't sign.
    ///
    /// # Errors
    /// That the system has no random numbers.
    pub fn make(name: &str) -> Result<(Self, String), Error> {
        let key = KeyPair::generate()?;
        let mut params = params(name, AUTHORITY)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key)?;
        let (pem, der, secret) = (certificate.pem(), certificate.der().clone(), key.serialize_pem());
        Ok((Self { issuer: Issuer::new(params, key), certificate: der, pem }, secret))
    }

    /// The one in two files.
    ///
    /// # Errors
    /// Files that can't be read, or that hold no authority and its key.
    pub fn open(certificate: &Path, key: &Path) -> Result<Self, Error> {
        let wrong = |path: &Path, reason: String| Error::Authority { path: path.into(), reason };
        let Bundle { certificates, .. } = Bundle::read(certificate)?;
        let der = certificates.into_iter().next().ok_or_else(|| wrong(certificate, "holds no certificate".into()))?;
        let facts = Certificate::parse(&der).map_err(|reason| wrong(certificate, reason))?;
        if !facts.is_authority {
            return Err(wrong(certificate, "holds a certificate that can't sign others".into()));
        }
        let text = std::fs::read_to_string(key);
        let text = text.map_err(|source| deltaconv_proto::tls::Error::File { path: key.into(), source })?;
        let pair =
            KeyPair::from_pem(&text).map_err(|error| wrong(key, format!("holds no key that can sign: {error}")))?;
        if public_key(&der) != Some(pair.subject_public_key_info()) {
            return Err(wrong(key, format!("is not the key of {}", certificate.display())));
        }
        let pem = std::fs::read_to_string(certificate);
        let pem = pem.map_err(|source| deltaconv_proto::tls::Error::File { path: certificate.into(), source })?;
        let issuer = Issuer::from_ca_cert_der(&der, pair)?;
        Ok(Self { issuer, certificate: der, pem })
    }

    /// The one in these files, or a new one where there is neither.
    ///
    /// # Errors
    /// As [`Self::open`] and [`Self::make`].
    pub fn open_or_make(certificate: &Path, key: &Path, name: &str) -> Result<Self, Error> {
        if certificate.exists() {
            return Self::open(certificate, key);
        }
        let (authority, secret) = Self::make(name)?;
        let io = |path: &Path| {
            let path = path.to_owned();
            |source| deltaconv_proto::tls::Error::File { path, source }
        };
        // A key without a certificate is overwritten, and a certificate has its key.
        write_secret(key, &secret).map_err(io(key))?;
        write_secret(certificate, &authority.pem).map_err(io(certificate))?;
        Ok(authority)
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Its certificate in PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for a server that is called by these names and addresses.
    ///
    /// # Errors
    /// A host that is none.
    pub fn server(&self, hosts: &[String], valid: Duration) -> Result<Issued, Error> {
        let key = KeyPair::generate()?;
        let mut params = params("deltaconv coordinator", valid)?;
        for host in hosts {
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host.as_str().try_into()?),
            });
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// A certificate for somebody who looks or operates.
    ///
    /// # Errors
    /// That the system has no random numbers.
    pub fn client(&self, identity: &Identity, valid: Duration) -> Result<Issued, Error> {
        let key = KeyPair::generate()?;
        let certificate = client(identity, valid)?.signed_by(&key, &self.issuer)?;
        Ok(Issued { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// A certificate in DER for a worker that has this public key, a SubjectPublicKeyInfo in DER.
    ///
    /// # Errors
    /// A key that is none.
    pub fn worker(&self, name: &str, public_key: &[u8], valid: Duration) -> Result<CertificateDer<'static>, Error> {
        let key = SubjectPublicKeyInfo::from_der(public_key)?;
        let identity = Identity::new(Role::Worker, name)?;
        Ok(client(&identity, valid)?.signed_by(&key, &self.issuer)?.der().clone())
    }
}

fn client(identity: &Identity, valid: Duration) -> Result<CertificateParams, Error> {
    let mut params = params(&identity.to_string(), valid)?;
    params.subject_alt_names.push(SanType::URI(identity.uri().as_str().try_into()?));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn params(name: &str, valid: Duration) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(|_| Error::Random)?;
    // A serial number is positive.
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now();
    params.not_before = OffsetDateTime::from(now - SKEW);
    params.not_after = OffsetDateTime::from(now + valid);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}
