//! What name servers answer from; each query sees the newest.

use crate::{Counters, Names, Routes, Table, forward::Party};
use arc_swap::ArcSwap;
use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

/// A network's newest names.
pub type Published = Arc<ArcSwap<Table>>;

/// What the servers of one network answer from, or the host's.
#[derive(Debug)]
pub struct View {
    /// The names.
    pub names: Source,
    /// Where others are asked for.
    pub routes: ArcSwap<Routes>,
    /// What was asked.
    pub counters: Counters,
    /// With whom its clients share what the forwarder has room for.
    pub(crate) party: Party,
}

/// Whose names there are.
#[derive(Debug)]
pub enum Source {
    /// A network's.
    Network {
        /// Those of the network itself.
        own: Published,
        /// The other networks of containers that are on several, by the address that they ask from.
        others: ArcSwap<HashMap<IpAddr, Vec<Published>>>,
    },
    /// Those of all networks here, for the host.
    Host {
        /// The names.
        all: ArcSwap<Vec<Published>>,
        /// The host's addresses: who asks from one of them is answered.
        addresses: ArcSwap<HashSet<IpAddr>>,
    },
}

impl View {
    /// A network's names, for the containers that are on it alone.
    pub fn of_network(own: Published) -> Self {
        Self {
            names: Source::Network { own, others: ArcSwap::default() },
            routes: ArcSwap::default(),
            counters: Counters::default(),
            party: Party::new(),
        }
    }

    /// For the host: no network yet.
    pub fn of_host() -> Self {
        Self {
            names: Source::Host { all: ArcSwap::default(), addresses: ArcSwap::default() },
            routes: ArcSwap::default(),
            counters: Counters::default(),
            party: Party::new(),
        }
    }

    /// Whether somebody is answered at all: by the host's servers its own processes, from one of its addresses. The kernel takes
    /// no packet from outside that claims to be from one (martians).
    pub(crate) fn is_for(&self, client: IpAddr) -> bool {
        match &self.names {
            Source::Network { .. } => true,
            Source::Host { addresses, .. } => client.is_loopback() || addresses.load().contains(&client),
        }
    }

    /// Has `use_names` look through the names that somebody gets to see.
    pub(crate) fn with_names<R>(&self, client: IpAddr, use_names: impl FnOnce(Names<'_>) -> R) -> R {
        match &self.names {
            Source::Network { own, others } => {
                let others = others.load();
                let of_client = others.get(&client).map_or(&[][..], Vec::as_slice);
                use_names(Names::OfContainer(&own.load(), of_client))
            }
            Source::Host { all, .. } => use_names(Names::OfHost(&all.load())),
        }
    }
}
