//! Which backend a request or a connection goes to.

use crate::routes::{Backend, ListenAddr, Route, Routes};
use arc_swap::ArcSwap;
use mesh_model::{Balance, EndpointId, ProxyProtocol, ServiceId, Transport, slots};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// The routes in force, and where each rotation stands.
#[derive(Debug, Default)]
pub(crate) struct Balancer {
    table: ArcSwap<Table>,
}

#[derive(Debug, Default)]
struct Table {
    ports: HashMap<(Transport, u16), Vec<Balanced>>,
}

/// A route and its rotation.
#[derive(Debug, Clone)]
pub(crate) struct Balanced {
    route: Arc<Route>,
    rotation: Arc<Rotation>,
}

impl Balancer {
    /// Puts other routes in force. A service that stays on its port goes on with whose turn it is.
    ///
    /// Must not run twice at once: one task follows the routes.
    pub(crate) fn replace(&self, routes: &Routes) {
        let old = self.table.load();
        let mut rotations: HashMap<_, _> =
            old.ports.values().flatten().map(|b| (b.key(), b.rotation.clone())).collect();
        let mut ports: HashMap<_, Vec<Balanced>> = HashMap::new();
        for route in routes.iter().map(Arc::clone) {
            let rotation = rotations.remove(&key(&route)).unwrap_or_default();
            let port = (route.protocol.transport(), route.listen.port);
            ports.entry(port).or_default().push(Balanced { route, rotation });
        }
        self.table.store(Arc::new(Table { ports }));
    }

    /// The service that a client of this local address is for: the only one on the port.
    pub(crate) fn resolve(&self, transport: Transport, local: SocketAddr) -> Option<Balanced> {
        let table = self.table.load();
        let mut here = table
            .ports
            .get(&(transport, local.port()))?
            .iter()
            .filter(|b| b.route.listen.ip.is_none_or(|ip| ip == local.ip()));
        match (here.next(), here.next()) {
            (Some(only), None) => Some(only.clone()),
            _ => None,
        }
    }
}

type RotationKey = (ListenAddr, Transport, ServiceId, u16);

fn key(route: &Route) -> RotationKey {
    (route.listen, route.protocol.transport(), route.service, route.target)
}

impl Balanced {
    fn key(&self) -> RotationKey {
        key(&self.route)
    }

    /// The service's name.
    pub(crate) fn name(&self) -> &str {
        &self.route.name
    }

    /// Whether a backend is one of those.
    pub(crate) fn leads_to(&self, backend: &Backend) -> bool {
        self.route.backends.contains(backend)
    }

    /// The header that its replicas are sent first, if any.
    pub(crate) fn proxy_protocol(&self) -> Option<ProxyProtocol> {
        self.route.proxy_protocol
    }

    /// The backend whose turn it is, or that is this client's, apart from those already tried. Where they have different
    /// shares it is drawn.
    pub(crate) fn next(&self, client: IpAddr, tried: &[EndpointId]) -> Option<Backend> {
        if self.route.shares.is_empty() { self.choose(client, tried) } else { self.draw(tried) }
    }

    fn draw(&self, tried: &[EndpointId]) -> Option<Backend> {
        let of_all = self.route.backends.iter().zip(&self.route.shares);
        let left = of_all.filter(|(backend, _)| !tried.contains(&backend.endpoint));
        let sum: u32 = left.clone().map(|(_, share)| share).sum();
        let mut drawn = (sum > 0).then(|| rand::random_range(0..sum))?;
        for (backend, share) in left {
            match drawn.checked_sub(*share) {
                Some(beyond) => drawn = beyond,
                None => return Some(*backend),
            }
        }
        None
    }

    fn choose(&self, client: IpAddr, tried: &[EndpointId]) -> Option<Backend> {
        let backends = &self.route.backends;
        match self.route.balance {
            Balance::Roundrobin => self.rotation.next(backends, tried),
            Balance::Random => {
                let left: Vec<_> = backends.iter().filter(|b| !tried.contains(&b.endpoint)).collect();
                (!left.is_empty()).then(|| *left[rand::random_range(0..left.len())])
            }
            Balance::Source => {
                let (before, from) = self.route.slots.split_at_checked(slots::slot_of(client))?;
                let of_slots = from.iter().chain(before).filter_map(|owner| backends.get(*owner));
                of_slots.copied().find(|backend| !tried.contains(&backend.endpoint))
            }
        }
    }
}

/// An exact round robin that remembers *who* was last, not a slot: backends may come and go in between without
/// anybody's turn being lost or had twice.
#[derive(Debug)]
struct Rotation {
    /// Bits of the endpoint that was chosen last.
    last: AtomicU64,
}

impl Default for Rotation {
    fn default() -> Self {
        // After the last of all comes the first.
        Self { last: AtomicU64::new(u64::MAX) }
    }
}

impl Rotation {
    /// `backends` are in the order of their endpoints' IDs.
    fn next(&self, backends: &[Backend], tried: &[EndpointId]) -> Option<Backend> {
        let mut chosen = None;
        let _ = self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
            chosen = after(backends, last, tried);
            chosen.map(|backend| backend.endpoint.bits())
        });
        chosen
    }
}

