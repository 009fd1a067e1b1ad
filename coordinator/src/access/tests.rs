//! A coordinator with certificates, and peers of all kinds that call it.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use deltaconv_proto::code::Code;
use deltaconv_proto::objects::Allowed;
use deltaconv_proto::tls::{Bundle, Connector, Credentials, Fingerprint, Identity, Role, SocketError, Token};
use deltaconv_proto::v1;
use deltaconv_proto::v1::enrolment_service_client::EnrolmentServiceClient;
use deltaconv_proto::v1::operator_service_client::OperatorServiceClient;
use deltaconv_proto::v1::worker_service_client::WorkerServiceClient;
use rcgen::{KeyPair, PublicKeyData};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::tls::Tls;
use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);
const TIMEOUT: Duration = Duration::from_secs(20);

/// An authority's files in a folder, as `deltaconv certs init` makes them.
struct Certs {
    folder: tempfile::TempDir,
    authority: Authority,
}

impl Certs {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (authority, _) = Authority::make("authority").expect("made");
        std::fs::write(folder.path().join("authority.pem"), authority.pem()).expect("written");
        let certs = Self { folder, authority };
        certs.renew(90 * DAY);
        certs
    }

    /// Makes the coordinator's certificate anew.
    fn renew(&self, valid: Duration) {
        let issued = self.authority.server(&["127.0.0.1".into(), "localhost".into()], valid).expect("signed");
        self.write("coordinator.key", &issued.key);
        self.write("coordinator.pem", &[issued.certificate.as_str(), self.authority.pem()].concat());
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("written");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn files(&self) -> TlsFiles {
        let [certificate, key, authority] =
            ["coordinator.pem", "coordinator.key", "authority.pem"].map(|name| self.path(name));
        TlsFiles { certificate, key, authority }
    }

    /// What somebody shows whom `signer` signed, and who trusts this authority.
    fn credentials(&self, signer: &Authority, identity: &str) -> Credentials {
        let identity: Identity = identity.parse().expect("an identity");
        let issued = signer.client(&identity, 90 * DAY).expect("signed");
        let path = self.path(&format!("{}.pem", identity.name()));
        std::fs::write(&path, [&issued.certificate, &issued.key, self.authority.pem()].concat()).expect("written");
        Credentials::read(&path).expect("a bundle")
    }
}

/// A whole coordinator.
struct Served {
    certs: Certs,
    url: String,
    state: PathBuf,
    shutdown: CancellationToken,
    service: JoinHandle<Result<(), crate::Error>>,
}

