//! Who may call what: asked of every call before anything else sees it. What isn't named here is for operators alone.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use deltaconv_proto::code::Code;
use deltaconv_proto::protocol;
use deltaconv_proto::tls::{Role, Token};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN};
use http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::rates::Slot;
use super::{Access, Peer, Register, Who};
use crate::schedule::LOCAL;

/// Who may call something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    /// Everybody: it tells nothing, or asks for a token itself.
    Everybody,
    /// Who looks, and who operates.
    Viewers,
    /// Who operates.
    Operators,
    /// Who computes.
    Workers,
}

impl Open {
    fn of(path: &str) -> Self {
        let Some(rest) = path.strip_prefix("/deltaconv.v1.") else {
            // The page, its streams and the figures.
            return match path {
                "/healthz" | "/readyz" => Self::Everybody,
                _ => Self::Viewers,
            };
        };
        match rest.split_once('/') {
            Some(("EnrolmentService", "Enrol")) => Self::Everybody,
            Some(("WorkerService", _)) => Self::Workers,
            Some((
                "OperatorService",
                "ListJobs" | "GetJob" | "WatchJob" | "GetReport" | "Explain" | "ListWorkers" | "Events" | "Logs"
                | "Demand",
            )) => Self::Viewers,
            _ => Self::Operators,
        }
    }

    fn is_open_to(self, role: Option<Role>) -> bool {
        match self {
            Self::Everybody => true,
            Self::Viewers => matches!(role, Some(Role::Viewer | Role::Operator)),
            Self::Operators => role == Some(Role::Operator),
            Self::Workers => role == Some(Role::Worker),
        }
    }
}

/// Puts a [`Guard`] before services.
#[derive(Clone)]
pub(crate) struct Guarded(pub(crate) Access);

impl<S> Layer<S> for Guarded {
    type Service = Guard<S>;

    fn layer(&self, inner: S) -> Guard<S> {
        Guard { inner, access: self.0.clone() }
    }
}

/// Lets calls through that their callers may make, and says who they are: a [`Who`] is among each request's extensions.
#[derive(Clone)]
pub(crate) struct Guard<S> {
    inner: S,
    access: Access,
}

impl Access {
    /// Who calls.
    fn who(&self, peer: &Peer, authorization: Option<&HeaderValue>) -> Result<Who, Status> {
        let who = |role, name: &str| Who { role, name: name.into(), from: peer.address };
        if peer.is_encrypted {
            if let Some(reason) = &peer.refused {
                let message = format!("the coordinator does not accept your certificate: {reason}");
                return Err(Code::Untrusted.status(tonic::Code::Unauthenticated, message));
            }
            let Some(identity) = &peer.identity else { return Ok(who(None, "")) };
            return match self.register.admits(identity) {
                true => Ok(who(Some(identity.role), &identity.to_string())),
                false => {
                    let message = format!("{identity} was revoked, or is not known here: it has to be invited again");
                    Err(Code::Revoked.status(tonic::Code::PermissionDenied, message))
                }
            };
        }
        // Who reaches a coordinator without TLS is trusted as who started it, which --allow-plaintext says.
        let Some(authorization) = authorization else { return Ok(who(Some(Role::Operator), LOCAL)) };
        let wrong = |message| Code::WrongToken.status(tonic::Code::Unauthenticated, message);
        let text = authorization.to_str().ok().and_then(|value| value.strip_prefix("Bearer "));
        let text = text.ok_or_else(|| wrong("the authorization of this call is none: it says `Bearer TOKEN`"))?;
        if self.token.as_ref().is_some_and(|token| token.is(text)) {
            return Ok(who(Some(Role::Worker), LOCAL));
        }
        match text.parse::<Token>() {
            Ok(token) if self.register.knows(&token) => Ok(who(Some(Role::Worker), &token.id)),
            Ok(token) if token.id.starts_with("worker:") => {
                let message = format!("{} was revoked, or ran out: it has to be invited again", token.id);
                Err(Code::Revoked.status(tonic::Code::PermissionDenied, message))
            }
            _ => Err(wrong(
                "this token is not the coordinator's: give the worker an invitation or the token file of this one",
            )),
        }
    }

