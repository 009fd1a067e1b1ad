//! Whose certificates and secrets are accepted: what is durable of it, at hand for every call.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use deltaconv_proto::tls::{Identity, Role, Token};
use deltaconv_proto::v1;

/// By identity.
#[derive(Debug, Default)]
pub(crate) struct Register(RwLock<BTreeMap<String, Known>>);

#[derive(Clone, Copy, Debug)]
struct Known {
    /// Of what it says with each call.
    secret: Option<blake3::Hash>,
    /// 0 for never.
    expires_unix_ms: u64,
    revoked: bool,
}

impl Register {
    /// Knows what is durable of an identity.
    pub(crate) fn put(&self, record: &v1::IdentityRecord) {
        let secret = <[u8; 32]>::try_from(&record.digest[..]).ok().map(blake3::Hash::from);
        let known = Known { secret, expires_unix_ms: record.expires_unix_ms, revoked: record.revoked };
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(record.identity.clone(), known);
    }

    /// Whether a certificate for this identity, which its authority signed, is accepted. Of a worker that is not known it
    /// isn't: its identity ended, or came after the snapshot that this state was restored from.
    pub(crate) fn admits(&self, identity: &Identity) -> bool {
        let known = self.known(&identity.to_string());
        match identity.role {
            Role::Worker => known.is_some_and(|known| !known.revoked),
            Role::Operator | Role::Viewer => known.is_none_or(|known| !known.revoked),
        }
    }

    /// Whether this identity was revoked.
    pub(crate) fn is_revoked(&self, identity: &str) -> bool {
        self.known(identity).is_some_and(|known| known.revoked)
    }

    /// Whether the token is the secret of an identity that stands.
    pub(crate) fn knows(&self, token: &Token) -> bool {
        let Some(known) = self.known(&token.id) else { return false };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let stands = !known.revoked && (known.expires_unix_ms == 0 || now < known.expires_unix_ms);
        // Digests compare in constant time.
        known.secret.is_some_and(|secret| secret == token.secret.digest()) && stands
    }

    fn known(&self, identity: &str) -> Option<Known> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(identity).copied()
    }
}
