//! Commands and workers that meet a coordinator of another version.

use std::process::Output;

use deltaconv_proto::code::Code;
use deltaconv_proto::protocol::{self, OURS, Version};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::{AxumBody, AxumRouter, Routes};
use tonic::transport::Server;

use crate::process::{deltaconv, said};

const REFUSAL: &str = "nobody is known here";

/// A coordinator that says of itself which protocol it speaks, and refuses whatever it is asked.
struct Other {
    url: String,
    // It serves as long as this is there.
    _runtime: Runtime,
}

impl Other {
    fn start(protocol: Option<String>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let answer = move || {
            let mut answer = Code::UnknownJob.status(tonic::Code::NotFound, REFUSAL).into_http::<AxumBody>();
            if let Some(protocol) = &protocol {
                answer.headers_mut().insert(protocol::PROTOCOL_METADATA, protocol.parse().expect("a value"));
                answer.headers_mut().insert(protocol::RELEASE_METADATA, "7.8.9".parse().expect("a value"));
            }
            async move { answer }
        };
        let routes = Routes::from(AxumRouter::new().fallback(answer));
        let serve = Server::builder().add_routes(routes).serve_with_incoming(TcpListenerStream::new(listener));
        runtime.spawn(serve);
        Self { url, _runtime: runtime }
    }

    /// What an operator's command and a worker come to.
    fn met(&self) -> [Output; 2] {
        let folder = tempfile::tempdir().expect("a folder");
        let token = folder.path().join("worker.token");
        std::fs::write(&token, "a token of no coordinator").expect("written");
        let mut worker = deltaconv();
        worker.args(["worker", "--threads", "1", "--coordinator", &self.url, "--token-file"]).arg(token);
        let mut jobs = deltaconv();
        jobs.args(["jobs", "--coordinator", &self.url]);
        [jobs, worker].map(|mut command| command.output().expect("runs"))
    }
}

#[test]
fn a_coordinator_two_versions_away_is_refused_with_what_to_install() {
    for distance in -2..=2 {
        let Some(minor) = OURS.minor.checked_add_signed(distance) else { continue };
        let version = Version::new(OURS.major, minor).to_string();
        for output in Other::start(Some(version.clone())).met() {
            let text = said(&output);
            assert_eq!(output.status.code(), Some(2), "{version}: {text}");
            // Where they understand each other, it is the coordinator that refuses.
            assert_eq!(text.contains(REFUSAL), distance.abs() < 2, "{version}: {text}");
            let told = text.contains("error[DC0022]") && text.contains("install deltaconv 7.8.9");
            assert_eq!(told, distance.abs() == 2, "{version}: {text}");
        }
    }
}

#[test]
fn a_coordinator_from_before_versions_were_said_is_of_the_first() {
    for output in Other::start(None).met() {
        assert_eq!(said(&output).contains(REFUSAL), OURS.understands(protocol::UNSAID), "{}", said(&output));
    }
}
