//! Connections that are begun to an address, as a network's namespace on a host sees them.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::host::Host;

/// How often it is looked whether that is to end, in milliseconds.
const LOOK: i64 = 100;

/// Watches until it is stopped. What it sees is no more than one attempt: each of its packets on each interface counts.
#[derive(Debug)]
pub struct Syns {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Instant>>,
}

impl Syns {
    /// Watches a host's only network for packets that begin a connection to an address.
    pub fn watch(host: &Host, to: Ipv4Addr) -> Result<Self> {
        let networks = fs::read_dir(host.file(format!("{}/netns", host.run_dir())))?;
        let networks: Vec<_> = networks.flatten().map(|entry| entry.path()).collect();
        ensure!(networks.len() == 1, "not one network: {networks:?}");
        let namespace = File::open(&networks[0])?;
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let opened = thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            // Without the frames' own headers, of all interfaces, in both directions.
            let flags = SockFlag::SOCK_CLOEXEC;
            socket(AddressFamily::Packet, SockType::Datagram, flags, SockProtocol::EthAll)
        });
        let socket = opened.join().map_err(|_| anyhow!("panicked"))?.context("a packet socket")?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(LOOK))?;
        Ok(Self { stop, thread: thread::spawn(move || watch(&socket, to, &until)) })
    }

    /// When each of them was.
    pub fn stop(self) -> Result<Vec<Instant>> {
        self.stop.store(true, Relaxed);
        self.thread.join().map_err(|_| anyhow!("the watcher panicked"))
    }
}

fn watch(socket: &OwnedFd, to: Ipv4Addr, until: &AtomicBool) -> Vec<Instant> {
    let (mut seen, mut packet) = (Vec::new(), [0; 128]);
    while !until.load(Relaxed) {
        if let Ok(length) = recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty())
            && begins(&packet[..length], to) == Some(true)
        {
            seen.push(Instant::now());
        }
    }
    seen
}

/// Whether a packet is IPv4's, to this address, and TCP's with SYN and without ACK.
fn begins(packet: &[u8], to: Ipv4Addr) -> Option<bool> {
    const TCP: u8 = 6;
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    let first = *packet.first()?;
    let is_for_it = first >> 4 == 4 && *packet.get(9)? == TCP && packet.get(16..20)? == to.octets();
    let flags = *packet.get(usize::from(first & 0xf) * 4 + 13)?;
    Some(is_for_it && flags & (SYN | ACK) == SYN)
}

#[cfg(test)]
mod tests {
    use super::begins;

    #[test]
    fn a_syn_is_told_from_its_answer() {
        let mut packet = [0; 40];
        (packet[0], packet[9], packet[33]) = (0x45, 6, 0x02);
        packet[16..20].copy_from_slice(&[192, 0, 2, 1]);
        let to = [192, 0, 2, 1].into();
        assert_eq!(begins(&packet, to), Some(true));
        assert_eq!(begins(&packet, [192, 0, 2, 2].into()), Some(false));
        packet[33] = 0x12;
        assert_eq!(begins(&packet, to), Some(false));
        assert_eq!(begins(&packet[..20], to), None);
    }
}
