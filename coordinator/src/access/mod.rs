//! Who gets in, as what, and how much each may ask for.

mod audit;
mod authority;
mod expiry;
mod guard;
mod listen;
mod rates;
mod register;
#[cfg(test)]
mod tests;
mod tls;
mod token_file;
mod who;

use std::sync::Arc;
use std::time::Duration;

use tonic::Status;

pub(crate) use audit::Audit;
pub use authority::{Authority, Error as AuthorityError, Issued};
pub(crate) use expiry::watch as watch_certificates;
pub(crate) use guard::Guarded;
pub(crate) use listen::connections;
pub(crate) use rates::Rates;
pub(crate) use register::Register;
pub(crate) use tls::Tls;
pub use tls::TlsFiles;
pub(crate) use token_file::Token;
pub use token_file::TokenError;
pub(crate) use who::{Peer, Who};

use crate::observe::metrics::Metrics;

/// A worker's identity lasts so long, and is renewed before.
pub(crate) const WORKER: Duration = Duration::from_secs(30 * 24 * 3600);
/// Files of the authority that signs workers' certificates, in the state's folder.
pub(crate) const WORKERS: [&str; 2] = ["workers-authority.pem", "workers-authority.key"];

/// What decides who gets in. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Access {
    /// Nothing where no TLS is spoken.
    pub(crate) tls: Option<Arc<Tls>>,
    /// Signs workers' certificates.
    pub(crate) workers: Option<Arc<Authority>>,
    /// Of the token file, where no TLS is spoken.
    pub(crate) token: Option<Token>,
    pub(crate) register: Arc<Register>,
    pub(crate) rates: Arc<Rates>,
    pub(crate) audit: Arc<Audit>,
    pub(crate) metrics: Metrics,
}

impl Access {
    /// Somebody was denied something.
    fn denied(&self, who: &Who, path: &str, why: &Status) {
        self.metrics.denied(why);
        self.audit.denied(who, path, why);
        tracing::debug!(%who, path, reason = why.message(), "denied");
    }
}
