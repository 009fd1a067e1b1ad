//! Secrets that are shown once.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::rand;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;

/// 32 random bytes. Never shown but by [`Secret::reveal`]; what is kept of it is its digest.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl Secret {
    /// A new one. `None` where the system has no random numbers.
    pub fn random() -> Option<Self> {
        let mut bytes = [0; 32];
        rand::fill(&mut bytes).ok().map(|()| Self(bytes))
    }

    /// What is stored of it: two of these compare in constant time.
    pub fn digest(&self) -> blake3::Hash {
        blake3::hash(&self.0)
    }

    /// As it is given to its holder: 43 characters.
    pub fn reveal(&self) -> String {
        BASE64.encode(self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// No token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no token: one has a name, a dot and 43 characters")]
pub struct InvalidToken;

/// A secret, and the name of what is known of it.
#[derive(Clone, Debug)]
pub struct Token {
    /// Of the record.
    pub id: String,
    /// What its holder knows.
    pub secret: Secret,
}

impl Token {
    /// As it is given to its holder.
    pub fn reveal(&self) -> String {
        format!("{}.{}", self.id, self.secret.reveal())
    }
}

impl FromStr for Token {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        // Longer than any of ours.
        if text.len() > 256 {
            return Err(InvalidToken);
        }
        let (id, secret) = text.rsplit_once('.').ok_or(InvalidToken)?;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b":_-".contains(&byte);
        let bytes = BASE64.decode(secret).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        match bytes {
            Some(bytes) if !id.is_empty() && id.bytes().all(is_plain) => {
                Ok(Self { id: id.to_owned(), secret: Secret(bytes) })
            }
            _ => Err(InvalidToken),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_as_they_are_given_and_show_nothing() {
        let token = Token { id: "inv7".into(), secret: Secret::random().expect("random numbers") };
        let read: Token = token.reveal().parse().expect("a token");
        assert_eq!((read.id.as_str(), read.secret.digest()), ("inv7", token.secret.digest()));
        let shown = format!("{token:?}");
        assert!(!shown.contains(&token.secret.reveal()), "{shown}");
        let short = token.reveal().replace('A', "").chars().take(40).collect::<String>();
        let long = format!("{}{}", "a".repeat(300), token.reveal());
        for wrong in ["", ".", "inv7", "inv7.", &token.secret.reveal(), &short, &long, "a b.c"] {
            assert_eq!(wrong.parse::<Token>().map(|_| ()), Err(InvalidToken), "{wrong}");
        }
    }
}
