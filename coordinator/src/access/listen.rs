//! Connections as they come: encrypted where the coordinator has certificates, bounded in number and in patience.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use deltaconv_proto::tls::Identity;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::rates::{Counts, Slot, network};
use super::{Peer, Tls};

/// Time to agree on a key.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A peer that takes nothing of what is written to it for so long is gone, or doesn't want it.
const STALLED: Duration = Duration::from_secs(30);
/// How long somebody stays connected who shows no certificate: enough for a health check and for a worker that enrols.
const STRANGER: Duration = Duration::from_secs(30);
/// Of strangers, connections at once from one address and in all.
const STRANGERS: usize = 64;
const ALL_STRANGERS: usize = 1024;
/// Of one who is known. A worker has one, and those of a machine may share their identity.
const OF_ONE: usize = 256;
/// Connections at once in all.
const CONNECTIONS: usize = 65_536;
/// Connections that wait to be served.
const WAITING: usize = 64;

/// How many connections there are, of whom.
#[derive(Clone, Default)]
struct Room {
    strangers: Counts<IpAddr>,
    all_strangers: Counts<()>,
    known: Counts<Arc<Identity>>,
    all: Counts<()>,
}

/// Accepts connections until nobody takes them any more.
pub(crate) fn connections(listener: TcpListener, tls: Option<Arc<Tls>>) -> ReceiverStream<io::Result<Connection>> {
    let (sender, connections) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let room = Room::default();
        loop {
            let accepted = tokio::select! {
                () = sender.closed() => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // No more files may be open, most often; those that are will be closed.
                    tracing::warn!(%error, "a connection was not accepted");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(slot) = room.all.take((), CONNECTIONS) else {
                tracing::warn!(%address, "there are {CONNECTIONS} connections already");
                continue;
            };
            // Small messages are to arrive at once.
            let _ = stream.set_nodelay(true);
            let (sender, tls, room) = (sender.clone(), tls.clone(), room.clone());
            let served = async move {
                let connection = match tls {
                    None => Some(Connection::plain(stream, address, slot)),
                    Some(tls) => encrypt(stream, address, slot, &tls, &room).await,
                };
                if let Some(connection) = connection {
                    // Nobody takes it where the coordinator stops.
                    let _ = sender.send(Ok(connection)).await;
                }
            };
            tokio::spawn(served);
        }
    });
    ReceiverStream::new(connections)
}

/// The connection, if its peer is who it says or has room as a stranger. Whoever shakes hands is a stranger until then.
async fn encrypt(stream: TcpStream, address: SocketAddr, slot: Slot<()>, tls: &Tls, room: &Room) -> Option<Connection> {
    let strange = room.strangers.take(network(address.ip()), STRANGERS);
    let (Some(of_address), Some(of_all)) = (strange, room.all_strangers.take((), ALL_STRANGERS)) else {
        tracing::debug!(%address, "too many connections without a certificate");
        return None;
    };
    let shaken = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(tls.config()).accept(stream)).await;
    let stream = match shaken {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "no encrypted connection");
            return None;
        }
        Err(_) => {
            tracing::debug!(%address, "no encrypted connection within {HANDSHAKE:?}");
            return None;
        }
    };
    let shown = stream.get_ref().1.peer_certificates().map(|chain| tls.identity(chain));
    let (identity, refused) = match shown {
        None => (None, None),
        Some(Ok(identity)) => (Some(Arc::new(identity)), None),
        Some(Err(reason)) => (None, Some(reason.into())),
    };
    let of_identity = match &identity {
        Some(identity) => {
            let Some(slot) = room.known.take(identity.clone(), OF_ONE) else {
                tracing::warn!(%address, %identity, "there are {OF_ONE} connections of this one already");
                return None;
            };
            Some(slot)
        }
        None => None,
    };
    let is_stranger = identity.is_none();
    Some(Connection {
        io: Io::Encrypted(Box::new(stream)),
        peer: Peer { address, identity, refused, is_encrypted: true },
        stalled: None,
        ends: is_stranger.then(|| Box::pin(sleep(STRANGER))),
        _slot: slot,
        _of_identity: of_identity,
        _as_stranger: is_stranger.then_some((of_address, of_all)),
    })
}

