//! When a process is asked to end: by a signal, or because the process that started it is gone.

use std::io::{self, Read};
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::error::Error;

/// How long a process whose parent is gone has to end by itself. Longer than leaving takes, shorter than people's
/// patience with a machine that is still busy.
const GRACE: Duration = Duration::from_secs(10);

/// Signals within this time are one: where a whole group is asked to end, as by a cluster's queue, a program that passes
/// signals on has what it started asked twice.
const ONE_SIGNAL: Duration = Duration::from_secs(1);

/// SIGINT and SIGTERM, which mean the same here.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Takes the signals over: from now on they no longer end the process by themselves.
    pub(crate) fn new() -> Result<Self, Error> {
        let listen = |kind| signal(kind).map_err(|source| Error::Runtime { source });
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Waits for one that is another than the one just heard.
    async fn another(&mut self) {
        let heard = Instant::now();
        loop {
            self.next().await;
            if heard.elapsed() >= ONE_SIGNAL {
                return;
            }
        }
    }
}

/// Cancelled once stdin closes. The parent holds the other end and never writes, so that the kernel closes it even
/// when the parent is killed. A process that does not end in time then is ended.
pub(crate) fn with_parent() -> CancellationToken {
    let gone = CancellationToken::new();
    let announce = gone.clone();
    // A thread of its own: a blocked read would keep the runtime from shutting down.
    thread::spawn(move || {
        let mut ignored = [0; 64];
        let mut stdin = io::stdin().lock();
        while !matches!(stdin.read(&mut ignored), Ok(0) | Err(_)) {}
        announce.cancel();
        thread::sleep(GRACE);
        process::exit(i32::from(crate::ERROR));
    });
    gone
}

/// Ends the process after that time, whatever it hangs in: not even what is done at a process' end is done then.
fn end_after(grace: Duration) {
    thread::spawn(move || {
        thread::sleep(grace);
        tracing::error!(?grace, "the grace period is over, and this process has not ended; ending it");
        // SAFETY: ends the process, from any thread.
        unsafe { libc::_exit(i32::from(crate::ERROR)) }
    });
}

/// Runs a service until it ends or is asked to, by a signal or, with `exit_with_parent`, by its parent's end. A
/// second signal ends it at once, and the end of the grace period, where there is one, in any case.
pub(crate) async fn serve<F: Future>(
    exit_with_parent: bool,
    grace: Option<Duration>,
    shutdown: &CancellationToken,
    service: F,
) -> Result<Option<F::Output>, Error> {
    let mut signals = Signals::new()?;
    let parent = if exit_with_parent { with_parent() } else { CancellationToken::new() };
    let mut service = std::pin::pin!(service);
    tokio::select! {
        ended = &mut service => return Ok(Some(ended)),
        () = signals.next() => tracing::info!("asked to end; a second signal ends at once"),
        () = parent.cancelled() => tracing::info!("the process that started this one is gone"),
    }
    if let Some(grace) = grace {
        end_after(grace);
    }
    shutdown.cancel();
    tokio::select! {
        ended = &mut service => Ok(Some(ended)),
        () = signals.another() => Ok(None),
    }
}
