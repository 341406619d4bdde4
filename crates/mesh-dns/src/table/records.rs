//! What a name stands for, in wire form as far as it can be: answers are put together from it.

use crate::wire::{CLASS_IN, TTL, rtype};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

/// Octets of a record between its owner and its data.
const FIXED: usize = 10;
/// A record without its owner.
pub(crate) type A = [u8; FIXED + 4];
/// A record without its owner.
pub(crate) type Aaaa = [u8; FIXED + 16];

/// What a name stands for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Records {
    pub(crate) v4: Box<[A]>,
    pub(crate) v6: Box<[Aaaa]>,
    /// The target ports of the services of this name.
    pub(crate) ports: Box<[Port]>,
}

/// A port, and who serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) udp: bool,
    pub(crate) number: u16,
    pub(crate) tasks: Arc<[Task]>,
}

/// A backend of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Task {
    /// Its whole name, in wire form.
    pub(crate) name: Box<[u8]>,
    pub(crate) addresses: Vec<IpAddr>,
}

impl Records {
    pub(crate) fn new(addresses: &BTreeSet<IpAddr>, ports: Vec<Port>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for address in addresses {
            match address {
                IpAddr::V4(address) => v4.push(a(*address)),
                IpAddr::V6(address) => v6.push(aaaa(*address)),
            }
        }
        Self { v4: v4.into(), v6: v6.into(), ports: ports.into() }
    }
}

pub(crate) fn a(address: Ipv4Addr) -> A {
    record(rtype::A, &address.octets())
}

pub(crate) fn aaaa(address: Ipv6Addr) -> Aaaa {
    record(rtype::AAAA, &address.octets())
}

fn record<const LEN: usize>(rtype: u16, data: &[u8]) -> [u8; LEN] {
    let mut record = [0; LEN];
    record[..2].copy_from_slice(&rtype.to_be_bytes());
    record[2..4].copy_from_slice(&CLASS_IN.to_be_bytes());
    record[4..8].copy_from_slice(&TTL.to_be_bytes());
    record[8..FIXED].copy_from_slice(&(data.len() as u16).to_be_bytes());
    record[FIXED..].copy_from_slice(data);
    record
}
