//! The one string that a worker joins with.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use prost::Message;

use super::{Fingerprint, Token};
use crate::v1;

/// What it begins with; the digit is its format's.
const PREFIX: &str = "deltaconv1-";
/// Of the digest at its end, for who copied a part of it alone.
const CHECK: usize = 4;
/// More is none of ours.
const MAX_LENGTH: usize = 4096;
const MAX_ADDRESSES: usize = 8;

/// Where a coordinator is, how it is known, and what it is told.
#[derive(Clone, Debug)]
pub struct Invitation {
    /// URLs of the coordinator, to be tried in their order; at least one.
    pub addresses: Vec<String>,
    /// Of a certificate in the coordinator's chain, that of its authority; nothing where it speaks no TLS.
    pub authority: Option<Fingerprint>,
    /// What is told.
    pub token: Token,
}

/// No invitation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidInvitation {
    /// Something else.
    #[error("this is no invitation: one begins with {PREFIX}, as `deltaconv workers invite` prints it")]
    Foreign,
    /// A part of one.
    #[error("the invitation is damaged: a part of it is missing or was changed; copy the whole line")]
    Damaged,
    /// What it holds is none.
    #[error("the invitation {0}")]
    Contents(&'static str),
}

impl Invitation {
    /// As it is given to its holder.
    pub fn reveal(&self) -> String {
        let message = v1::Invitation {
            addresses: self.addresses.clone(),
            authority: self.authority.map(|authority| authority.0.to_vec()).unwrap_or_default(),
            token: self.token.reveal(),
        };
        let mut bytes = message.encode_to_vec();
        let check = blake3::hash(&bytes);
        bytes.extend_from_slice(&check.as_bytes()[..CHECK]);
        format!("{PREFIX}{}", BASE64.encode(bytes))
    }
}

#[cfg(any(test, feature = "fuzzing"))]
impl Invitation {
    /// What these bytes would be with the digest that belongs to them.
    pub(crate) fn sealed(bytes: &[u8]) -> String {
        let check = blake3::hash(bytes);
        format!("{PREFIX}{}", BASE64.encode([bytes, &check.as_bytes()[..CHECK]].concat()))
    }
}

impl FromStr for Invitation {
    type Err = InvalidInvitation;

    fn from_str(text: &str) -> Result<Self, InvalidInvitation> {
        let text = text.trim();
        let encoded = text.strip_prefix(PREFIX).ok_or(InvalidInvitation::Foreign)?;
        if text.len() > MAX_LENGTH {
            return Err(InvalidInvitation::Damaged);
        }
        let bytes = BASE64.decode(encoded).map_err(|_| InvalidInvitation::Damaged)?;
        let (bytes, check) = bytes.split_last_chunk::<CHECK>().ok_or(InvalidInvitation::Damaged)?;
        if blake3::hash(bytes).as_bytes()[..CHECK] != check[..] {
            return Err(InvalidInvitation::Damaged);
        }
        let message = v1::Invitation::decode(bytes).map_err(|_| InvalidInvitation::Damaged)?;
        let addresses = message.addresses;
        let is_none = |url: &String| url.len() > 512 || url.contains(|c: char| c.is_control());
        if addresses.is_empty() || addresses.len() > MAX_ADDRESSES || addresses.iter().any(is_none) {
            return Err(InvalidInvitation::Contents("names no coordinator, or too many"));
        }
        let is_encrypted = |url: &String| url.starts_with("https://");
        let authority = match (&message.authority[..], addresses.iter().all(is_encrypted)) {
            ([], _) if addresses.iter().any(is_encrypted) => {
                return Err(InvalidInvitation::Contents("says nothing of the coordinator's authority"));
            }
            ([], _) => None,
            (_, false) => return Err(InvalidInvitation::Contents("has an address without TLS beside an authority")),
            (bytes, true) => {
                let bytes = <[u8; 32]>::try_from(bytes);
                Some(Fingerprint(bytes.map_err(|_| InvalidInvitation::Contents("has an authority that is none"))?))
            }
        };
        let token = message.token.parse().map_err(|_| InvalidInvitation::Contents("has a token that is none"))?;
        Ok(Self { addresses, authority, token })
    }
}

impl fmt::Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invitation {} to {}", self.token.id, self.addresses.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Secret;
    use super::*;

    fn invitation() -> Invitation {
        Invitation {
            addresses: vec!["https://10.0.0.5:7433".into(), "https://coordinator.example:7433".into()],
            authority: Some(Fingerprint([7; 32])),
            token: Token { id: "inv3".into(), secret: Secret::random().expect("random numbers") },
        }
    }

    #[test]
    fn an_invitation_is_read_as_it_is_given() {
        let given = invitation();
        let text = given.reveal();
        assert!(text.len() < 250 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)), "{text}");
        let read: Invitation = format!(" {text}\n").parse().expect("an invitation");
        assert_eq!((&read.addresses, read.authority), (&given.addresses, given.authority));
        assert_eq!(read.token.reveal(), given.token.reveal());
        assert!(!format!("{read} {read:?}").contains(&given.token.secret.reveal()));
    }

    #[test]
    fn a_part_of_one_and_a_changed_one_are_told_apart_from_something_else() {
        let text = invitation().reveal();
        let read = |text: &str| text.parse::<Invitation>().map(|_| ());
        for end in PREFIX.len()..text.len() {
            assert_eq!(read(&text[..end]), Err(InvalidInvitation::Damaged), "{end}");
        }
        let mut changed = text.clone().into_bytes();
        for at in PREFIX.len()..changed.len() - 1 {
            let kept = std::mem::replace(&mut changed[at], if text.as_bytes()[at] == b'A' { b'B' } else { b'A' });
            assert_eq!(read(std::str::from_utf8(&changed).expect("ASCII")), Err(InvalidInvitation::Damaged), "{at}");
            changed[at] = kept;
        }
        for foreign in ["", "worker.token", "Deltaconv1-AAAA", "eyJhbGciOi"] {
            assert_eq!(read(foreign), Err(InvalidInvitation::Foreign), "{foreign}");
        }
        let long = format!("{PREFIX}{}", "A".repeat(MAX_LENGTH));
        assert_eq!(read(&long), Err(InvalidInvitation::Damaged));
    }

    #[test]
    fn one_that_would_have_its_token_sent_to_whoever_answers_is_refused() {
        let plain = |address: &str| vec![address.to_owned()];
        let refused = |change: fn(&mut Invitation)| {
            let mut invitation = invitation();
            change(&mut invitation);
            let read = invitation.reveal().parse::<Invitation>();
            assert!(matches!(read, Err(InvalidInvitation::Contents(_))), "{read:?}");
        };
        refused(|invitation| invitation.authority = None);
        refused(|invitation| invitation.addresses.push("http://10.0.0.5:7433".into()));
        refused(|invitation| invitation.addresses.clear());
        refused(|invitation| invitation.addresses[0].push_str("\x1b[2J"));
        refused(|invitation| invitation.addresses = vec!["https://a".into(); 9]);
        let without = Invitation { addresses: plain("http://127.0.0.1:7433"), authority: None, ..invitation() };
        assert!(without.reveal().parse::<Invitation>().is_ok());
    }
}
