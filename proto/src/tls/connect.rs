//! Connections to a coordinator, encrypted where its URL says so.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::Endpoint;

use super::pinned::Pinned;
use super::{Bundle, Certificate, Error, Fingerprint, provider};

const HTTP2: &[u8] = b"h2";
const PORT: u16 = 7433;

/// What a client shows and whom it trusts. Cheap to clone; the key is not shown.
#[derive(Clone)]
pub struct Credentials {
    tls: Arc<ClientConfig>,
    certificate: Option<Arc<Certificate>>,
}

impl Credentials {
    /// Shows nothing, and trusts the system's authorities.
    ///
    /// # Errors
    /// That the system has none that can be read.
    pub fn none() -> Result<Self, Error> {
        Self::new(system_roots(), None)
    }

    /// Shows nothing, and trusts what the certificate of this fingerprint signed.
    ///
    /// # Errors
    /// Those of rustls.
    pub fn pinned(authority: Fingerprint) -> Result<Self, Error> {
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let verifier = Arc::new(Pinned::new(authority, provider()));
        let config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
        Ok(Self::with(config, None))
    }

    /// Shows a certificate, and trusts what the certificate of this fingerprint signed. The chain is in DER, and so is its key
    /// in PKCS#8.
    ///
    /// # Errors
    /// A key that is not the certificate's.
    pub fn pinned_with(authority: Fingerprint, chain: Vec<Vec<u8>>, key: Vec<u8>) -> Result<Self, Error> {
        let chain: Vec<CertificateDer<'static>> = chain.into_iter().map(CertificateDer::from).collect();
        let key = PrivateKeyDer::Pkcs8(key.into());
        let certificate = chain.first().and_then(|leaf| Certificate::parse(leaf).ok());
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let verifier = Arc::new(Pinned::new(authority, provider()));
        let config =
            builder.dangerous().with_custom_certificate_verifier(verifier).with_client_auth_cert(chain, key)?;
        Ok(Self::with(config, certificate))
    }

    /// What one file holds: a certificate and its key, then the authorities that are trusted; those of the system where it has
    /// none.
    ///
    /// # Errors
    /// That it can't be read, holds no certificate or no key, or what doesn't go together.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let contents = |reason| Error::Contents { path: path.into(), reason };
        let Bundle { certificates, key } = Bundle::read(path)?;
        let key = key.ok_or_else(|| {
            contents("holds no private key: it needs a certificate, its key and the authority".into())
        })?;
        let mut roots = RootCertStore::empty();
        let mut chain = Vec::new();
        let mut of_leaf = None;
        for certificate in certificates {
            let parsed = Certificate::parse(&certificate).map_err(contents)?;
            match of_leaf.is_some() && parsed.is_root {
                true => roots.add(certificate)?,
                false => chain.push(certificate),
            }
            of_leaf.get_or_insert(parsed);
        }
        let roots = if roots.is_empty() { system_roots() } else { roots };
        let with = Self::new(roots, Some((chain, key))).map_err(|error| contents(format!("can't be used: {error}")))?;
        Ok(Self { certificate: of_leaf.map(Arc::new), ..with })
    }

    fn new(
        roots: RootCertStore,
        shown: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    ) -> Result<Self, Error> {
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let builder = builder.with_root_certificates(roots);
        let config = match shown {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
            None => builder.with_no_client_auth(),
        };
        Ok(Self::with(config, None))
    }

    fn with(mut config: ClientConfig, certificate: Option<Certificate>) -> Self {
        config.alpn_protocols = vec![HTTP2.to_vec()];
        Self { tls: Arc::new(config), certificate: certificate.map(Arc::new) }
    }

    /// The certificate that is shown.
    pub fn certificate(&self) -> Option<&Certificate> {
        self.certificate.as_deref()
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let identity = self.certificate.as_ref().and_then(|certificate| certificate.identity.as_ref());
        f.debug_struct("Credentials").field("identity", &identity).finish_non_exhaustive()
    }
}

fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    // Some of a system's may be none; a store without any trusts nobody, which the connection says.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// The coordinator at `url`, and the same port of the same host with TLS.
///
/// # Errors
/// That the URL is none, or has neither http:// nor https://.
pub fn endpoint(url: &str) -> Result<Endpoint, Error> {
    let address = |reason: String| Error::Address { url: url.chars().take(512).collect(), reason };
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| {
        let source = std::error::Error::source(&error);
        address(source.map_or_else(|| error.to_string(), ToString::to_string))
    })?;
    match (endpoint.uri().scheme_str(), endpoint.uri().host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(endpoint),
        (Some("http" | "https"), _) => Err(address("it names no host".into())),
        _ => Err(address("it begins with neither http:// nor https://".into())),
    }
}

/// Opens connections: encrypted ones for https:// URLs, and others to this machine alone.
#[derive(Clone, Debug)]
pub struct Connector {
    credentials: Credentials,
    timeout: Duration,
    allows_plaintext: bool,
}

impl Connector {
    /// Opens connections with `credentials`, each within `timeout`.
    pub fn new(credentials: Credentials, timeout: Duration) -> Self {
        Self { credentials, timeout, allows_plaintext: false }
    }