fn after(backends: &[Backend], last: u64, tried: &[EndpointId]) -> Option<Backend> {
    let start = backends.partition_point(|b| b.endpoint.bits() <= last);
    let (before, from) = backends.split_at(start);
    from.iter().chain(before).find(|b| !tried.contains(&b.endpoint)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_model::{NetworkId, Protocol};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn backends(ids: impl IntoIterator<Item = u64>) -> Vec<Backend> {
        let backend = |id| Backend {
            endpoint: EndpointId::from_bits(id),
            network: NetworkId::from_bits(1),
            addr: SocketAddr::from(([10, 0, 0, 1], 80)),
        };
        ids.into_iter().map(backend).collect()
    }

    fn empty() -> Route {
        Route {
            listen: ListenAddr { ip: None, port: 80 },
            protocol: Protocol::Http,
            proxy_protocol: None,
            service: ServiceId::from_bits(1),
            name: "web".parse().unwrap(),
            target: 80,
            balance: Balance::Roundrobin,
            backends: Vec::new(),
            shares: Vec::new(),
            slots: Vec::new(),
        }
    }

    fn pick(rotation: &Rotation, of: &[Backend]) -> u64 {
        rotation.next(of, &[]).unwrap().endpoint.bits()
    }

    #[test]
    fn one_that_joins_or_leaves_costs_nobody_a_turn() {
        let rotation = Rotation::default();
        let three = backends([10, 20, 30]);
        assert_eq!([pick(&rotation, &three), pick(&rotation, &three)], [10, 20]);
        let four = backends([10, 20, 25, 30]);
        assert_eq!([(); 3].map(|()| pick(&rotation, &four)), [25, 30, 10]);
        let two = backends([20, 30]);
        assert_eq!([(); 3].map(|()| pick(&rotation, &two)), [20, 30, 20]);
    }

    #[test]
    fn a_substitute_takes_its_own_turn() {
        let rotation = Rotation::default();
        let three = backends([1, 2, 3]);
        let tried = [EndpointId::from_bits(1)];
        assert_eq!(pick(&rotation, &three), 1);
        assert_eq!(rotation.next(&three, &tried).unwrap().endpoint.bits(), 2);
        assert_eq!(pick(&rotation, &three), 3);
        let all = [1, 2, 3].map(EndpointId::from_bits);
        assert_eq!(rotation.next(&three, &all), None);
        assert_eq!(pick(&rotation, &three), 1, "a choice that failed is not a turn");
    }

    #[test]
    fn each_backend_gets_its_share_of_the_turns() {
        let route = |of: &[u64], shares: &[u32]| Route {
            backends: backends(of.iter().copied()),
            shares: shares.to_vec(),
            ..empty()
        };
        let shares = |route| {
            let balanced = Balanced { route: Arc::new(route), rotation: Arc::default() };
            let mut counts: HashMap<u64, u32> = HashMap::new();
            for _ in 0..9000 {
                *counts
                    .entry(balanced.next([192, 0, 2, 1].into(), &[]).unwrap().endpoint.bits())
                    .or_default() += 1;
            }
            counts
        };
        let counts = shares(route(&[1, 2, 3], &[4, 1, 4]));
        assert!((800..1200).contains(&counts[&2]), "{counts:?}");
        assert!(counts[&1].abs_diff(counts[&3]) < 1200, "{counts:?}");
        let counts = shares(route(&[1, 2, 3], &[]));
        assert_eq!([1, 2, 3].map(|id| counts[&id]), [3000; 3], "nobody is better: in turn");
    }

    #[test]
    fn by_source_a_client_keeps_its_backend_as_long_as_it_is_there() {
        let of = [1, 2, 3].map(|id| (EndpointId::from_bits(id), mesh_model::Weight::default()));
        let route = Route {
            balance: Balance::Source,
            backends: backends([1, 2, 3]),
            slots: slots::owners(&of),
            ..empty()
        };
        let balanced = Balanced { route: Arc::new(route), rotation: Arc::default() };
        let mut chosen = BTreeSet::new();
        for last in 0..100 {
            let client: IpAddr = [198, 51, 100, last].into();
            let first = balanced.next(client, &[]).unwrap();
            let mapped = IpAddr::V6(std::net::Ipv4Addr::new(198, 51, 100, last).to_ipv6_mapped());
            assert_eq!([balanced.next(client, &[]), balanced.next(mapped, &[])], [Some(first); 2]);
            assert_ne!(balanced.next(client, &[first.endpoint]).unwrap(), first);
            chosen.insert(first);
        }
        assert_eq!(chosen.len(), 3);
        assert_eq!(balanced.next([192, 0, 2, 1].into(), &of.map(|(id, _)| id)), None);
    }

    proptest! {
        #[test]
        fn every_backend_is_chosen_once_in_each_round(ids: BTreeSet<u64>, start: u64, rounds in 1usize..4) {
            prop_assume!(!ids.is_empty());
            let of = backends(ids.iter().copied());
            let rotation = Rotation { last: AtomicU64::new(start) };
            for _ in 0..rounds {
                let round: BTreeSet<_> = (0..of.len()).map(|_| pick(&rotation, &of)).collect();
                prop_assert_eq!(&round, &ids);
            }
        }
    }
}
