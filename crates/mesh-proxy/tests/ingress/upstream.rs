//! Replicas that do as a test says.

use crate::clients::{Message, Wire};
use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{net::TcpSocket, task::JoinSet};
use tokio_util::{sync::CancellationToken, sync::DropGuard};

/// A replica; dropped, it refuses connections and cuts those it has.
pub(crate) struct Replica {
    pub(crate) addr: SocketAddr,
    seen: Arc<Mutex<Vec<Message>>>,
    connections: Arc<AtomicUsize>,
    _stop: DropGuard,
}

impl Replica {
    /// A replica that hands each connection to `serve`, with its number from 1.
    pub(crate) async fn scripted<F>(serve: impl Fn(Wire, usize) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::serving(move |wire, number, _| serve(wire, number)).await
    }

    /// A replica that answers every request with its name, on connections kept open.
    pub(crate) async fn named(name: &'static str) -> Self {
        let reply = move |_: &Message| {
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()).into_bytes()
        };
        Self::answering(reply).await
    }

    /// A replica that answers each request with what `reply` makes of it.
    pub(crate) async fn answering(reply: impl Fn(&Message) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let reply = Arc::new(reply);
        Self::serving(move |mut wire, _, seen| {
            let reply = reply.clone();
            async move {
                while let Some(request) = wire.message(true).await {
                    let bytes = reply(&request);
                    seen.lock().unwrap().push(request);
                    wire.send(bytes).await;
                }
            }
        })
        .await
    }

    async fn serving<F>(serve: impl Fn(Wire, usize, Arc<Mutex<Vec<Message>>>) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let socket = TcpSocket::new_v4().unwrap();
        // So that what a replica doesn't read is held by others.
        socket.set_recv_buffer_size(64 * 1024).unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(128).unwrap();
        let addr = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Message>>> = Arc::default();
        let connections = Arc::new(AtomicUsize::new(0));
        let stop = CancellationToken::new();
        let (stopped, counter, log) = (stop.clone(), connections.clone(), Arc::clone(&seen));
        tokio::spawn(async move {
            // Dropped with the loop: cuts what is open.
            let mut open = JoinSet::new();
            while let Some(Ok((stream, _))) = stopped.run_until_cancelled(listener.accept()).await {
                let number = counter.fetch_add(1, Ordering::SeqCst) + 1;
                open.spawn(serve(Wire::new(stream), number, log.clone()));
            }
        });
        Self { addr, seen, connections, _stop: stop.drop_guard() }
    }

    /// The requests of [`Replica::answering`], oldest first.
    pub(crate) fn seen(&self) -> Vec<Message> {
        self.seen.lock().unwrap().clone()
    }

    /// How many connections were accepted.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}
