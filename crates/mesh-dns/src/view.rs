//! What name servers answer from; each query sees the newest.

use crate::{Counters, Names, Routes, Table, forward::Party};
use arc_swap::{ArcSwap, Guard};
use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, LazyLock},
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
                let own = own.load();
                let others = others.load();
                match others.get(&client).filter(|_| !others.is_empty()) {
                    None => use_names(Names::OfContainer(&[&own])),
                    Some(others) => {
                        let others = load(others);
                        let tables: Vec<&Table> =
                            std::iter::once(&**own).chain(others.iter().map(|table| &***table)).collect();
                        use_names(Names::OfContainer(&tables))
                    }
                }
            }
            Source::Host { all, .. } => {
                // Whole names are known here without any network, too: nobody else is asked for them.
                static NONE: LazyLock<Table> = LazyLock::new(|| Table::empty(&[]));
                let all = load(&all.load());
                let tables: Vec<&Table> = all.iter().map(|table| &***table).chain([&*NONE]).collect();
                use_names(Names::OfHost(&tables))
            }
        }
    }
}

fn load(published: &[Published]) -> Vec<Guard<Arc<Table>>> {
    published.iter().map(|table| table.load()).collect()
}
