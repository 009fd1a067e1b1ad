//! Who is who between processes: certificates and what they say, invitations, and encrypted connections to a coordinator.
//!
//! TLS 1.2 and 1.3 by rustls, with aws-lc as the one provider of cryptography.

mod certificate;
mod connect;
mod hidden;
mod invitation;
mod pem;
mod pinned;
mod token;

use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use certificate::{Certificate, Fingerprint, Identity, InvalidFingerprint, Role, UnknownRole, public_key};
pub use connect::{Connector, Credentials, SocketError, endpoint};
pub use invitation::{InvalidInvitation, Invitation};
pub use pem::{Bundle, write_secret};
pub use token::{InvalidToken, Secret, Token};

use crate::code::Code;

/// Why a certificate, a key or an address can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error("{path} {reason}")]
    Contents {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, as what follows its name: "holds no certificate".
        reason: String,
    },
    /// The URL is no coordinator's.
    #[error(
        "{url:?} is no coordinator's address ({reason}); write https://HOST:PORT, or http://HOST:PORT where it speaks no TLS"
    )]
    Address {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What the files hold doesn't go together.
    #[error("these certificates can't be used: {0}")]
    Unusable(#[from] rustls::Error),
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::File { .. } => Code::File,
            Self::Contents { .. } | Self::Unusable(_) => Code::Certificate,
            Self::Address { .. } => Code::CoordinatorUrl,
        }
    }
}

/// The one provider of cryptography.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
