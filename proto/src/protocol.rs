//! Which processes understand each other.
//!
//! Worker and command line say with every call which protocol they speak and which release they are, and the coordinator says so
//! with every answer, both in gRPC's metadata: it is read before any message is, and again when a worker opens its stream to a
//! coordinator that was replaced meanwhile. Who finds the other too far away refuses, in words that name both and what to install.
//!
//! Protocols are numbered apart from releases, since many releases change nothing that others see. The minor version of [`OURS`]
//! is raised by one with the first release that adds a message, a field or a call which the other side has to heed, or that
//! changes what one means; what was there before goes on being understood and said until the version after it. The major
//! version is raised where that can't be.

use std::fmt;
use std::str::FromStr;
use std::task::{Context, Poll};

use tonic::Status;
use tonic::codegen::http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Service, StdError};

use crate::code::Code;

/// What this build speaks.
pub const OURS: Version = Version::new(0, 2);
/// What peers speak that say nothing of it: those from before it was said.
pub const UNSAID: Version = Version::new(0, 1);
/// The release of this build.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// Where a call and its answer say the protocol.
pub const PROTOCOL_METADATA: &str = "deltaconv-protocol";
/// Where they say the release.
pub const RELEASE_METADATA: &str = "deltaconv-version";

/// Characters of what a peer says of itself that are shown.
const SHOWN: usize = 32;

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Those of two of them don't understand each other.
    pub major: u32,
    /// Those of neighbours do.
    pub minor: u32,
}

/// Text that is no version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no version of a protocol: write MAJOR.MINOR")]
pub struct Malformed(pub String);

impl Version {
    /// That version.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// What a peer or a record says; [`UNSAID`] where it says nothing, or nothing that is a version.
    pub fn said(text: &str) -> Self {
        text.parse().unwrap_or(UNSAID)
    }

    /// Whether processes of the two work with each other: they are at most one minor version apart.
    pub const fn understands(self, other: Self) -> bool {
        self.major == other.major && self.minor.abs_diff(other.minor) <= 1
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for Version {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let number = |digits: &str| match digits.bytes().all(|byte| byte.is_ascii_digit()) {
            true => digits.parse().ok(),
            // A sign would do otherwise.
            false => None,
        };
        let version = text.split_once('.').and_then(|(major, minor)| Some((number(major)?, number(minor)?)));
        version.map(|(major, minor)| Self { major, minor }).ok_or_else(|| Malformed(text.chars().take(SHOWN).collect()))
    }
}

/// Who calls the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A worker.
    Worker,
    /// An operator's command.
    CommandLine,
}

impl Caller {
    /// Who calls what is at this path.
    fn of_path(path: &str) -> Self {
        if path.starts_with("/deltaconv.v1.WorkerService/") { Self::Worker } else { Self::CommandLine }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Worker => "worker",
            Self::CommandLine => "command line",
        })
    }
}

/// What one side says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Peer {
    /// Nothing where it is said, and is none.
    protocol: Option<Version>,
    /// For people.
    release: String,
}

impl Peer {
    fn ours() -> Self {
        Self { protocol: Some(OURS), release: RELEASE.to_owned() }
    }

    fn of(headers: &HeaderMap) -> Self {
        let said = |name: &str| {
            let text = headers.get(name)?.to_str().ok()?;
            Some(text.chars().filter(char::is_ascii_graphic).take(SHOWN).collect::<String>())
        };
        let protocol = match headers.contains_key(PROTOCOL_METADATA) {
            true => said(PROTOCOL_METADATA).and_then(|text| text.parse().ok()),
            false => Some(UNSAID),
        };
        Self { protocol, release: said(RELEASE_METADATA).unwrap_or_else(|| UNSAID.to_string()) }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Some(protocol) => write!(f, "deltaconv {} (protocol {protocol})", self.release),
            None => write!(f, "deltaconv {} (a protocol of which nothing is known here)", self.release),
        }
    }
}

/// What keeps the two from working with each other, and what helps; `None` where nothing does.
fn refusal(who: Caller, caller: &Peer, coordinator: &Peer) -> Option<String> {
    if let (Some(theirs), Some(its)) = (caller.protocol, coordinator.protocol)
        && theirs.understands(its)
    {
        return None;
    }
    let wanted = &coordinator.release;
    // One that nothing is known of is a later one.
    let rank = |peer: &Peer| peer.protocol.unwrap_or(Version::new(u32::MAX, 0));
    let or_else = match rank(caller) > rank(coordinator) {
        true => format!(", or upgrade the coordinator to {} first", caller.release),
        false => String::new(),
    };
    Some(format!(
        "the {who} is {caller} and the coordinator {coordinator}, and protocols more than one minor version apart don't \
         work together: install deltaconv {wanted} where the {who} is{or_else}"
    ))
}