    /// Whether the caller may call this now.
    fn check(&self, who: &Who, path: &str) -> Result<(), Status> {
        let open = Open::of(path);
        if !open.is_open_to(who.role) {
            return Err(match (open, who.role) {
                // Also of who shows nothing to a coordinator that speaks no TLS: an operator, there.
                (Open::Workers, Some(Role::Operator)) if &*who.name == LOCAL => {
                    let message = "no token: a worker joins with --invitation or --token-file";
                    Code::WrongToken.status(tonic::Code::Unauthenticated, message)
                }
                (_, None) => {
                    let message = "the coordinator wants to know who calls: name the file with your certificate with --credentials";
                    Code::NoCredentials.status(tonic::Code::Unauthenticated, message)
                }
                (_, Some(role)) => {
                    let may = match open {
                        Open::Workers => "workers join and report",
                        Open::Operators => "operators change something",
                        Open::Viewers | Open::Everybody => "viewers and operators look",
                    };
                    let message = format!("{} is {role} here, and only {may}", who.name);
                    Code::Denied.status(tonic::Code::PermissionDenied, message)
                }
            });
        }
        let may = match who.role {
            None => self.rates.strange_call(who.from.ip()),
            Some(_) => &*who.name == LOCAL || self.rates.call(&who.name),
        };
        match may {
            true => Ok(()),
            false => Err(too_many(format!("{who} calls too often"))),
        }
    }
}

/// Whether a request to a coordinator without TLS on this machine names this machine: a page elsewhere can have its own name
/// lead here.
pub(super) fn is_named_rightly<B>(peer: &Peer, request: &Request<B>) -> bool {
    if peer.is_encrypted || !peer.address.ip().is_loopback() {
        return true;
    }
    let header = || request.headers().get(HOST)?.to_str().ok()?.parse::<http::uri::Authority>().ok();
    let named = request.uri().authority().cloned().or_else(header);
    named.is_some_and(|named| {
        let host = named.host().trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok()
    })
}

/// That a peer asks for too much.
pub(crate) fn too_many(message: String) -> Status {
    Code::TooMany.status(tonic::Code::ResourceExhausted, message)
}

/// The refusal as whoever called understands it.
fn refusal(status: &Status, is_grpc: bool) -> Response<Body> {
    if is_grpc {
        let mut response = status.clone().into_http();
        // As every answer: else this would be a coordinator from before versions were said.
        protocol::say(response.headers_mut());
        return response;
    }
    let of_http = match status.code() {
        tonic::Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        tonic::Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::FORBIDDEN,
    };
    let code = Code::of_status(status).map_or("", Code::as_str);
    let text = format!("{code}: {}\n", status.message());
    let mut response = Response::new(Body::new(http_body_util::Full::from(text).map_err(|never| match never {})));
    *response.status_mut() = of_http;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

impl<S, Answer> Service<Request<Body>> for Guard<S>
where
    S: Service<Request<Body>, Response = Response<Answer>> + Clone + Send + 'static,
    S::Future: Send,
    Answer: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    Answer::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let is_grpc = protocol::is_grpc(request.headers());
        let peer = request.extensions().get::<Peer>().cloned();
        let path = request.uri().path().to_owned();
        let denied = |who: &Who, status: Status| -> Self::Future {
            self.access.denied(who, &path, &status);
            let response = refusal(&status, is_grpc);
            Box::pin(async move { Ok(response) })
        };
        // Browsers send what any page tells them to, and with it the certificate of whoever looks at that page. None of them calls
        // as our own clients do without asking first, which is not answered.
        let is_call = request.uri().path().starts_with("/deltaconv.v1.");
        let is_ours = is_grpc && request.version() == Version::HTTP_2 && !request.headers().contains_key(ORIGIN);
        let nobody = || Who { role: None, name: "".into(), from: ([0, 0, 0, 0], 0).into() };
        let Some(peer) = peer else {
            // Each connection says who its peer is; one that doesn't is none of ours.
            return denied(&nobody(), Code::Fault.status(tonic::Code::Internal, "nothing is known of this connection"));
        };
        if is_call && !is_ours || !is_named_rightly(&peer, &request) {
            let message = "this is how a page of another site would call, and not how deltaconv does";
            let who = Who { from: peer.address, ..nobody() };
            return denied(&who, Code::Denied.status(tonic::Code::PermissionDenied, message));
        }
        let who = match self.access.who(&peer, request.headers().get(AUTHORIZATION)) {
            Ok(who) => who,
            Err(status) => {
                let name = peer.identity.as_ref().map_or_else(|| "".into(), |identity| identity.to_string().into());
                return denied(&Who { role: None, name, from: peer.address }, status);
            }
        };
        if let Err(status) = self.access.check(&who, &path) {
            return denied(&who, status);
        }
        // Workers have a call each, and one without TLS is one machine's.
        let is_bounded = !matches!(who.role, None | Some(Role::Worker)) && &*who.name != LOCAL;
        let slot = if is_bounded { self.access.rates.begin(&who.name).map(Some) } else { Some(None) };
        let Some(slot) = slot else {
            return denied(&who, too_many(format!("{who} has too many calls at a time")));
        };
        let name = who.name.clone();
        request.extensions_mut().insert(who);
        let answer = self.inner.call(request);
        let register = self.access.register.clone();
        Box::pin(async move {
            let response = answer.await?;
            Ok(response.map(|body| Body::new(Held { body: Box::pin(body), name, register, _slot: slot })))
        })
    }
}

