//! Who is at the other end.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use deltaconv_proto::tls::{Identity, Role};

/// What a connection says of who is at its other end, verified.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Where it comes from.
    pub(crate) address: SocketAddr,
    /// Whom its certificate is for; nothing of one without, and of a connection without TLS.
    pub(crate) identity: Option<Arc<Identity>>,
    /// Why a certificate that was shown is nobody's.
    pub(crate) refused: Option<Arc<str>>,
    /// Whether the connection is within TLS.
    pub(crate) is_encrypted: bool,
}

/// Who calls, and as what.
#[derive(Clone, Debug)]
pub(crate) struct Who {
    /// What they may do; nothing of a stranger.
    pub(crate) role: Option<Role>,
    /// "operator:alice"; "local" of one without TLS, "" of a stranger.
    pub(crate) name: Arc<str>,
    /// Where they call from.
    pub(crate) from: SocketAddr,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.name {
            "" => write!(f, "somebody at {}", self.from),
            name => write!(f, "{name} at {}", self.from),
        }
    }
}
