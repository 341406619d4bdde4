//! Connections at the managers' port: how many there may be of whom, and for how long.

use super::{
    Routes,
    pace::{Pace, STALLED},
    places::{Limits, Origin, Place, Places},
};
use crate::{clock, noise::Noise};
use axum::{Extension, middleware::map_response};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use mesh_cluster::PeerIdentity;
use mesh_model::NodeId;
use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, rustls::pki_types::CertificateDer, server::TlsStream};
use tokio_util::sync::CancellationToken;

/// Those who have not shown a certificate: handshakes, and joins. An agent is one of them for milliseconds. A thousand
/// agents behind one address may come at once.
const STRANGERS: Limits = Limits { each: 1024, all: 2048 };
/// A node needs one connection, a manager one to each other manager beside, and now and then one more for a moment.
const MEMBERS: Limits = Limits { each: 8, all: 8192 };
/// Those and what has not ended yet. More than that is not taken from the kernel's hands.
const CONNECTIONS: usize = 12_000;
/// A stranger who connects has this long for the handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// An agent that vanished without a word is noticed after this and as long again.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// What may be under way at once for a member, and what is buffered of each answer.
const MEMBER_STREAMS: u32 = 128;
const MEMBER_BUFFER: usize = 64 << 10;
/// A join is answered soon. Who has no certificate holds nothing of the manager's for longer, however politely it keeps
/// its connection alive.
const STRANGER: Duration = Duration::from_secs(10);
/// What may be under way at once for a stranger: with it the memory that all of them can fill is some tens of megabytes.
const STRANGER_STREAMS: u32 = 4;
const STRANGER_WINDOW: u32 = 32 << 10;

type Http = hyper::server::conn::http2::Builder<TokioExecutor>;

/// What all connections share.
struct Port {
    routes: Routes,
    strangers: Arc<Places<Origin>>,
    members: Arc<Places<NodeId>>,
    noise: Noise,
}

/// Serves connections until cancelled; `acceptor` is asked anew for each. Those of `disowned` nodes end.
pub(super) async fn run(
    listener: TcpListener,
    acceptor: impl Fn() -> TlsAcceptor,
    mut disowned: watch::Receiver<BTreeSet<NodeId>>,
    routes: Routes,
    cancel: CancellationToken,
) {
    let port = Arc::new(Port {
        routes,
        strangers: Places::new(STRANGERS),
        members: Places::new(MEMBERS),
        noise: Noise::new("managers' port"),
    });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            Some(_) = connections.join_next() => {}
            Ok(()) = disowned.changed() => {
                disowned.borrow_and_update().iter().for_each(|node| port.members.end_all(*node));
            }
            accepted = listener.accept() => match accepted {
                Ok(_) if connections.len() >= CONNECTIONS => port.noise.count("too many connections"),
                Ok((stream, from)) => {
                    let place = port.strangers.admit(from.ip().into());
                    connections.spawn(Arc::clone(&port).serve(stream, from, acceptor(), place));
                }
                Err(err) => {
                    // Out of descriptors, most likely: accepting again at once would only spin.
                    tracing::warn!(%err, "cannot accept agents");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

impl Port {
    /// Serves one connection to its end. What goes wrong with a stranger is counted, with a member told.
    async fn serve(
        self: Arc<Self>,
        stream: TcpStream,
        from: SocketAddr,
        acceptor: TlsAcceptor,
        place: Place<Origin>,
    ) {
        let handshake = timeout(HANDSHAKE, acceptor.accept(stream));
        let tls = match place.while_kept(handshake).await {
            Some(Ok(Ok(tls))) => tls,
            Some(Ok(Err(_))) => return self.noise.count("no TLS of ours"),
            Some(Err(_)) => return self.noise.count("handshakes too slow"),
            None => return self.noise.count("crowded out"),
        };
        let certificate = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let lapsed = certificate.is_some_and(lapsed);
        let Ok(peer) = certificate.map(mesh_cluster::peer_identity).transpose() else {
            return self.noise.count("certificates of no node");
        };
        // Best effort: small messages are only slower without.
        drop(tls.get_ref().0.set_nodelay(true));
        match peer {
            Some(peer) => {
                let member = self.members.admit(peer.node);
                drop(place);
                self.serve_member(tls, from, peer, lapsed, &member).await;
            }
            None => self.serve_stranger(tls, &place).await,
        }
    }

    async fn serve_member(
        &self,
        tls: TlsStream<TcpStream>,
        from: SocketAddr,
        peer: PeerIdentity,
        lapsed: bool,
        place: &Place<NodeId>,
    ) {
        let router = if lapsed { &self.routes.lapsed } else { &self.routes.members }.clone();
        let pace = Pace::new(STALLED);
        let watched = Arc::clone(&pace);
        let address = from.ip().to_canonical();
        let router = router.layer(Extension(Some(peer))).layer(Extension(address)).layer(map_response(
            move |answer| {
                let answer = watched.watch(answer);
                async { answer }
            },
        ));
        let mut protocol = protocol();
        protocol.max_concurrent_streams(MEMBER_STREAMS).max_send_buf_size(MEMBER_BUFFER);
        let connection = protocol.serve_connection(TokioIo::new(tls), TowerToHyperService::new(router));
        let served = async {
            tokio::select! {
                ended = connection => {
                    if let Err(err) = ended {
                        tracing::debug!(%err, "connection of an agent ended");
                    }
                }
                () = pace.stalled() => {
                    tracing::warn!(node = %peer.node, %from, "a node does not read what it asked for: its connection ends");
                }
            }
        };
        if place.while_kept(served).await.is_none() {
            tracing::warn!(node = %peer.node, %from, "a node has too many connections, or a certificate of a CA that is trusted no more: one ends");
        }
    }

    async fn serve_stranger(&self, tls: TlsStream<TcpStream>, place: &Place<Origin>) {
        let mut protocol = protocol();
        protocol
            .max_concurrent_streams(STRANGER_STREAMS)
            .initial_connection_window_size(STRANGER_WINDOW)
            .initial_stream_window_size(STRANGER_WINDOW);
        let service = TowerToHyperService::new(self.routes.strangers.clone());
        let connection = timeout(STRANGER, protocol.serve_connection(TokioIo::new(tls), service));
        match place.while_kept(connection).await {
            Some(Ok(Ok(()))) => {}
            Some(Ok(Err(_))) => self.noise.count("no HTTP/2 of ours"),
            Some(Err(_)) => self.noise.count("stayed too long"),
            None => self.noise.count("crowded out"),
        }
    }
}

fn protocol() -> Http {
    let mut protocol = Http::new(TokioExecutor::new());
    protocol.timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE);
    protocol
}

/// Whether a certificate has expired, or can't be read.
fn lapsed(certificate: &CertificateDer<'_>) -> bool {
    mesh_cluster::validity(certificate).map_or(true, |held| held.until <= clock::unix_seconds())
}