/// What is answered, while its caller is not revoked: a stream may last for days. It counts for as long as it lasts.
struct Held<B> {
    body: Pin<Box<B>>,
    name: Arc<str>,
    register: Arc<Register>,
    _slot: Option<Slot<Arc<str>>>,
}

impl<B: http_body::Body> http_body::Body for Held<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.get_mut();
        match this.register.is_revoked(&this.name) {
            // It breaks off: the next call is told why.
            true => Poll::Ready(None),
            false => this.body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_has_its_calls_and_no_others() {
        let may = |role, path: &str| Open::of(path).is_open_to(role);
        let operator = "/deltaconv.v1.OperatorService";
        let [worker, viewer, alice] = [Role::Worker, Role::Viewer, Role::Operator].map(Some);
        for change in [
            "Submit",
            "Plan",
            "CancelJob",
            "PauseJob",
            "Retry",
            "CollectGarbage",
            "DrainWorker",
            "Invite",
            "Revoke",
            "ListAccess",
            "Later",
        ] {
            let path = format!("{operator}/{change}");
            assert_eq!(
                [worker, viewer, alice, None].map(|role| may(role, &path)),
                [false, false, true, false],
                "{path}"
            );
        }
        for look in
            ["ListJobs", "GetJob", "WatchJob", "GetReport", "Explain", "ListWorkers", "Events", "Logs", "Demand"]
        {
            let path = format!("{operator}/{look}");
            assert_eq!(
                [worker, viewer, alice, None].map(|role| may(role, &path)),
                [false, true, true, false],
                "{path}"
            );
        }
        for path in ["/", "/metrics", "/api/jobs", "/page.css", "/healthz/", "//healthz", "/deltaconv"] {
            assert_eq!([worker, viewer, alice, None].map(|role| may(role, path)), [false, true, true, false], "{path}");
        }
        for path in [
            "/deltaconv.v1.WorkerService/Join",
            "/deltaconv.v1.WorkerService/Sync",
            "/deltaconv.v1.WorkerService/Renew",
        ] {
            assert_eq!(
                [worker, viewer, alice, None].map(|role| may(role, path)),
                [true, false, false, false],
                "{path}"
            );
        }
        for path in ["/healthz", "/readyz", "/deltaconv.v1.EnrolmentService/Enrol"] {
            assert_eq!([worker, viewer, alice, None].map(|role| may(role, path)), [true; 4], "{path}");
        }
        for path in [
            "/deltaconv.v1.EnrolmentService/Other",
            "/deltaconv.v1.Nothing/Else",
            "/deltaconv.v1.",
            "/deltaconv.v1.OperatorService",
        ] {
            assert_eq!(
                [worker, viewer, alice, None].map(|role| may(role, path)),
                [false, false, true, false],
                "{path}"
            );
        }
    }
}
