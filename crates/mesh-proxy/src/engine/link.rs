//! A socket that the engine keeps a hand on while hyper reads and writes it.

use socket2::SockRef;
use std::{
    io::{self, IoSlice},
    net::Shutdown,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};

/// A connected socket, shared between its user and its watcher.
#[derive(Debug, Clone)]
pub(super) struct Link(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    socket: TcpStream,
    /// How often something came.
    reads: AtomicU64,
}

impl Link {
    pub(super) fn new(socket: TcpStream) -> Self {
        Self(Arc::new(Shared { socket, reads: AtomicU64::new(0) }))
    }

    /// How often the peer has sent something: a request may be replayed only as long as this stands still.
    pub(super) fn reads(&self) -> u64 {
        self.0.reads.load(Ordering::Acquire)
    }

    /// Ends a connection without losing what was sent last: a close with unread bytes would be a reset, which
    /// takes the response away from the client (RFC 9112, 9.6). Nothing is done if it is a tunnel's by now.
    pub(super) async fn linger(self) {
        if Arc::strong_count(&self.0) > 1 || SockRef::from(&self.0.socket).shutdown(Shutdown::Write).is_err()
        {
            return;
        }
        let discard = async {
            let mut rest = vec![0; 16 * 1024];
            for _ in 0..LINGER_READS {
                self.0.socket.readable().await?;
                match self.0.socket.try_read(&mut rest) {
                    Ok(0) => break,
                    Err(err) if err.kind() != io::ErrorKind::WouldBlock => break,
                    _ => {}
                }
            }
            io::Result::Ok(())
        };
        // Whatever comes of it, it is over.
        let _ = timeout(LINGER, discard).await;
    }
}

/// How long, and for how many reads, a client is listened to after its last response.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_READS: usize = 64;

impl AsyncRead for Link {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let shared = &*self.0;
        loop {
            ready!(shared.socket.poll_read_ready(cx))?;
            match shared.socket.try_read_buf(buf) {
                Ok(0) => return Poll::Ready(Ok(())),
                Ok(_) => {
                    shared.reads.fetch_add(1, Ordering::Release);
                    return Poll::Ready(Ok(()));
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                Err(err) => return Poll::Ready(Err(err)),
            }
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let socket = &self.0.socket;
        loop {
            ready!(socket.poll_write_ready(cx))?;
            match socket.try_write_vectored(bufs) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&self.0.socket).shutdown(Shutdown::Write))
    }
}
