//! The seam between this crate and the network namespaces.

use mesh_model::NetworkId;
use std::{future::Future, io, net::SocketAddr, pin::Pin};
use tokio::net::TcpStream;

/// A connection that is coming about.
pub type Connecting<'a> = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send + 'a>>;

/// Opens TCP connections to endpoints of overlay networks.
///
/// The implementor chooses the namespace and the source address. It needs no timeout: callers have one, and drop
/// the future when it has passed.
pub trait Connect: Send + Sync + 'static {
    /// Connects to an address of a network.
    fn connect(&self, network: NetworkId, addr: SocketAddr) -> Connecting<'_>;
}

impl<F, C> Connect for F
where
    F: Fn(NetworkId, SocketAddr) -> C + Send + Sync + 'static,
    C: Future<Output = io::Result<TcpStream>> + Send + 'static,
{
    fn connect(&self, network: NetworkId, addr: SocketAddr) -> Connecting<'_> {
        Box::pin(self(network, addr))
    }
}
