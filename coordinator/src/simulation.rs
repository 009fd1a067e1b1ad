//! A coordinator without network and disk: the state machine, the core that makes its decisions durable and the service that
//! workers call, on a store and a clock that somebody else holds. Time is tokio's, which may stand still.

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use deltaconv_proto::ids::WorkerId;
use deltaconv_proto::v1;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tonic::Status;

pub use crate::planted::Planted;

use crate::Error;
use crate::api::{LogDesk, Said, Wakers, WorkerApi};
use crate::core::{Clock, Core, Handle};
use crate::observe::metrics::Metrics;
use crate::schedule::{Command, Effects, Now, Settings, State};
use crate::store::Store;

/// A coordinator process. It is gone when all of it is dropped.
pub struct Process {
    /// What others call.
    pub coordinator: Coordinator,
    /// Serves for as long as it is polled, read-only while the store fails.
    pub core: BoxFuture<'static, Result<(), Error>>,
    /// What is to be carried out.
    pub commands: mpsc::UnboundedReceiver<Command>,
}

/// Reaches a coordinator.
pub struct Coordinator {
    core: Handle,
    api: WorkerApi,
    wakers: Wakers,
}

impl Process {
    /// A process that starts on what `store` holds, with `wall` for its clock that people set.
    ///
    /// # Errors
    /// What keeps the store from being read, or its records from being understood.
    pub fn start(
        settings: Settings,
        checkpoint_interval: Duration,
        store: impl Store + 'static,
        wall: impl Fn() -> SystemTime + Send + 'static,
    ) -> Result<Self, Error> {
        let clock = Clock::start(wall);
        let lease_ttl = settings.lease_ttl;
        let metrics = Metrics::new();
        let (given, commands) = mpsc::unbounded_channel();
        let (core, handle, first) = Core::open(settings, store, clock, given, metrics.clone())?;
        let wakers = Wakers::default();
        let api =
            WorkerApi::new(handle.clone(), wakers.clone(), LogDesk::default(), metrics, lease_ttl, checkpoint_interval);
        let coordinator = Coordinator { core: handle, api, wakers };
        Ok(Self { coordinator, core: Box::pin(async { Ok(core.run(first).await.map(drop)?) }), commands })
    }
}

impl Coordinator {
    /// A worker's Join.
    ///
    /// # Errors
    /// As the service answers.
    pub async fn join(&self, request: v1::JoinRequest) -> Result<v1::JoinResponse, Status> {
        self.api.join(&"".into(), request).await
    }

    /// A worker's Sync, held as the service holds it.
    ///
    /// # Errors
    /// As the service answers.
    pub async fn sync(&self, request: v1::SyncRequest) -> Result<v1::SyncResponse, Status> {
        match self.api.answer(&"".into(), request, std::future::pending::<Infallible>()).await? {
            Said::Answer(answer) => Ok(answer),
            Said::Newer(never) => match never {},
        }
    }

    /// Ends the worker's held Sync, as [`Command::Wake`] asks.
    pub fn wake(&self, worker: &WorkerId) {
        self.wakers.ring(worker);
    }

    /// Runs `transition` on the state; answers when its writes are durable, or with `None` when they can't be, or the core has
    /// ended.
    pub async fn call<R: Send + 'static>(
        &self,
        transition: impl FnOnce(&mut State, Now, &mut Effects) -> R + Send + 'static,
    ) -> Option<R> {
        self.core.call(transition).await.ok()
    }

    /// Looks at the state, also at one that can't be written; `None` when the core has ended.
    pub async fn read<R: Send + 'static>(&self, look: impl FnOnce(&State, Now) -> R + Send + 'static) -> Option<R> {
        self.core.read(look).await.ok()
    }

    /// Tells the state of what was done; answers when that is durable, or with `None` when the core has ended.
    pub async fn tell<R: Send + 'static>(
        &self,
        transition: impl FnOnce(&mut State, Now, &mut Effects) -> R + Clone + Send + 'static,
    ) -> Option<R> {
        self.core.tell(transition).await.ok()
    }
}
