//! The socket that holds a port.

use mesh_model::Transport;
use mesh_net::ports::HostPort;
use socket2::{Domain, Socket, Type};
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
};

/// Connections that wait to be accepted; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Opens a socket on one address, or on every address of both families. TCP listens, so that nobody else can; UDP can't be
/// shared either.
pub(super) fn open(port: HostPort) -> io::Result<(SocketAddr, OwnedFd)> {
    let at = |ip| SocketAddr::new(ip, port.port);
    match port.ip {
        Some(ip) => open_at(at(ip), port.transport),
        None => match open_at(at(Ipv6Addr::UNSPECIFIED.into()), port.transport) {
            // A kernel without IPv6.
            Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                open_at(at(Ipv4Addr::UNSPECIFIED.into()), port.transport)
            }
            opened => opened,
        },
    }
}

fn open_at(address: SocketAddr, transport: Transport) -> io::Result<(SocketAddr, OwnedFd)> {
    let kind = match transport {
        Transport::Tcp => Type::STREAM,
        Transport::Udp => Type::DGRAM,
    };
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    if transport == Transport::Tcp {
        // Connections of an earlier life may still be in TIME_WAIT; a socket that listens is in the way all the same.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address.into())?;
    if transport == Transport::Tcp {
        socket.listen(BACKLOG)?;
    }
    let at = socket.local_addr()?.as_socket().unwrap_or(address);
    Ok((at, socket.into()))
}