/// A connection that is served.
pub(crate) struct Connection {
    io: Io,
    peer: Peer,
    /// Runs while what is written is not taken.
    stalled: Option<Pin<Box<Sleep>>>,
    /// When a stranger has to go.
    ends: Option<Pin<Box<Sleep>>>,
    _slot: Slot<()>,
    _of_identity: Option<Slot<Arc<Identity>>>,
    _as_stranger: Option<(Slot<IpAddr>, Slot<()>)>,
}

enum Io {
    Plain(TcpStream),
    Encrypted(Box<TlsStream<TcpStream>>),
}

impl Connection {
    fn plain(stream: TcpStream, address: SocketAddr, slot: Slot<()>) -> Self {
        let peer = Peer { address, identity: None, refused: None, is_encrypted: false };
        Self {
            io: Io::Plain(stream),
            peer,
            stalled: None,
            ends: None,
            _slot: slot,
            _of_identity: None,
            _as_stranger: None,
        }
    }

    /// An error once a stranger has stayed too long.
    fn must_go(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.ends.as_mut().map(|ends| ends.as_mut().poll(cx)) {
            Some(Poll::Ready(())) => Err(io::Error::new(io::ErrorKind::TimedOut, "no certificate was shown")),
            _ => Ok(()),
        }
    }

    /// What came of writing; an error once it has been waited for too long.
    fn patiently<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(STALLED)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes nothing"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.must_go(cx)?;
        match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Io::Encrypted(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Io::Encrypted(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        this.patiently(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Io::Encrypted(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        };
        this.patiently(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Encrypted(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Io::Encrypted(stream) => Pin::new(stream).poll_flush(cx),
        };
        this.patiently(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Encrypted(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncReadExt;

    use super::*;

    /// A connection, and its peer's end.
    async fn connected() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let peer = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connects");
        let (stream, address) = listener.accept().await.expect("accepts");
        let slot = Counts::default().take((), 1).expect("room");
        (Connection::plain(stream, address, slot), peer)
    }

    async fn write(connection: &mut Connection) -> Poll<io::Result<usize>> {
        poll_fn(|cx| Poll::Ready(Pin::new(&mut *connection).poll_write(cx, &[0; 1 << 16]))).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_left() {
        let (mut connection, mut peer) = connected().await;
        while let Poll::Ready(written) = write(&mut connection).await {
            written.expect("there is room in its buffers");
        }
        tokio::time::advance(STALLED - Duration::from_secs(1)).await;
        assert!(write(&mut connection).await.is_pending());
        // Something is taken, and its time begins anew.
        let mut taken = vec![0; 1 << 20];
        peer.read_exact(&mut taken).await.expect("there is as much");
        while write(&mut connection).await.is_pending() {
            tokio::task::yield_now().await;
        }
        while let Poll::Ready(written) = write(&mut connection).await {
            written.expect("there is room in its buffers");
        }
        tokio::time::advance(STALLED - Duration::from_secs(1)).await;
        assert!(write(&mut connection).await.is_pending());
        tokio::time::advance(Duration::from_secs(2)).await;
        let Poll::Ready(Err(error)) = write(&mut connection).await else { panic!("it still waits") };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn who_shows_nothing_has_to_go() {
        let (mut connection, _peer) = connected().await;
        connection.ends = Some(Box::pin(sleep(STRANGER)));
        let mut read = async || {
            let mut bytes = [0; 16];
            let mut buffer = ReadBuf::new(&mut bytes);
            poll_fn(|cx| Poll::Ready(Pin::new(&mut connection).poll_read(cx, &mut buffer))).await
        };
        assert!(read().await.is_pending());
        tokio::time::advance(STRANGER + Duration::from_secs(1)).await;
        assert!(matches!(read().await, Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::TimedOut));
    }

    #[tokio::test]
    async fn strangers_leave_room_for_others() {
        let room = Room::default();
        let address: IpAddr = [10, 0, 0, 1].into();
        let held: Vec<_> = (0..STRANGERS).map(|_| room.strangers.take(address, STRANGERS).expect("room")).collect();
        assert!(room.strangers.take(address, STRANGERS).is_none());
        assert!(room.strangers.take([10, 0, 0, 2].into(), STRANGERS).is_some());
        drop(held);
        assert!(room.strangers.take(address, STRANGERS).is_some());
    }
}