/// Says of this process, with a call or an answer, what it speaks.
pub fn say(headers: &mut HeaderMap) {
    // Digits and a dot, which any header takes.
    if let Ok(protocol) = HeaderValue::try_from(OURS.to_string()) {
        headers.insert(PROTOCOL_METADATA, protocol);
    }
    headers.insert(RELEASE_METADATA, HeaderValue::from_static(RELEASE));
}

/// Whether these are the headers of a gRPC call or of its answer, and not a browser's or a proxy's.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Refuses, at the coordinator, a call of what lies at `path` by who is too far away.
///
/// # Errors
/// The status to answer with.
pub fn check_caller(path: &str, headers: &HeaderMap) -> Result<(), Status> {
    refuse(refusal(Caller::of_path(path), &Peer::of(headers), &Peer::ours()))
}

/// Refuses, at the caller, an answer of a coordinator that is too far away.
fn check_coordinator(who: Caller, headers: &HeaderMap) -> Result<(), Status> {
    if !is_grpc(headers) {
        return Ok(());
    }
    refuse(refusal(who, &Peer::ours(), &Peer::of(headers)))
}

fn refuse(refusal: Option<String>) -> Result<(), Status> {
    // A code of the call's that nobody takes for a coordinator which is away.
    refusal.map_or(Ok(()), |reason| Err(Code::ProtocolsDiffer.status(tonic::Code::FailedPrecondition, reason)))
}

/// A connection whose calls say what this process speaks, and whose answers are refused where the coordinator is too far away.
#[derive(Clone, Copy, Debug)]
pub struct Handshake<S> {
    inner: S,
    who: Caller,
}

impl<S> Handshake<S> {
    /// The calls of `who` through `inner`.
    pub const fn new(inner: S, who: Caller) -> Self {
        Self { inner, who }
    }
}

