//! Ports of the host: held so that nobody else can have them, and who has one that can't be.

use mesh_model::{Protocol, PublishedPort};
use socket2::{Domain, Socket, Type};
use std::{
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
};

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port of the host, of one address or of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// The only address.
    pub ip: Option<IpAddr>,
    /// The number.
    pub port: u16,
    /// TCP or UDP.
    pub transport: Transport,
}

impl From<&PublishedPort> for HostPort {
    fn from(port: &PublishedPort) -> Self {
        let transport = if port.protocol == Protocol::Udp { Transport::Udp } else { Transport::Tcp };
        Self { ip: port.ip, port: port.published, transport }
    }
}

/// Holds a port of one address, or of every address of both families, in the calling thread's namespace.
///
/// The socket is bound, does not listen and has no SO_REUSEADDR: other binders are refused, prerouting is undisturbed,
/// and local TCP clients are refused rather than left hanging.
///
/// # Errors
/// `AddrInUse`: see [`holder`]. `AddrNotAvailable`: the address is none of this host's.
pub fn reserve(ip: Option<IpAddr>, port: u16, transport: Transport) -> io::Result<OwnedFd> {
    match ip {
        Some(ip) => bind(SocketAddr::new(ip, port), transport),
        None => match bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port), transport) {
            // A kernel without IPv6.
            Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port), transport)
            }
            bound => bound,
        },
    }
}

fn bind(address: SocketAddr, transport: Transport) -> io::Result<OwnedFd> {
    let kind = match transport {
        Transport::Tcp => Type::STREAM,
        Transport::Udp => Type::DGRAM,
    };
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    if transport == Transport::Udp {
        // What reaches it nevertheless is never read: it need not be kept either.
        socket.set_recv_buffer_size(0)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// The process that holds a port in the calling thread's namespace, as `nginx (pid 4711)`, if `/proc` tells.
pub fn holder(port: u16, transport: Transport) -> Option<String> {
    let pid = holder_pid(port, transport)?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(format!("{} (pid {pid})", name.trim_end()))
}

/// The ID of that process.
pub fn holder_pid(port: u16, transport: Transport) -> Option<u32> {
    let inodes: Vec<String> = tables(transport).iter().flat_map(|table| inodes_of(table, port)).collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let numbered =
        processes.filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit));
    numbered.map(|entry| entry.path()).find_map(|process| {
        let files = fs::read_dir(process.join("fd")).ok()?.flatten();
        let mut links = files.filter_map(|file| fs::read_link(file.path()).ok());
        links.find(|link| {
            inodes.iter().any(|inode| link.as_os_str() == format!("socket:[{inode}]").as_str())
        })?;
        process.file_name()?.to_str()?.parse().ok()
    })
}

fn tables(transport: Transport) -> Vec<String> {
    let families = ["", "6"];
    let path = |family| format!("/proc/thread-self/net/{transport}{family}");
    families.into_iter().filter_map(|family| fs::read_to_string(path(family)).ok()).collect()
}

/// Inodes of the sockets bound to a local port: `sl local_address rem_address st … inode`, the port in hexadecimal.
fn inodes_of(table: &str, port: u16) -> impl Iterator<Item = String> + '_ {
    let suffix = format!(":{port:04X}");
    table.lines().skip(1).filter_map(move |line| {
        let mut columns = line.split_ascii_whitespace();
        columns.nth(1)?.ends_with(&suffix).then_some(())?;
        let inode = columns.nth(7)?;
        // A connection that nobody owns any more (TIME_WAIT) has none.
        (inode != "0").then(|| inode.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    fn free_port() -> u16 {
        TcpListener::bind("[::]:0").and_then(|l| l.local_addr()).map(|a| a.port()).expect("a free port")
    }

    #[test]
    fn a_held_port_is_refused_to_others_and_to_clients() {
        let port = free_port();
        let held = reserve(None, port, Transport::Tcp).expect("it is free");
        let others = [TcpListener::bind(("0.0.0.0", port)), TcpListener::bind(("::", port))];
        assert!(others.iter().all(|other| matches!(other, Err(e) if e.kind() == io::ErrorKind::AddrInUse)));
        let refused = TcpStream::connect(("127.0.0.1", port)).expect_err("nobody listens");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        drop(held);
        TcpListener::bind(("0.0.0.0", port)).expect("free again");
    }

    #[test]
    fn who_holds_a_port_is_named() {
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let port = udp.local_addr().expect("bound").port();
        let found = holder(port, Transport::Udp).expect("it is this process");
        assert!(found.ends_with(&format!("(pid {})", std::process::id())), "{found}");
        assert!(reserve(None, port, Transport::Udp).is_err());
    }

    #[test]
    fn an_address_of_another_host_is_told_apart() {
        let elsewhere = reserve(Some("192.0.2.1".parse().expect("an address")), free_port(), Transport::Tcp);
        assert_eq!(elsewhere.expect_err("not ours").kind(), io::ErrorKind::AddrNotAvailable);
    }
}
