//! Ends the TCP connections of a replica whose time is up, as `ss -K` does: both sides meet a reset, while the way that
//! they went still exists (`sock_diag(7)`, `SOCK_DESTROY`).

use super::within;
use crate::{
    error::{Error, Result},
    netlink::DATAGRAM_BYTES,
    nft::attr,
};
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
};

/// `SOCK_DIAG_BY_FAMILY`, `SOCK_DESTROY`.
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
/// `IPPROTO_TCP`.
const TCP: u8 = 6;
/// Bits of the states that a connection can be in: all but `LISTEN`, `CLOSE`, `TIME_WAIT`, and those without a socket.
const CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// Where `struct inet_diag_sockid` begins in `struct inet_diag_msg`, its length, and where its local address is.
const SOCKET_AT: usize = 4;
const SOCKET_BYTES: usize = 48;
const SOURCE_AT: usize = 4;

/// Ends every TCP connection that a local address has in a namespace; listening sockets stay. How many there were.
///
/// # Errors
/// The namespace can't be entered, or the kernel can't do it (`CONFIG_INET_DIAG_DESTROY`).
pub fn reset(namespace: impl AsFd, address: IpAddr) -> Result<usize> {
    let reset_all = || -> io::Result<usize> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let mut count = 0;
        // An IPv4 connection may be on a socket of either family.
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            for id in connections(&mut socket, family, address)? {
                count += usize::from(destroy(&mut socket, family, &id)?);
            }
        }
        Ok(count)
    };
    within(namespace, reset_all)?.map_err(Error::Socket)
}

/// The sockets of connections from an address, by what the kernel calls them.
fn connections(socket: &mut Socket, family: u8, address: IpAddr) -> io::Result<Vec<Vec<u8>>> {
    let flags = NLM_F_REQUEST | NLM_F_DUMP;
    socket.send(&request(BY_FAMILY, flags, family, CONNECTED, &[0; SOCKET_BYTES]), 0)?;
    let mut found = Vec::new();
    let mut received = Vec::with_capacity(DATAGRAM_BYTES);
    loop {
        receive(socket, &mut received)?;
        for message in attr::messages(&received) {
            match message.kind {
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => return Err(error(&message).unwrap_or(io::ErrorKind::InvalidData.into())),
                _ => {
                    let id = message.payload.get(SOCKET_AT..SOCKET_AT + SOCKET_BYTES);
                    found.extend(id.filter(|id| local(family, id) == Some(address)).map(<[u8]>::to_vec));
                }
            }
        }
    }
}

/// False for one that has ended by itself meanwhile.
fn destroy(socket: &mut Socket, family: u8, id: &[u8]) -> io::Result<bool> {
    socket.send(&request(DESTROY, NLM_F_REQUEST | NLM_F_ACK, family, CONNECTED, id), 0)?;
    let mut received = Vec::with_capacity(DATAGRAM_BYTES);
    receive(socket, &mut received)?;
    match attr::messages(&received).find_map(|message| error(&message)) {
        None => Ok(true),
        Some(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Some(error) => Err(error),
    }
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn request(kind: u16, flags: u16, family: u8, states: u32, id: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&72u32.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[family, TCP, 0, 0]);
    bytes.extend_from_slice(&states.to_ne_bytes());
    bytes.extend_from_slice(id);
    debug_assert_eq!(bytes.len(), 72);
    bytes
}

/// The local address of a socket.
fn local(family: u8, id: &[u8]) -> Option<IpAddr> {
    if family == libc::AF_INET as u8 {
        let octets: [u8; 4] = id.get(SOURCE_AT..SOURCE_AT + 4)?.try_into().ok()?;
        return Some(Ipv4Addr::from(octets).into());
    }
    let octets: [u8; 16] = id.get(SOURCE_AT..SOURCE_AT + 16)?.try_into().ok()?;
    Some(Ipv6Addr::from(octets).to_canonical())
}

/// What an `NLMSG_ERROR` says; nothing if it is an acknowledgement.
fn error(message: &attr::Message<'_>) -> Option<io::Error> {
    let number = attr::word(message.payload, 0).filter(|_| message.kind == NLMSG_ERROR)? as i32;
    (number != 0).then(|| io::Error::from_raw_os_error(-number))
}

fn receive(socket: &mut Socket, into: &mut Vec<u8>) -> io::Result<()> {
    into.clear();
    loop {
        match socket.recv(into, 0) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{netns::Namespace, nft::tests::namespace::in_namespace};
    use std::{
        io::Read,
        net::{TcpListener, TcpStream},
        process::Command,
    };

    #[test]
    fn connections_of_the_address_meet_a_reset_and_the_listener_goes_on() {
        in_namespace(|| {
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip is needed");
            assert!(up.success());
            let own = Namespace::current().expect("a namespace");
            let (one, two) = (Ipv4Addr::new(127, 0, 0, 1), Ipv4Addr::new(127, 0, 0, 2));
            // Of both families, as servers have them.
            for listen in ["0.0.0.0:0", "[::]:0"] {
                let listener = TcpListener::bind(listen).expect("a listener");
                let port = listener.local_addr().expect("bound").port();
                let connect = |to| {
                    let stream = TcpStream::connect((to, port)).expect("a connection");
                    (stream, listener.accept().expect("accepted").0)
                };
                let (mut of_one, _kept) = connect(one);
                let (mut of_two, _reset) = connect(two);
                assert_eq!(reset(&own, two.into()).expect("the kernel can"), 1);
                let cut = of_two.read(&mut [0; 1]).expect_err("reset");
                assert_eq!(cut.kind(), io::ErrorKind::ConnectionReset);
                of_one.set_nonblocking(true).expect("an option");
                let waits = of_one.read(&mut [0; 1]).expect_err("nothing came");
                assert_eq!(waits.kind(), io::ErrorKind::WouldBlock);
                assert!(TcpStream::connect((two, port)).is_ok());
            }
        });
    }
}
