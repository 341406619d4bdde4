//! Ports of the host, and who has one.

use mesh_model::{PublishedPort, Transport};
use std::{fs, net::IpAddr};

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
        Self { ip: port.ip, port: port.published, transport: port.protocol.transport() }
    }
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
    use std::net::UdpSocket;

    #[test]
    fn who_holds_a_port_is_named() {
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let port = udp.local_addr().expect("bound").port();
        let found = holder(port, Transport::Udp).expect("it is this process");
        assert!(found.ends_with(&format!("(pid {})", std::process::id())), "{found}");
    }
}
