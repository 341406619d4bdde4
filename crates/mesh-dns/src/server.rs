//! The sockets of one address.

mod tcp;
mod udp;

use crate::{Error, Forwarder, Table};
use arc_swap::ArcSwap;
use std::{
    net::{TcpListener, UdpSocket},
    sync::Arc,
};
use tokio_util::sync::CancellationToken;

/// Answers on one address, over UDP and TCP. The sockets belong to whatever network namespace they were opened
/// in; nothing else here depends on it.
#[derive(Debug)]
pub struct Server {
    /// Bound to a given address, so that answers leave from it.
    pub udp: UdpSocket,
    /// Bound to the same address and port.
    pub tcp: TcpListener,
    /// The names; each query sees the newest.
    pub table: Arc<ArcSwap<Table>>,
    /// Where other names are asked for; several servers may share it.
    pub forwarder: Arc<Forwarder>,
}

/// What every query needs.
#[derive(Debug, Clone)]
struct Shared {
    table: Arc<ArcSwap<Table>>,
    forwarder: Arc<Forwarder>,
}

impl Server {
    /// Answers until it is cancelled, and then what was asked before that.
    ///
    /// Errors: a socket that can't be used or read. Trouble with one client or upstream is none.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), Error> {
        self.udp.set_nonblocking(true).map_err(Error::Socket)?;
        self.tcp.set_nonblocking(true).map_err(Error::Socket)?;
        let udp = tokio::net::UdpSocket::from_std(self.udp).map_err(Error::Socket)?;
        let tcp = tokio::net::TcpListener::from_std(self.tcp).map_err(Error::Socket)?;
        let shared = Shared { table: self.table, forwarder: self.forwarder };
        // One that fails takes the other along: dropping it aborts the tasks that it owns.
        let served = tokio::try_join!(
            udp::serve(udp, shared.clone(), cancel.clone()),
            tcp::serve(tcp, shared, cancel),
        );
        served.map(drop)
    }
}
