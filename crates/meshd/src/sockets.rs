//! Sockets inside the overlay namespaces of this node, opened by this process without another hop.

use mesh_dns::{HostSockets, Upstream};
use mesh_model::{NetworkId, NodeId, Snapshot};
use mesh_net::netns;
use mesh_proxy::{Connect, Connecting, OpenDatagrams};
use rustix::net::sockopt::{set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force};
use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    os::fd::AsFd,
    path::PathBuf,
    sync::Arc,
};
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::watch,
};

/// Room for queries that wait until a front process is followed by another, in octets; the kernel doubles it for what it
/// adds to each, some 800 octets altogether. A thousand a second have room for the five seconds that clients wait; the
/// usual 208 KiB are full after a quarter of one.
const QUERY_QUEUE: usize = 2 << 20;

/// Opens sockets inside networks.
#[derive(Debug, Clone)]
pub(crate) struct Sockets {
    run_dir: PathBuf,
    me: NodeId,
    snapshot: watch::Receiver<Arc<Snapshot>>,
}

impl Sockets {
    pub(crate) fn new(run_dir: PathBuf, me: NodeId, snapshot: watch::Receiver<Arc<Snapshot>>) -> Self {
        Self { run_dir, me, snapshot }
    }

    /// The namespace that a network has on this node, by its inode; none as long as the network isn't here.
    pub(crate) fn namespace(&self, network: NetworkId) -> Option<u64> {
        netns::Namespace::open(&netns::namespace_of(&self.run_dir, network))
            .ok()
            .map(|namespace| namespace.inode())
    }

    /// A name server's sockets on a gateway address.
    pub(crate) fn name_server(
        &self,
        network: NetworkId,
        address: SocketAddr,
    ) -> io::Result<(UdpSocket, TcpListener)> {
        self.within(network, || {
            let udp = UdpSocket::bind(address)?;
            lengthen_queue(&udp);
            Ok((udp, TcpListener::bind(address)?))
        })
    }

    async fn connect_from(&self, network: NetworkId, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.tcp_socket(network, address)?;
        socket.set_nodelay(true)?;
        socket.connect(address).await
    }

    /// A socket inside a network, to connect to an address.
    fn tcp_socket(&self, network: NetworkId, address: SocketAddr) -> io::Result<TcpSocket> {
        let source = self.source(address)?;
        self.within(network, || {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            socket.bind(SocketAddr::new(source, 0))?;
            Ok(socket)
        })
    }

    /// What this node's own sockets are bound to inside networks. The shared gateway address can't be the source: the reply
    /// would end at the replica's own node.
    fn source(&self, towards: SocketAddr) -> io::Result<IpAddr> {
        self.own_address(towards).ok_or_else(|| {
            io::Error::new(io::ErrorKind::AddrNotAvailable, "this node has no overlay address of that family")
        })
    }

    fn own_address(&self, towards: SocketAddr) -> Option<IpAddr> {
        let snapshot = self.snapshot.borrow();
        let node = snapshot.nodes.get(&self.me)?;
        node.addresses.iter().copied().find(|address| address.is_ipv4() == towards.is_ipv4())
    }

    /// Opens something inside a network.
    pub(crate) fn within<T>(
        &self,
        network: NetworkId,
        open: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let namespace =
            netns::Namespace::open(&netns::namespace_of(&self.run_dir, network)).map_err(io::Error::other)?;
        netns::within(&namespace, open).map_err(io::Error::other)?
    }
}

impl Connect for Sockets {
    fn connect(&self, network: NetworkId, address: SocketAddr) -> Connecting<'_> {
        Box::pin(self.connect_from(network, address))
    }
}

impl OpenDatagrams for Sockets {
    fn open(&self, network: NetworkId, address: SocketAddr) -> io::Result<UdpSocket> {
        let source = self.source(address)?;
        self.within(network, || {
            let socket = UdpSocket::bind((source, 0))?;
            socket.set_nonblocking(true)?;
            socket.connect(address)?;
            Ok(socket)
        })
    }
}

/// The sockets of a name server for the host's own processes.
pub(crate) fn host_name_server(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let udp = UdpSocket::bind(address)?;
    lengthen_queue(&udp);
    Ok((udp, TcpListener::bind(address)?))
}

/// Beyond what the system allows everybody; without the privilege, the queue is as long as anybody's.
/// Answers to who is not there wait for a while, too, and take nobody's place.
pub(crate) fn lengthen_queue(udp: impl AsFd) {
    let lengthened = set_socket_recv_buffer_size_force(&udp, QUERY_QUEUE)
        .and_then(|()| set_socket_send_buffer_size_force(&udp, QUERY_QUEUE));
    if let Err(err) = lengthened {
        tracing::debug!(%err, "a name server's queue is short");
    }
}

/// Upstream resolvers are asked from where they are: the host, or a network.
impl mesh_dns::Sockets for Sockets {
    fn udp(&self, upstream: &Upstream) -> io::Result<UdpSocket> {
        let Some(network) = upstream.network else { return mesh_dns::Sockets::udp(&HostSockets, upstream) };
        let source = self.source(upstream.address)?;
        self.within(network, || {
            let socket = UdpSocket::bind((source, 0))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
    }

    fn tcp(&self, upstream: &Upstream) -> io::Result<TcpSocket> {
        match upstream.network {
            Some(network) => self.tcp_socket(network, upstream.address),
            None => mesh_dns::Sockets::tcp(&HostSockets, upstream),
        }
    }
}

/// Whether an address is one of this host's: only those can be bound.
pub(crate) fn check_local(address: IpAddr) -> io::Result<()> {
    std::net::UdpSocket::bind((address, 0)).map(drop)
}
