//! The token that workers join with.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use deltaconv_proto::code::Code;
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// Why there is no token to check against.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file can't be read or written.
    #[error("token file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is there, and holds no token.
    #[error("token file {0} holds no token: it needs at least 16 characters; remove it and a new one is made")]
    Short(PathBuf),
    /// The system has no random numbers.
    #[error("no random numbers for a new token: {0}")]
    Random(String),
}

impl TokenError {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::Io { .. } | Self::Short(_) => Code::TokenFile,
            Self::Random(_) => Code::NotStarted,
        }
    }
}

/// A digest of the token; the token itself is not kept.
#[derive(Clone)]
pub(crate) struct Token(blake3::Hash);

impl Token {
    /// Reads the token in `path`; makes one, readable by its owner alone, if there is no such file.
    pub(crate) fn read_or_make(path: &Path) -> Result<Self, TokenError> {
        let io = |source| TokenError::Io { path: path.into(), source };
        let mut text = String::new();
        match File::open(path) {
            Ok(file) => {
                file.take(4096).read_to_string(&mut text).map_err(io)?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut random = [0; 32];
                getrandom::fill(&mut random).map_err(|e| TokenError::Random(e.to_string()))?;
                text = blake3::hash(&random).to_hex().to_string();
                make(path, &text).map_err(io)?;
            }
            Err(error) => return Err(io(error)),
        }
        let token = text.trim();
        if token.len() < 16 {
            return Err(TokenError::Short(path.into()));
        }
        Ok(Self(blake3::hash(token.as_bytes())))
    }
}

/// Writes the token so that it is there whole or not at all: a worker may be waiting for the file.
fn make(path: &Path, text: &str) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

impl Interceptor for Token {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let Some(token) = header.and_then(|value| value.strip_prefix("Bearer ")) else {
            return Err(unauthenticated("no token: a worker joins with --token-file"));
        };
        // Digests compare in constant time.
        if blake3::hash(token.as_bytes()) != self.0 {
            return Err(unauthenticated(
                "this token is not the coordinator's: give the worker the token file that the coordinator uses",
            ));
        }
        Ok(request)
    }
}

fn unauthenticated(message: &str) -> Status {
    Code::WrongToken.status(tonic::Code::Unauthenticated, message)
}
