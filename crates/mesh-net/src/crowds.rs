//! Containers that have more connections than their share.
//!
//! Connection tracking of a namespace has room for so many entries (`nf_conntrack_max`), and whoever fills it keeps all
//! others there from connecting: its neighbours, and through the way out the whole host. The kernel can count entries by
//! address for each packet (`ct count`), but walks all of them to do so. Here somebody looks as often as the kernel is read
//! anyway, and as long as a namespace is half full, those who have more than their part of that half get no new ones.

use crate::{conntrack::Occupancy, kernel::Kernel, object::Space};
use mesh_model::{Endpoint, NodeId, Snapshot};
use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

/// Who gets no new connections.
#[derive(Default)]
pub(crate) struct Crowds {
    limited: BTreeSet<IpAddr>,
}

impl Crowds {
    /// The addresses of those containers.
    pub(crate) fn limited(&self) -> &BTreeSet<IpAddr> {
        &self.limited
    }

    /// Looks at every namespace that this node's containers connect through. Call it on full passes.
    pub(crate) fn look(&mut self, kernel: &mut Kernel, snapshot: &Snapshot, me: NodeId) {
        let own: Vec<&Arc<Endpoint>> = snapshot.endpoints.values().filter(|e| e.node == me).collect();
        let networks: BTreeSet<_> = own.iter().map(|endpoint| endpoint.network).collect();
        let mut limited = BTreeSet::new();
        for space in [Space::Host].into_iter().chain(networks.into_iter().map(Space::Overlay)) {
            let here = own.iter().filter(|e| space == Space::Host || space == Space::Overlay(e.network));
            let addresses: Vec<&[IpAddr]> = here.map(|endpoint| endpoint.addresses.as_slice()).collect();
            limited.extend(self.of(kernel, space, &addresses));
        }
        self.tell(own, &limited);
        self.limited = limited;
    }

    fn of(&self, kernel: &mut Kernel, space: Space, containers: &[&[IpAddr]]) -> BTreeSet<IpAddr> {
        if containers.is_empty() || !kernel.is_open(space) {
            return BTreeSet::new();
        }
        let looked = kernel.conntrack(space).map(|conntrack| {
            let occupancy = conntrack.occupancy()?;
            let counts = if occupancy.is_crowded() { conntrack.askers()? } else { HashMap::new() };
            Ok::<_, std::io::Error>(limited(occupancy, &counts, containers, &self.limited))
        });
        match looked {
            Ok(Ok(limited)) => limited,
            Ok(Err(err)) => {
                tracing::warn!(%space, %err, "connections are not counted: one container may have them all");
                BTreeSet::new()
            }
            Err(err) => {
                tracing::warn!(%space, %err, "connection tracking is out of reach");
                BTreeSet::new()
            }
        }
    }

    fn tell(&self, own: Vec<&Arc<Endpoint>>, limited: &BTreeSet<IpAddr>) {
        for endpoint in own {
            let is_in = |limited: &BTreeSet<IpAddr>| endpoint.addresses.iter().any(|ip| limited.contains(ip));
            match (is_in(&self.limited), is_in(limited)) {
                (false, true) => {
                    tracing::warn!(endpoint = %endpoint.name, "has more than its share of the connections that this host can track: it gets no new ones until some have ended");
                }
                (true, false) => tracing::info!(endpoint = %endpoint.name, "gets new connections again"),
                _ => {}
            }
        }
    }
}

impl Occupancy {
    /// Whether it matters who has how many.
    fn is_crowded(self) -> bool {
        self.entries > self.most / 2
    }

    /// Whether there is room for everybody again.
    fn is_spacious(self) -> bool {
        self.entries < self.most / 4
    }
}

/// Who is to get no new connections. Between crowded and spacious it stays as it was.
fn limited(
    occupancy: Occupancy,
    counts: &HashMap<IpAddr, u32>,
    containers: &[&[IpAddr]],
    before: &BTreeSet<IpAddr>,
) -> BTreeSet<IpAddr> {
    let part = occupancy.most / 2 / u32::try_from(containers.len().max(1)).unwrap_or(u32::MAX);
    let count = |addresses: &[IpAddr]| addresses.iter().filter_map(|ip| counts.get(ip)).sum::<u32>();
    let chosen = containers.iter().filter(|addresses| {
        let was = addresses.iter().any(|ip| before.contains(ip));
        if occupancy.is_crowded() { count(addresses) > part } else { was && !occupancy.is_spacious() }
    });
    chosen.flat_map(|addresses| addresses.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 1, 0, last].into()
    }

    #[test]
    fn who_has_more_than_its_part_of_the_half_is_limited_until_there_is_room() {
        let own: Vec<[IpAddr; 1]> = [1, 2, 3, 4].map(|last| [address(last)]).into();
        let own: Vec<&[IpAddr]> = own.iter().map(<[IpAddr; 1]>::as_slice).collect();
        let decide = |entries, counts: &[(u8, u32)], before: &[u8]| -> Vec<IpAddr> {
            let counts = counts.iter().map(|(last, count)| (address(*last), *count)).collect();
            let before = before.iter().map(|last| address(*last)).collect();
            limited(Occupancy { entries, most: 1000 }, &counts, &own, &before).into_iter().collect()
        };
        // A part is 125 of 500. Who is outside is nobody's fault here.
        let none: [IpAddr; 0] = [];
        assert_eq!(decide(400, &[(1, 400)], &[]), none);
        assert_eq!(decide(501, &[(1, 300), (2, 125), (9, 300)], &[]), [address(1)]);
        assert_eq!(decide(501, &[(1, 300), (2, 126)], &[2]), [address(1), address(2)]);
        assert_eq!(decide(501, &[(2, 100)], &[2]), none);
        assert_eq!(decide(300, &[], &[2]), [address(2)], "until there is room for everybody");
        assert_eq!(decide(249, &[], &[2]), none);
    }
}
