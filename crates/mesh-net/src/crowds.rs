//! Containers that have more connections than their share.
//!
//! Connection tracking of a namespace has room for so many entries (`nf_conntrack_max`), and whoever fills it keeps all
//! others there from connecting: its neighbours, and through the way out the whole host. The kernel can count entries by
//! address for each packet (`ct count`), but walks all of them to do so. Here somebody looks as often as the kernel is read
//! anyway, and when this node's containers together have more than half of the room, those who have more than their part of
//! that half get no new ones, until they have half of their part.

use crate::{kernel::Kernel, object::Space};
use mesh_model::{Endpoint, NodeId, Snapshot};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::IpAddr,
    sync::Arc,
};

/// Who gets no new connections.
#[derive(Default)]
pub(crate) struct Crowds {
    /// By the namespace where they have too many.
    limited: BTreeMap<Space, BTreeSet<IpAddr>>,
    /// Where nobody can count them, which is told once.
    uncounted: BTreeSet<Space>,
}

impl Crowds {
    /// The addresses of those containers.
    pub(crate) fn limited(&self) -> BTreeSet<IpAddr> {
        self.limited.values().flatten().copied().collect()
    }

    /// Looks at every namespace that this node's containers connect through. Call it on full passes. Whether those that are
    /// limited are others than before.
    pub(crate) fn look(&mut self, kernel: &mut Kernel, snapshot: &Snapshot, me: NodeId) -> bool {
        let own: Vec<&Arc<Endpoint>> = snapshot.endpoints.values().filter(|e| e.node == me).collect();
        let networks = own.iter().map(|endpoint| Space::Overlay(endpoint.network));
        let spaces: BTreeSet<Space> = networks.chain([Space::Host]).collect();
        let before = self.limited();
        self.limited.retain(|space, _| spaces.contains(space));
        for space in spaces {
            if !kernel.is_open(space) {
                continue;
            }
            let here = own.iter().filter(|e| [Space::Host, Space::Overlay(e.network)].contains(&space));
            let containers: Vec<&[IpAddr]> = here.map(|endpoint| endpoint.addresses.as_slice()).collect();
            let known = self.limited.entry(space).or_default();
            match count(kernel, space, known) {
                Ok((most, counts)) => {
                    *known = limited(most, &counts, &containers, known);
                    self.uncounted.remove(&space);
                }
                Err(err) if self.uncounted.insert(space) => {
                    tracing::warn!(%space, err, "connections are not counted: one container may have them all");
                }
                Err(_) => {}
            }
        }
        let now = self.limited();
        tell(&own, &before, &now);
        before != now
    }
}

/// How many connections there can be, and who has asked for how many, if that matters.
fn count(
    kernel: &mut Kernel,
    space: Space,
    known: &BTreeSet<IpAddr>,
) -> Result<(u32, HashMap<IpAddr, u32>), String> {
    let conntrack = kernel.conntrack(space).map_err(|err| err.to_string())?;
    let mut look = || {
        let occupancy = conntrack.occupancy()?;
        let matters = occupancy.entries > occupancy.most / 2 || !known.is_empty();
        let counts = if matters { conntrack.askers()? } else { HashMap::new() };
        io::Result::Ok((occupancy.most, counts))
    };
    look().map_err(|err| err.to_string())
}

/// Who is to get no new connections. Of 0 there can be as many as one likes.
fn limited(
    most: u32,
    counts: &HashMap<IpAddr, u32>,
    containers: &[&[IpAddr]],
    before: &BTreeSet<IpAddr>,
) -> BTreeSet<IpAddr> {
    if most == 0 {
        return BTreeSet::new();
    }
    let count = |addresses: &[IpAddr]| addresses.iter().filter_map(|ip| counts.get(ip)).sum::<u32>();
    let part = most / 2 / u32::try_from(containers.len().max(1)).unwrap_or(u32::MAX);
    let crowded = containers.iter().map(|addresses| count(addresses)).sum::<u32>() > most / 2;
    let chosen = containers.iter().filter(|addresses| {
        let was = addresses.iter().any(|ip| before.contains(ip));
        crowded && count(addresses) > part || was && count(addresses) > part / 2
    });
    chosen.flat_map(|addresses| addresses.iter().copied()).collect()
}

fn tell(own: &[&Arc<Endpoint>], before: &BTreeSet<IpAddr>, now: &BTreeSet<IpAddr>) {
    for endpoint in own {
        let is_in = |limited: &BTreeSet<IpAddr>| endpoint.addresses.iter().any(|ip| limited.contains(ip));
        match (is_in(before), is_in(now)) {
            (false, true) => {
                tracing::warn!(endpoint = %endpoint.name, "has more than its share of the connections that this host can track: it gets no new ones until some have ended");
            }
            (true, false) => tracing::info!(endpoint = %endpoint.name, "gets new connections again"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 1, 0, last].into()
    }

    #[test]
    fn who_has_more_than_its_part_of_the_half_is_limited_until_it_has_half_of_that() {
        let own: Vec<[IpAddr; 1]> = [1, 2, 3, 4].map(|last| [address(last)]).into();
        let own: Vec<&[IpAddr]> = own.iter().map(<[IpAddr; 1]>::as_slice).collect();
        let decide = |most, counts: &[(u8, u32)], before: &[u8]| -> Vec<IpAddr> {
            let counts = counts.iter().map(|(last, count)| (address(*last), *count)).collect();
            let before = before.iter().map(|last| address(*last)).collect();
            limited(most, &counts, &own, &before).into_iter().collect()
        };
        let none: [IpAddr; 0] = [];
        // A part is 125 of 500.
        assert_eq!(decide(1000, &[(1, 400)], &[]), none);
        assert_eq!(decide(1000, &[(1, 400), (9, 600)], &[]), none, "what others have is not its fault");
        assert_eq!(decide(1000, &[(1, 376), (2, 125)], &[]), [address(1)]);
        assert_eq!(decide(1000, &[(1, 376), (2, 126)], &[]), [address(1), address(2)]);
        assert_eq!(decide(1000, &[(1, 63)], &[1, 2]), [address(1)]);
        assert_eq!(decide(1000, &[(1, 62)], &[1]), none);
        assert_eq!(decide(0, &[(1, 10_000)], &[1]), none, "no limit");
    }
}