    /// With `is_allowed` http:// URLs may lead to other machines.
    #[must_use]
    pub fn plaintext(self, is_allowed: bool) -> Self {
        Self { allows_plaintext: is_allowed, ..self }
    }

    /// Whether a connection to `address` may be without encryption.
    fn check_plain(&self, address: SocketAddr) -> Result<(), SocketError> {
        match self.allows_plaintext || address.ip().to_canonical().is_loopback() {
            true => Ok(()),
            false => Err(SocketError::Plaintext(address)),
        }
    }

    async fn connect(self, uri: Uri) -> Result<TokioIo<Socket>, SocketError> {
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let is_encrypted = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(PORT);
        let connected = tokio::time::timeout(self.timeout, async {
            let stream = TcpStream::connect((host.as_str(), port)).await.map_err(SocketError::Unreachable)?;
            // Small messages are to arrive at once.
            let _ = stream.set_nodelay(true);
            if !is_encrypted {
                // Where the connection leads, whatever the host is called.
                self.check_plain(stream.peer_addr().map_err(SocketError::Unreachable)?)?;
                return Ok(Socket::Plain(stream));
            }
            let name = ServerName::try_from(host.clone()).map_err(|_| SocketError::Host(host.clone()))?;
            let connector = TlsConnector::from(self.credentials.tls.clone());
            let encrypted = connector.connect(name, stream).await.map_err(SocketError::handshake)?;
            Ok(Socket::Encrypted(Box::new(encrypted)))
        });
        let connected = connected.await.map_err(|_| SocketError::Slow(self.timeout))?;
        connected.map(TokioIo::new)
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Nobody answers.
    #[error("{0}")]
    Unreachable(io::Error),
    /// Not within the time.
    #[error("no answer within {0:?}")]
    Slow(Duration),
    /// Others could read along.
    #[error("{0} is no loopback address, and http:// sends what is said, tokens with it, without encryption")]
    Plaintext(SocketAddr),
    /// What no certificate can be for.
    #[error("{0:?} is no host")]
    Host(String),
    /// Whoever answers is not who was meant, or doesn't want this client.
    #[error("{reason}")]
    Untrusted {
        /// In words.
        reason: String,
        /// Whether it may be otherwise later, since it is a matter of time.
        may_pass: bool,
    },
    /// Whoever answers speaks no TLS, or ended the connection.
    #[error("the encrypted connection was not made: {0}; is the coordinator one without TLS (http://)?")]
    Handshake(io::Error),
}

impl SocketError {
    fn handshake(error: io::Error) -> Self {
        use rustls::{CertificateError as Wrong, Error as Said};
        let said = error.get_ref().and_then(|source| source.downcast_ref::<Said>());
        let (reason, may_pass) = match said {
            Some(Said::InvalidCertificate(Wrong::UnknownIssuer)) => {
                let reason = "its certificate is not of the authority that is trusted here: take the credentials or the \
                              invitation that belong to this coordinator";
                (reason.to_owned(), false)
            }
            Some(Said::InvalidCertificate(wrong)) => {
                let is_of_time = matches!(
                    wrong,
                    Wrong::Expired
                        | Wrong::ExpiredContext { .. }
                        | Wrong::NotValidYet
                        | Wrong::NotValidYetContext { .. }
                );
                (format!("its certificate is not accepted: {wrong}"), is_of_time)
            }
            Some(Said::AlertReceived(alert)) => (format!("it does not accept this certificate ({alert:?})"), false),
            _ => return Self::Handshake(error),
        };
        Self::Untrusted { reason, may_pass }
    }

    /// Whether somebody is there who is not trusted, or doesn't trust.
    pub fn is_untrusted(&self) -> bool {
        matches!(self, Self::Untrusted { .. } | Self::Host(_))
    }

    /// Whether another attempt with the same credentials is of no use.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Untrusted { may_pass: false, .. } | Self::Host(_) | Self::Plaintext(_))
    }

    /// The reason among the causes of an error of a connection; nothing where that is another.
    pub fn of<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(found);
            }
            cause = error.source();
        }
        None
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Socket>;
    type Error = SocketError;
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<Socket>, SocketError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SocketError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// A connection.
#[derive(Debug)]
pub enum Socket {
    /// As it is.
    Plain(TcpStream),
    /// Within TLS.
    Encrypted(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Encrypted(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Encrypted(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Encrypted(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Encrypted(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Encrypted(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Encrypted(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_encryption_nothing_leaves_this_machine_unless_that_is_allowed() {
        let connector = Connector::new(Credentials::none().expect("credentials"), Duration::from_secs(1));
        let allowing = connector.clone().plaintext(true);
        for (address, is_here) in [
            ("127.0.0.1:7433", true),
            ("127.9.9.9:7433", true),
            ("[::1]:7433", true),
            ("[::ffff:127.0.0.1]:7433", true),
            ("10.0.0.5:7433", false),
            ("169.254.1.1:7433", false),
            ("[fe80::1]:7433", false),
            ("[::ffff:10.0.0.5]:7433", false),
        ] {
            let to: SocketAddr = address.parse().expect("an address");
            let refused = connector.check_plain(to).err();
            assert_eq!(refused.is_none(), is_here, "{address}");
            assert!(refused.is_none_or(|refused| refused.is_final() && refused.to_string().contains(address)));
            allowing.check_plain(to).expect("allowed");
        }
    }
}
