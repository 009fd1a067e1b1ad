//! Has peers and the coordinator say which protocol they speak, before anything else is said.

use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::Response;
use deltaconv_proto::protocol;
use tonic::service::Routes;

/// The same routes, where gRPC calls of peers that are too far away are told what to install, whatever they call. Pages and what
/// monitoring asks are for anybody.
pub(crate) fn with_handshake(routes: Routes) -> Routes {
    Routes::from(routes.into_axum_router().layer(middleware::from_fn(handshake)))
}

async fn handshake(request: Request, next: Next) -> Response {
    if !protocol::is_grpc(request.headers()) {
        return next.run(request).await;
    }
    let path = request.uri().path();
    let mut answer = match protocol::check_caller(path, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refused) => {
            tracing::warn!(path, reason = refused.message(), "a peer of another version is refused");
            refused.into_http()
        }
    };
    protocol::say(answer.headers_mut());
    answer
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::{self, Body};
    use axum::http::HeaderMap;
    use axum::http::header::CONTENT_TYPE;
    use deltaconv_proto::code::Code;
    use deltaconv_proto::objects::Allowed;
    use deltaconv_proto::protocol::{OURS, Version};
    use deltaconv_proto::tls::Role;
    use deltaconv_proto::v1;
    use deltaconv_proto::v1::operator_service_server::OperatorServiceServer;
    use deltaconv_proto::v1::worker_service_server::WorkerServiceServer;
    use prost::Message;
    use tokio_util::sync::CancellationToken;
    use tonic::Status;
    use tonic::codegen::Service;

    use super::*;
    use crate::access::Who;
    use crate::api::{Doors, LogDesk, OperatorApi, Wakers, WorkerApi, WorkerDoor, http};
    use crate::observe::metrics::Metrics;
    use crate::running::Running;
    use crate::term::Terms;

    /// All that a coordinator serves.
    fn routes(running: &Running) -> Routes {
        let (core, metrics, minute) = (running.core.clone(), Metrics::new(), Duration::from_secs(60));
        let web = http::router(&core, &metrics);
        let access = running.access(metrics.clone());
        let worker = WorkerApi::new(core.clone(), Wakers::default(), LogDesk::default(), metrics, minute, minute);
        let worker = WorkerDoor::new(worker, access.clone());
        let terms = Terms::new(&running.identity, "node-a").expect("terms");
        let doors = Doors { access, stores: Allowed::any() };
        let (logs, backups, end) = (LogDesk::default(), running.backups(), CancellationToken::new());
        let operator = OperatorApi::new(core, terms, logs, doors, backups, end);
        let routes = Routes::from(web).add_service(WorkerServiceServer::new(worker));
        with_handshake(routes.add_service(OperatorServiceServer::new(operator)))
    }

    /// What a peer is answered that says this of itself, and sends a message with a field that nobody knows.
    async fn call(routes: &mut Routes, path: &str, protocol: Option<&str>, message: &impl Message) -> Answer {
        // Field 1000, a text.
        let message = [&message.encode_to_vec()[..], &[0xc2, 0x3e, 3], b"new"].concat();
        let length = u32::try_from(message.len()).expect("small").to_be_bytes();
        let framed = [&[0][..], &length, &message].concat();
        let request = axum::http::Request::post(format!("http://coordinator{path}"));
        let mut request = request.header(CONTENT_TYPE, "application/grpc").header("te", "trailers");
        if let Some(protocol) = protocol {
            request = request.header(protocol::PROTOCOL_METADATA, protocol);
        }
        let mut request = request.body(Body::from(framed)).expect("a request");
        // As the guard has found out.
        let who = Who { role: Some(Role::Operator), name: "local".into(), from: ([127, 0, 0, 1], 1).into() };
        request.extensions_mut().insert(who);
        let answer = routes.call(request).await.expect("answered");
        let (parts, body) = answer.into_parts();
        let body = body::to_bytes(Body::new(body), 1 << 20).await.expect("a body");
        Answer { headers: parts.headers, message: body.get(5..).unwrap_or_default().to_vec() }
    }

    struct Answer {
        headers: HeaderMap,
        /// The first message, if there is one.
        message: Vec<u8>,
    }

    #[tokio::test]
    async fn peers_one_version_away_are_served_and_those_farther_away_are_told_what_to_install() {
        let running = Running::new().await;
        let mut routes = routes(&running);
        for distance in -2..=2 {
            let Some(minor) = OURS.minor.checked_add_signed(distance) else { continue };
            let version = Version::new(OURS.major, minor).to_string();
            let join = v1::JoinRequest { name: format!("of {version}"), ..v1::JoinRequest::default() };
            let joined = call(&mut routes, "/deltaconv.v1.WorkerService/Join", Some(&version), &join).await;
            let listed = v1::ListJobsRequest {};
            let listed = call(&mut routes, "/deltaconv.v1.OperatorService/ListJobs", Some(&version), &listed).await;
            for answer in [&joined, &listed] {
                assert_eq!(answer.headers[protocol::PROTOCOL_METADATA], OURS.to_string());
                let refused = Status::from_header_map(&answer.headers);
                assert_eq!(refused.is_some(), distance.abs() == 2, "{version}: {refused:?}");
                let Some(refused) = refused else { continue };
                assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
                assert_eq!(Code::of_status(&refused), Some(Code::ProtocolsDiffer));
                assert!(refused.message().contains("install deltaconv"), "{refused}");
            }
            if distance.abs() < 2 {
                let joined = v1::JoinResponse::decode(&*joined.message).expect("an answer");
                assert!(joined.worker_id.starts_with('w'), "{joined:?}");
                assert_eq!(v1::ListJobsResponse::decode(&*listed.message).expect("an answer").jobs.len(), 1);
            }
        }
        let workers = running.core.call(|state, now, _| state.worker_statuses(now)).await.expect("served");
        let refused = format!("of {}", Version::new(OURS.major, OURS.minor + 2));
        assert!(!workers.iter().any(|worker| worker.name == refused), "who is refused has not joined");
    }

    #[tokio::test]
    async fn those_from_before_it_was_said_are_of_the_first_version_and_pages_are_for_anybody() {
        let running = Running::new().await;
        let mut routes = routes(&running);
        let join = v1::JoinRequest::default();
        let joined = call(&mut routes, "/deltaconv.v1.WorkerService/Join", None, &join).await;
        let refused = Status::from_header_map(&joined.headers);
        assert_eq!(refused.is_none(), OURS.understands(protocol::UNSAID), "{refused:?}");

        let page = axum::http::Request::get("http://coordinator/healthz");
        let page = page.header(protocol::PROTOCOL_METADATA, "99.0").body(Body::empty()).expect("a request");
        assert!(routes.call(page).await.expect("answered").status().is_success());
    }
}
