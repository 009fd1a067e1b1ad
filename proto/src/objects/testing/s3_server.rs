//! A folder of this machine as a bucket of S3.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread::JoinHandle;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use url::Url;

use super::super::environment::Environment;
use super::super::retry::Policy;
use super::super::{Objects, back_end, s3};
use super::faulty_service::{Faults, FaultyService};

const BUCKET: &str = "bucket";
const KEY: &str = "test";
const SECRET: &str = "test-secret";

/// A server with one empty bucket, until it is dropped. It has a thread and a clock of its own.
pub struct S3Server {
    folder: TempDir,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl S3Server {
    /// Starts one.
    ///
    /// # Panics
    /// Where there is no folder or no port for it.
    pub fn start() -> Self {
        Self::with(&Faults::none())
    }

    /// Starts one in which requests fail.
    ///
    /// # Panics
    /// Where there is no folder or no port for it.
    pub fn with(faults: &Faults) -> Self {
        Self::on(IpAddr::from(Ipv4Addr::LOCALHOST), faults)
    }

    /// The same at an address of this machine that others may reach.
    ///
    /// # Panics
    /// Where there is no folder or no port for it.
    pub fn on(address: IpAddr, faults: &Faults) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join(BUCKET)).expect("a folder");
        let files = s3s_fs::FileSystem::new(folder.path()).expect("a folder that is there");
        let mut service = S3ServiceBuilder::new(files);
        service.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let service = FaultyService::new(service.build(), faults);
        let listener = std::net::TcpListener::bind((address, 0)).expect("a port");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("an address");
        let (stop, stopped) = oneshot::channel();
        // Many readers are to wait for the files rather than for this server.
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a socket");
                tokio::select! {
                    () = serve(listener, service) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { folder, address, stop: Some(stop), thread: Some(thread) }
    }

    /// The objects below a folder of the bucket, opened as the environment would have it.
    pub fn objects(&self, folder: &str) -> Objects {
        let url = format!("s3://{BUCKET}/{folder}");
        let parsed = Url::parse(&url).expect("a URL");
        let environment: Environment = self.environment().into_iter().collect();
        let policy = Policy::default();
        let builder = s3::builder(&parsed, &environment, &policy).expect("options that are known");
        let (store, prefix) = back_end::retried(&parsed, builder.build(), policy).expect("a whole configuration");
        Objects { url: url.trim_end_matches('/').to_owned(), store, prefix }
    }

    /// The variables with which other processes find the bucket, as `s3://bucket/…`.
    pub fn environment(&self) -> [(String, String); 4] {
        [
            ("AWS_ENDPOINT", format!("http://{}", self.address)),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_ACCESS_KEY_ID", KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
    }

    /// Where the bucket's objects lie as files.
    pub fn folder(&self) -> std::path::PathBuf {
        self.folder.path().join(BUCKET)
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        // Its panic has been printed, and would hide the test's own.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn serve(listener: TcpListener, service: FaultyService) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((socket, _)) = accepted else { continue };
                let connection = http1::Builder::new().serve_connection(TokioIo::new(socket), service.clone());
                connections.spawn(async { drop(connection.await) });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}
