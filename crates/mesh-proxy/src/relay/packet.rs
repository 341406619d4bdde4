//! Datagrams with the addresses they were sent to (ip(7), `IP_PKTINFO`; RFC 3542, `IPV6_PKTINFO`): one socket serves all
//! addresses of the host, and who asked one of them takes no answer from another.

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::AsRawFd,
};
use tokio::{io::Interest, net::UdpSocket};

/// Between whom a datagram was, seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Between {
    /// As the socket has it: IPv4 may be mapped.
    pub(super) client: SocketAddr,
    pub(super) local: Local,
}

/// The host's own address, and its device if the address means nothing without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Local {
    pub(super) ip: IpAddr,
    device: u32,
}

/// Has the kernel tell.
pub(super) fn tell_addresses(socket: &UdpSocket) -> io::Result<()> {
    match socket.local_addr()? {
        SocketAddr::V4(_) => Ok(setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?),
        SocketAddr::V6(_) => Ok(setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?),
    }
}

/// Reads one datagram that is there already.
pub(super) fn try_receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, Between)> {
    socket.try_io(Interest::READABLE, || {
        let mut space = nix::cmsg_space!(libc::in6_pktinfo);
        let mut parts = [IoSliceMut::new(buffer)];
        let message = recvmsg::<SockaddrStorage>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let client = message.address.as_ref().and_then(address_of);
        let local = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                let ip = IpAddr::from(info.ipi_spec_dst.s_addr.to_ne_bytes());
                Some(Local { ip, device: 0 })
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                let ip = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                let device = if ip.is_unicast_link_local() { info.ipi6_ifindex } else { 0 };
                Some(Local { ip: ip.into(), device })
            }
            _ => None,
        });
        match (client, local) {
            (Some(client), Some(local)) => Ok((message.bytes, Between { client, local })),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    })
}

/// Sends a datagram from the address that the client asked. One that there is no room for is lost, as on any way.
pub(super) fn try_send(
    socket: &UdpSocket,
    bytes: &[u8],
    Between { client, local }: Between,
) -> io::Result<()> {
    let to = SockaddrStorage::from(client);
    let (four, six);
    let control = match local.ip {
        IpAddr::V4(ip) => {
            four = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            ControlMessage::Ipv4PacketInfo(&four)
        }
        IpAddr::V6(ip) => {
            six = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: ip.octets() },
                ipi6_ifindex: local.device,
            };
            ControlMessage::Ipv6PacketInfo(&six)
        }
    };
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(bytes)], &[control], MsgFlags::MSG_DONTWAIT, Some(&to))?;
    Ok(())
}

fn address_of(address: &SockaddrStorage) -> Option<SocketAddr> {
    let four = address.as_sockaddr_in().map(|four| SocketAddr::from((four.ip(), four.port())));
    let six = || {
        let six = address.as_sockaddr_in6()?;
        Some(SocketAddrV6::new(six.ip(), six.port(), six.flowinfo(), six.scope_id()).into())
    };
    four.or_else(six)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    async fn asked_at(bound: IpAddr, asked: IpAddr) -> Between {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(SocketAddr::new(bound, 0)),
            socket2::Type::DGRAM,
            None,
        )
        .unwrap();
        if bound.is_ipv6() {
            socket.set_only_v6(false).unwrap();
        }
        socket.set_nonblocking(true).unwrap();
        socket.bind(&SocketAddr::new(bound, 0).into()).unwrap();
        let socket = UdpSocket::from_std(socket.into()).unwrap();
        tell_addresses(&socket).unwrap();
        let any: IpAddr =
            if asked.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let client = UdpSocket::bind((any, 0)).await.unwrap();
        // Takes answers from this address alone.
        client.connect((asked, socket.local_addr().unwrap().port())).await.unwrap();
        client.send(b"ping").await.unwrap();
        socket.readable().await.unwrap();
        let mut buffer = [0; 16];
        let (read, between) = try_receive(&socket, &mut buffer).unwrap();
        assert_eq!(&buffer[..read], b"ping");
        try_send(&socket, b"pong", between).unwrap();
        let read = client.recv(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..read], b"pong");
        between
    }

    #[tokio::test]
    async fn an_answer_comes_from_the_address_that_was_asked() {
        let (v4, v6) = (Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into());
        for asked in ["127.0.0.1", "127.0.0.2", "::1"] {
            let asked: IpAddr = asked.parse().unwrap();
            let between = asked_at(v6, asked).await;
            assert_eq!(between.local.ip.to_canonical(), asked);
        }
        for asked in ["127.0.0.1", "127.0.0.3"] {
            let asked: IpAddr = asked.parse().unwrap();
            assert_eq!(asked_at(v4, asked).await.local.ip, asked);
        }
    }
}