impl Served {
    async fn start(certs: Certs) -> Self {
        let state = certs.path("state");
        let address_file = certs.path("address");
        let options = crate::Options {
            state: state.clone(),
            listen: ([127, 0, 0, 1], 0).into(),
            tls: Some(certs.files()),
            token_file: state.join("worker.token"),
            stores: Allowed::new(&["s3://bucket/jobs".into()]).expect("a URL"),
            address_file: Some(address_file.clone()),
            lease_ttl: Duration::from_secs(10),
            checkpoint_interval: Duration::from_secs(10),
            keep_free: 0,
            snapshots: None,
            #[cfg(feature = "webhook")]
            webhook: None,
            host: "test".into(),
        };
        let shutdown = CancellationToken::new();
        let service = tokio::spawn(crate::run(options, shutdown.clone()));
        let url = tokio::time::timeout(TIMEOUT, async {
            loop {
                match tokio::fs::read_to_string(&address_file).await {
                    Ok(url) => return url,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        });
        let url = url.await.expect("listens");
        assert!(url.starts_with("https://"), "{url}");
        Self { certs, url, state, shutdown, service }
    }

    async fn channel(&self, credentials: Credentials) -> Result<Channel, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(self.url.clone()).expect("a URL");
        endpoint.connect_with_connector(Connector::new(credentials, TIMEOUT)).await
    }

    async fn as_operator(&self, identity: &str) -> OperatorServiceClient<Channel> {
        let credentials = self.certs.credentials(&self.certs.authority, identity);
        OperatorServiceClient::new(self.channel(credentials).await.expect("connects"))
    }

    /// A token that so many may take.
    async fn invite(&self, uses: u32) -> v1::InviteResponse {
        let mut alice = self.as_operator("operator:alice").await;
        let request = v1::InviteRequest { valid_ms: 60_000, uses };
        alice.invite(request).await.expect("invited").into_inner()
    }

    async fn enrol(&self, token: &str, key: &KeyPair) -> Result<v1::EnrolResponse, Status> {
        let authority = Fingerprint::of(self.certs.authority.certificate());
        let channel = self.channel(Credentials::pinned(authority).expect("credentials")).await.expect("connects");
        let public_key = key.subject_public_key_info();
        let request = v1::EnrolRequest { token: token.into(), name: "gpu-7".into(), public_key };
        Ok(EnrolmentServiceClient::new(channel).enrol(request).await?.into_inner())
    }

    /// A connection of a worker that took an invitation of its own, and its identity.
    async fn worker(&self) -> (Channel, String) {
        let invited = self.invite(1).await;
        let key = KeyPair::generate().expect("a key");
        let enrolled = self.enrol(&invited.token, &key).await.expect("enrolled");
        let authority = Fingerprint(invited.authority.try_into().expect("a fingerprint"));
        let credentials = Credentials::pinned_with(authority, enrolled.certificates, key.serialize_der());
        (self.channel(credentials.expect("credentials")).await.expect("connects"), enrolled.identity)
    }

    async fn stop(self) -> Certs {
        self.shutdown.cancel();
        self.service.await.expect("no panic").expect("ends well");
        self.certs
    }
}

fn code<T>(answer: Result<T, Status>) -> Option<Code> {
    Code::of_status(&answer.err().expect("refused"))
}

#[tokio::test]
async fn each_role_does_its_own_and_nothing_else() {
    let served = Served::start(Certs::new()).await;
    let mut viewer = served.as_operator("viewer:bob").await;
    viewer.list_jobs(v1::ListJobsRequest {}).await.expect("looks");
    let cancel = v1::CancelJobRequest { job_id: "a-1".into(), ..v1::CancelJobRequest::default() };
    assert_eq!(code(viewer.cancel_job(cancel.clone()).await), Some(Code::Denied));
    assert_eq!(code(viewer.invite(v1::InviteRequest::default()).await), Some(Code::Denied));

    let mut operator = served.as_operator("operator:alice").await;
    assert_eq!(code(operator.cancel_job(cancel.clone()).await), Some(Code::UnknownJob));

    let authority = Fingerprint::of(served.certs.authority.certificate());
    let channel = served.channel(Credentials::pinned(authority).expect("credentials")).await.expect("connects");
    let mut stranger = OperatorServiceClient::new(channel.clone());
    assert_eq!(code(stranger.list_jobs(v1::ListJobsRequest {}).await), Some(Code::NoCredentials));
    assert_eq!(
        code(WorkerServiceClient::new(channel).join(v1::JoinRequest::default()).await),
        Some(Code::NoCredentials)
    );

    let (channel, identity) = served.worker().await;
    let mut thief = OperatorServiceClient::new(channel.clone());
    assert_eq!(code(thief.list_jobs(v1::ListJobsRequest {}).await), Some(Code::Denied));
    assert_eq!(code(thief.get_job(v1::GetJobRequest { job_id: "a-1".into() }).await), Some(Code::Denied));
    assert_eq!(code(thief.plan(v1::PlanRequest::default()).await), Some(Code::Denied));
    assert_eq!(code(thief.submit(v1::SubmitRequest::default()).await), Some(Code::Denied));
    assert_eq!(code(thief.cancel_job(cancel).await), Some(Code::Denied));
    assert_eq!(code(thief.revoke(v1::RevokeRequest { id: identity.clone() }).await), Some(Code::Denied));
    WorkerServiceClient::new(channel).join(v1::JoinRequest::default()).await.expect("joins");

    let audit = std::fs::read_to_string(served.state.join("audit.jsonl")).expect("an audit log");
    let lines: Vec<serde_json::Value> = audit.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let has = |who: &str, did: &str, outcome: &str| {
        lines.iter().any(|line| line["who"] == who && line["did"] == did && line["outcome"] == outcome)
    };
    assert!(has("viewer:bob", "/deltaconv.v1.OperatorService/CancelJob", "denied"), "{audit}");
    assert!(has("operator:alice", "CancelJob", "refused") && has("operator:alice", "Invite", "done"), "{audit}");
    assert!(has("", "Enrol", "done") && has(&identity, "Join", "done"), "{audit}");
    assert!(has(&identity, "/deltaconv.v1.OperatorService/Submit", "denied"), "{audit}");
    served.stop().await;
}

#[tokio::test]
async fn a_refusal_tells_nothing_of_what_is_there() {
    let served = Served::start(Certs::new()).await;
    let (thief, _) = served.worker().await;
    let (_, there) = served.worker().await;
    let authority = Fingerprint::of(served.certs.authority.certificate());
    let stranger = served.channel(Credentials::pinned(authority).expect("credentials")).await.expect("connects");
    for channel in [thief, stranger] {
        let mut caller = OperatorServiceClient::new(channel);
        let mut refusal = async |id: &str| {
            let refused = caller.revoke(v1::RevokeRequest { id: id.into() }).await.expect_err("refused");
            (refused.code(), Code::of_status(&refused), refused.message().to_owned())
        };
        assert_eq!(refusal(&there).await, refusal("worker:99-x").await);
    }
    let mut alice = served.as_operator("operator:alice").await;
    alice.revoke(v1::RevokeRequest { id: there }).await.expect("it was there all the time");
    served.stop().await;
}

#[tokio::test]
async fn a_worker_speaks_for_itself_alone() {
    let served = Served::start(Certs::new()).await;
    let ((honest, _), (thief, _)) = (served.worker().await, served.worker().await);
    let joined = WorkerServiceClient::new(honest.clone()).join(v1::JoinRequest::default()).await.expect("joins");
    let worker_id = joined.into_inner().worker_id;
    let sync = async |channel: Channel| {
        let request = v1::SyncRequest { worker_id: worker_id.clone(), number: 1, ..v1::SyncRequest::default() };
        let mut answers = WorkerServiceClient::new(channel).sync(futures::stream::iter([request])).await?.into_inner();
        answers.message().await
    };
    sync(honest).await.expect("answered");
    assert_eq!(code(sync(thief).await), Some(Code::Denied));
    served.stop().await;
}

#[tokio::test]
async fn an_invitation_is_taken_as_often_as_it_may_be_and_nothing_of_it_is_kept() {
    let served = Served::start(Certs::new()).await;
    let invited = served.invite(2).await;
    let [first, second, third] = [(); 3].map(|()| KeyPair::generate().expect("a key"));
    let one = served.enrol(&invited.token, &first).await.expect("enrolled");
    let again = served.enrol(&invited.token, &first).await.expect("an answer was lost, it asks again");
    assert_eq!(one.identity, again.identity);
    let other = served.enrol(&invited.token, &second).await.expect("enrolled");
    assert_ne!(one.identity, other.identity);
    assert_eq!(code(served.enrol(&invited.token, &third).await), Some(Code::InvitationOver));
    let known = served.enrol(&invited.token, &first).await.expect("who took it goes on having it");
    assert_eq!(known.identity, one.identity);

    let guessed: Token = invited.token.parse().expect("a token");
    let guessed = format!("{}.{}", guessed.id, deltaconv_proto::tls::Secret::random().expect("random").reveal());
    assert_eq!(code(served.enrol(&guessed, &third).await), Some(Code::InvitationOver));
    assert_eq!(code(served.enrol("no token", &third).await), Some(Code::Invitation));

    let invited = served.invite(0).await;
    let id = invited.invitation.expect("told").id;
    let mut alice = served.as_operator("operator:alice").await;
    alice.revoke(v1::RevokeRequest { id }).await.expect("revoked");
    assert_eq!(code(served.enrol(&invited.token, &third).await), Some(Code::InvitationOver));

    let secret = invited.token.rsplit_once('.').expect("a token").1.as_bytes().to_vec();
    let state = served.state.clone();
    let _certs = served.stop().await;
    for file in walk(&state) {
        let bytes = std::fs::read(&file).expect("read");
        assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{}", file.display());
    }
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn who_is_revoked_is_out_at_once_and_their_streams_end() {
    let served = Served::start(Certs::new()).await;
    let (channel, identity) = served.worker().await;
    let mut worker = WorkerServiceClient::new(channel);
    let joined = worker.join(v1::JoinRequest::default()).await.expect("joins").into_inner();
    let (requests, sent) = tokio::sync::mpsc::channel(4);
    let request =
        |number| v1::SyncRequest { worker_id: joined.worker_id.clone(), number, ..v1::SyncRequest::default() };
    requests.send(request(1)).await.expect("room");
    let mut answers = worker.sync(tokio_stream::wrappers::ReceiverStream::new(sent)).await.expect("opens").into_inner();
    answers.message().await.expect("answered").expect("an answer");

    let mut bob = served.as_operator("viewer:bob").await;
    let follow = v1::EventsRequest { follow: true, ..v1::EventsRequest::default() };
    let mut events = bob.events(follow).await.expect("follows").into_inner();
    events.message().await.expect("an event").expect("the coordinator started");

    let mut alice = served.as_operator("operator:alice").await;
    for id in [identity.clone(), "viewer:bob".to_owned()] {
        alice.revoke(v1::RevokeRequest { id }).await.expect("revoked");
    }
    requests.send(request(2)).await.expect("room");
    // The stream says why, or breaks off where it was about to be written.
    assert!(!matches!(answers.message().await, Ok(Some(_))), "no more answers");
    assert_eq!(code(worker.join(v1::JoinRequest::default()).await), Some(Code::Revoked));
    assert_eq!(code(bob.list_jobs(v1::ListJobsRequest {}).await), Some(Code::Revoked));
    let ended = tokio::time::timeout(TIMEOUT, async { while let Ok(Some(_)) = events.message().await {} });
    ended.await.expect("the stream ends");
    let unknown = v1::RevokeRequest { id: "worker:99-x".into() };
    assert_eq!(code(alice.revoke(unknown).await), Some(Code::UnknownWorker));
    served.stop().await;
}

#[tokio::test]
async fn certificates_of_others_and_of_the_wrong_authority_are_nobodys() {
    let served = Served::start(Certs::new()).await;
    let (foreign, _) = Authority::make("another authority").expect("made");
    let channel = served.channel(served.certs.credentials(&foreign, "operator:mallory")).await.expect("connects");
    let listed = OperatorServiceClient::new(channel).list_jobs(v1::ListJobsRequest {}).await.map(|_| ());
    let status = listed.expect_err("signed by somebody else");
    assert_eq!(Code::of_status(&status), Some(Code::Untrusted));
    assert!(status.message().contains("doesn't know"), "{}", status.message());

    let [certificate, key] = WORKERS.map(|name| served.state.join(name));
    let workers = Authority::open(&certificate, &key).expect("the coordinator's own");
    for (signer, identity) in [(&workers, "operator:mallory"), (&served.certs.authority, "worker:1-x")] {
        let channel = served.channel(served.certs.credentials(signer, identity)).await.expect("connects");
        let listed = OperatorServiceClient::new(channel.clone()).list_jobs(v1::ListJobsRequest {}).await;
        assert_eq!(code(listed), Some(Code::Untrusted), "{identity}");
        let joined = WorkerServiceClient::new(channel).join(v1::JoinRequest::default()).await;
        assert_eq!(code(joined), Some(Code::Untrusted), "{identity}");
    }
    // Signed by the right one, and never enrolled: as after the state was restored from before it came.
    let channel = served.channel(served.certs.credentials(&workers, "worker:1-x")).await.expect("connects");
    assert_eq!(code(WorkerServiceClient::new(channel).join(v1::JoinRequest::default()).await), Some(Code::Revoked));

    let elsewhere = Credentials::pinned(Fingerprint::of(foreign.certificate())).expect("credentials");
    let error = served.channel(elsewhere).await.expect_err("not who invited");
    assert!(SocketError::of(&error).expect("said").is_final(), "{error:?}");
    served.stop().await;
}

#[tokio::test]
async fn places_outside_of_what_is_allowed_are_refused() {
    let served = Served::start(Certs::new()).await;
    let mut alice = served.as_operator("operator:alice").await;
    let spec = |teacher: &str, output: &str| {
        let data = Some(v1::Data { url: "s3://bucket/jobs/data".into(), ..v1::Data::default() });
        Some(v1::JobSpec { teacher_url: teacher.into(), output_url: output.into(), data, ..v1::JobSpec::default() })
    };
    for (teacher, output, expected) in [
        ("s3://bucket/jobs/teacher", "s3://bucket/other", Code::StoreNotAllowed),
        ("http://169.254.169.254/latest", "s3://bucket/jobs/a", Code::StoreNotAllowed),
        ("file:///etc", "s3://bucket/jobs/a", Code::StoreNotAllowed),
        ("s3://bucket/jobs/../private", "s3://bucket/jobs/a", Code::StoreUrl),
    ] {
        let planned = alice.plan(v1::PlanRequest { spec: spec(teacher, output) }).await;
        assert_eq!(code(planned), Some(expected), "{teacher} {output}");
        let request = v1::SubmitRequest { spec: spec(teacher, output), take_over: false };
        assert_eq!(code(alice.submit(request).await), Some(expected), "{teacher} {output}");
    }
    let backup = v1::BackupRequest { url: "file:///tmp/elsewhere".into(), with_secrets: true };
    assert_eq!(code(alice.backup(backup).await), Some(Code::StoreNotAllowed));
    served.stop().await;
}

/// Any page can have the browser of whoever looks at it send such calls, and the browser shows its certificate.
#[tokio::test]
async fn pages_of_other_sites_can_call_nothing() {
    let served = Served::start(Certs::new()).await;
    let mut channel =
        served.channel(served.certs.credentials(&served.certs.authority, "operator:alice")).await.expect("connects");
    let mut call = async |kind: &str, origin: Option<&str>| {
        let request = http::Request::post(format!("{}/deltaconv.v1.OperatorService/ListJobs", served.url));
        let mut request = request.header("content-type", kind).header("te", "trailers");
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        let body = tonic::body::Body::new(http_body_util::Full::from(&[0, 0, 0, 0, 0][..]));
        let request = request.body(body).expect("a request");
        std::future::poll_fn(|cx| tower::Service::poll_ready(&mut channel, cx)).await.expect("ready");
        let answer = tower::Service::call(&mut channel, request).await.expect("answered");
        (answer.status().as_u16(), answer.headers().get("deltaconv-code").cloned())
    };
    assert_eq!(call("application/grpc", None).await, (200, None));
    assert_eq!(call("text/plain", None).await.0, 403);
    assert_eq!(call("application/x-www-form-urlencoded", Some("https://evil.example")).await.0, 403);
    let (_, code) = call("application/grpc", Some("https://evil.example")).await;
    assert_eq!(code.expect("a code"), Code::Denied.as_str());
    served.stop().await;
}

#[test]
fn a_name_that_leads_to_this_machine_is_not_this_machines() {
    let peer = |address: [u8; 4], is_encrypted| Peer {
        address: (address, 1).into(),
        identity: None,
        refused: None,
        is_encrypted,
    };
    let named = |peer: &Peer, host: &str| {
        let request = http::Request::get("/metrics").header("host", host).body(()).expect("a request");
        guard::is_named_rightly(peer, &request)
    };
    let here = peer([127, 0, 0, 1], false);
    for host in ["localhost:7433", "127.0.0.1", "[::1]:7433", "10.0.0.5:7433"] {
        assert!(named(&here, host), "{host}");
    }
    for host in ["evil.example", "localhost.evil.example:7433", "", "127.0.0.1.evil.example"] {
        assert!(!named(&here, host), "{host}");
    }
    // There a name is what one calls it by, and TLS knows whether it is its own.
    assert!(
        named(&peer([10, 0, 0, 7], false), "coordinator.example") && named(&peer([127, 0, 0, 1], true), "coordinator")
    );
}

fn opened(certs: &Certs) -> Tls {
    let (workers, _) = Authority::make("workers").expect("made");
    Tls::open(certs.files(), Arc::new(workers)).expect("opens")
}

#[test]
fn certificates_are_read_again_and_broken_ones_are_not_taken() {
    let certs = Certs::new();
    let tls = opened(&certs);
    assert!(!tls.reload().expect("reads"), "nothing changed");
    let before = tls.config();
    certs.renew(90 * DAY);
    assert!(tls.reload().expect("reads"));
    assert!(!Arc::ptr_eq(&before, &tls.config()), "new connections have the new one");
    let good = tls.config();
    for (name, text) in [("coordinator.pem", "nothing"), ("coordinator.key", ""), ("authority.pem", "")] {
        let kept = std::fs::read_to_string(certs.path(name)).expect("read");
        certs.write(name, text);
        let error = tls.reload().expect_err("can't be used").to_string();
        assert!(error.contains(name), "{error}");
        assert!(Arc::ptr_eq(&good, &tls.config()), "what was read before stays");
        certs.write(name, &kept);
    }
    // A key of another certificate, as in the middle of a renewal.
    let other = certs.authority.server(&["localhost".into()], DAY).expect("signed");
    certs.write("coordinator.key", &other.key);
    assert!(tls.reload().expect_err("they don't go together").to_string().contains("coordinator.key"));
}

#[test]
fn certificates_are_reported_thirty_days_before_their_end() {
    let certs = Certs::new();
    let tls = opened(&certs);
    assert_eq!(tls.expiring(SystemTime::now()), []);
    let names = |after: Duration| {
        let expiring = tls.expiring(SystemTime::now() + after);
        expiring.iter().map(|ending| (ending.certificate, ending.is_over)).collect::<Vec<_>>()
    };
    assert_eq!(names(59 * DAY), []);
    assert_eq!(names(61 * DAY), [("coordinator", false)]);
    assert_eq!(names(91 * DAY), [("coordinator", true)]);
    assert_eq!(names(3640 * DAY).len(), 3, "authorities end, too");
}

#[test]
fn a_chain_that_ends_below_its_authority_is_completed() {
    let certs = Certs::new();
    let authority = Fingerprint::of(certs.authority.certificate());
    assert_eq!(opened(&certs).authority(), authority);
    let issued = certs.authority.server(&["localhost".into()], DAY).expect("signed");
    certs.write("coordinator.key", &issued.key);
    certs.write("coordinator.pem", &issued.certificate);
    assert_eq!(opened(&certs).authority(), authority, "as cert-manager leaves it");
}

#[test]
fn an_authority_is_opened_with_its_own_key_alone() {
    let certs = Certs::new();
    let [certificate, key] = WORKERS.map(|name| certs.path(name));
    let made = Authority::open_or_make(&certificate, &key, "workers").expect("made");
    let opened = Authority::open_or_make(&certificate, &key, "workers").expect("opened");
    assert_eq!(made.certificate(), opened.certificate());
    let worker = KeyPair::generate().expect("a key");
    let signed = opened.worker("1-x", &worker.subject_public_key_info(), DAY).expect("signed");
    let facts = deltaconv_proto::tls::Certificate::parse(&signed).expect("a certificate");
    assert_eq!(facts.identity, Some(Identity::new(Role::Worker, "1-x").expect("a name")));
    assert!(!facts.is_authority && facts.hosts.is_empty());
    assert!(opened.worker("1-x", b"no key", DAY).is_err());

    let error = Authority::open(&certificate, &certs.path("coordinator.key")).expect_err("another's key");
    assert!(error.to_string().contains("is not the key of"), "{error}");
    let error = Authority::open(&certs.path("coordinator.pem"), &certs.path("coordinator.key"));
    assert!(error.expect_err("no authority").to_string().contains("can't sign"), "signs nothing");
    assert_eq!(Bundle::read(&certificate).expect("a file").certificates.len(), 1);
}
