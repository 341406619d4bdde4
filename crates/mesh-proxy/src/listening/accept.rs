//! Accepting on one listener.

use super::{Ends, Serving};
use socket2::{SockRef, TcpKeepalive};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    select,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

/// Accepts until then. `stop` is passed on to the connections.
pub(super) async fn accept<S: Serving>(
    listener: TcpListener,
    serving: Arc<S>,
    permits: Arc<Semaphore>,
    until: CancellationToken,
    stop: CancellationToken,
) {
    loop {
        let accepted = select! {
            biased;
            () = until.cancelled() => break,
            accepted = next(&listener, &permits) => accepted,
        };
        match accepted {
            Ok((stream, permit)) => serve(&serving, stream, permit, &stop),
            Err(err) => {
                // Out of descriptors or memory: it passes, or the next accept says the same.
                tracing::warn!(%err, "{}: accept failed", S::NAME);
                sleep(BACKOFF).await;
            }
        }
    }
    finish_backlog(listener, &serving, &permits, &stop);
}

/// Clients that the kernel has already told they are connected are served, not reset. The kernel is asked, for the
/// runtime may not know of them yet.
fn finish_backlog<S: Serving>(
    listener: TcpListener,
    serving: &Arc<S>,
    permits: &Arc<Semaphore>,
    stop: &CancellationToken,
) {
    let Ok(listener) = listener.into_std() else { return };
    while let Ok(permit) = permits.clone().try_acquire_owned()
        && let Ok((stream, _)) = listener.accept()
    {
        let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        match stream {
            Ok(stream) => serve(serving, stream, permit, stop),
            Err(err) => tracing::warn!(%err, "{}: accept failed", S::NAME),
        }
    }
}

async fn next(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

fn serve<S: Serving>(
    serving: &Arc<S>,
    stream: TcpStream,
    permit: OwnedSemaphorePermit,
    stop: &CancellationToken,
) {
    let ends = match prepare(&stream) {
        Ok(ends) => ends,
        // It has gone already.
        Err(err) => return tracing::debug!(%err, "client connection lost"),
    };
    let served = serving.clone().serve(stream, ends, stop.clone());
    serving.tasks().spawn(async move {
        served.await;
        drop(permit);
    });
}

fn prepare(stream: &TcpStream) -> io::Result<Ends> {
    stream.set_nodelay(true)?;
    // A tunnel has no timeout: this finds clients that are no more.
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15));
    SockRef::from(stream).set_tcp_keepalive(&keepalive)?;
    Ok(Ends { peer: canonical(stream.peer_addr()?), local: canonical(stream.local_addr()?) })
}

/// An IPv4 client of a dual-stack listener is an IPv4 client.
fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V6(ip) => SocketAddr::new(ip.to_canonical(), addr.port()),
        IpAddr::V4(_) => addr,
    }
}

const BACKOFF: Duration = Duration::from_millis(100);