impl<S, B, A> Service<Request<B>> for Handshake<S>
where
    S: Service<Request<B>, Response = Response<A>>,
    S::Error: Into<StdError>,
    S::Future: Send + 'static,
{
    type Response = Response<A>;
    type Error = StdError;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        say(request.headers_mut());
        let (who, answer) = (self.who, self.inner.call(request));
        Box::pin(async move {
            let answer = answer.await.map_err(Into::<StdError>::into)?;
            check_coordinator(who, answer.headers())?;
            Ok::<_, StdError>(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::{Ready, ready};

    use prost::Message;

    use super::*;
    use crate::v1;

    /// Answers every call with what it says of itself, and remembers what was said.
    #[derive(Default)]
    struct Fake {
        protocol: Option<String>,
        heard: HeaderMap,
    }

    impl Service<Request<()>> for Fake {
        type Response = Response<()>;
        type Error = Infallible;
        type Future = Ready<Result<Response<()>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<()>) -> Self::Future {
            self.heard = request.headers().clone();
            let mut answer = Response::new(());
            answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            if let Some(protocol) = &self.protocol {
                answer.headers_mut().insert(PROTOCOL_METADATA, protocol.parse().expect("a value"));
                answer.headers_mut().insert(RELEASE_METADATA, HeaderValue::from_static("7.8.9"));
            }
            ready(Ok(answer))
        }
    }

    /// What a coordinator's answer that says this comes to.
    async fn answered(protocol: Option<String>) -> Result<(), Status> {
        let mut handshake = Handshake::new(Fake { protocol, ..Fake::default() }, Caller::Worker);
        let answered = handshake.call(Request::new(())).await.map(drop);
        assert_eq!(handshake.inner.heard[PROTOCOL_METADATA], OURS.to_string());
        assert_eq!(handshake.inner.heard[RELEASE_METADATA], RELEASE);
        answered.map_err(Status::from_error)
    }

    fn called(protocol: Option<&str>, path: &str) -> Result<(), Status> {
        let mut headers = HeaderMap::new();
        if let Some(protocol) = protocol {
            headers.insert(PROTOCOL_METADATA, protocol.parse().expect("a value"));
            headers.insert(RELEASE_METADATA, HeaderValue::from_static("7.8.9"));
        }
        check_caller(path, &headers)
    }

    /// Versions at these distances of ours, as far as there are such.
    fn neighbours() -> impl Iterator<Item = (i64, String)> {
        let minor = |distance| u32::try_from(i64::from(OURS.minor) + distance).ok();
        (-2..=2).filter_map(move |distance| Some((distance, Version::new(OURS.major, minor(distance)?).to_string())))
    }

    #[tokio::test]
    async fn one_minor_version_to_either_side_works_and_two_are_told_what_to_install() {
        for (distance, version) in neighbours() {
            let both = [
                called(Some(&version), "/deltaconv.v1.WorkerService/Join"),
                called(Some(&version), "/deltaconv.v1.OperatorService/ListJobs"),
                answered(Some(version.clone())).await,
            ];
            for (place, result) in both.into_iter().enumerate() {
                assert_eq!(result.is_ok(), distance.abs() <= 1, "{version}: {result:?}");
                let Err(status) = result else { continue };
                let message = status.message();
                assert_eq!(Code::of_status(&status), Some(Code::ProtocolsDiffer), "{message}");
                assert!(message.contains(&format!("7.8.9 (protocol {version})")), "{message}");
                assert!(message.contains(&format!("{RELEASE} (protocol {OURS})")), "{message}");
                let (wanted, who) = [(RELEASE, "worker"), (RELEASE, "command line"), ("7.8.9", "worker")][place];
                assert!(message.contains(&format!("install deltaconv {wanted} where the {who} is")), "{message}");
                let is_ahead = (distance > 0) == (place < 2);
                assert_eq!(message.contains("or upgrade the coordinator"), is_ahead, "{message}");
            }
        }
    }

    #[tokio::test]
    async fn who_says_nothing_is_of_the_first_version_and_who_says_nonsense_is_refused() {
        let understood = OURS.understands(UNSAID);
        assert_eq!(called(None, "/deltaconv.v1.WorkerService/Sync").is_ok(), understood);
        assert_eq!(answered(None).await.is_ok(), understood);
        let other_major = Version::new(OURS.major + 1, OURS.minor).to_string();
        for nonsense in ["", "2", "0.2.1", "-0.2", "0.+2", "0.two", "4294967296.0", &other_major, &"9".repeat(1000)] {
            let refused = called(Some(nonsense), "/").expect_err("refused");
            assert!(refused.message().len() < 500, "{refused}");
            answered(Some(nonsense.to_owned())).await.expect_err("refused");
        }
    }

    #[test]
    fn what_a_browser_or_a_proxy_says_is_no_statement() {
        let mut headers = HeaderMap::new();
        assert!(!is_grpc(&headers));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html"));
        headers.insert(PROTOCOL_METADATA, HeaderValue::from_static("99.0"));
        assert!(check_coordinator(Caller::Worker, &headers).is_ok());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc+proto"));
        assert!(check_coordinator(Caller::Worker, &headers).is_err());
    }

    /// What a later version adds is passed over, and a kind of task that isn't known is none.
    #[test]
    fn messages_of_a_later_version_are_read() {
        // Field 1000, a text.
        let added = [0xc2, 0x3e, 3, b'n', b'e', b'w'];
        let join = v1::JoinRequest { name: "gpu-7".into(), ..v1::JoinRequest::default() };
        let bytes = [join.encode_to_vec(), added.to_vec()].concat();
        assert_eq!(v1::JoinRequest::decode(&*bytes).expect("read"), join);
        let task = v1::TaskSpec { job: b"job".to_vec(), ..v1::TaskSpec::default() };
        let bytes = [task.encode_to_vec(), added.to_vec()].concat();
        assert_eq!(v1::TaskSpec::decode(&*bytes).expect("read"), task);
        assert_eq!(task.kind, None);
    }

    #[test]
    fn versions_are_read_as_they_are_written_and_compare_as_numbers() {
        for version in [OURS, UNSAID, Version::new(1, 10)] {
            assert_eq!(version.to_string().parse(), Ok(version));
            assert_eq!(Version::said(&version.to_string()), version);
        }
        assert_eq!((Version::said(""), Version::said("soon")), (UNSAID, UNSAID));
        assert!(Version::new(0, 10) > Version::new(0, 9) && Version::new(1, 0) > Version::new(0, 10));
    }
}
