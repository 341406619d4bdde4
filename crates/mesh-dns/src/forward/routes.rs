//! Whom to ask for which names.

use crate::{
    Names, Outcome, Published, Table, Transport, answer,
    name::{encode, strip_suffix},
    query::Query,
};
use arc_swap::ArcSwap;
use ipnetwork::IpNetwork;
use mesh_model::NetworkId;
use rand::Rng;
use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// The domain of all names of addresses, as a key.
const ARPA: &[u8] = b"\x04arpa";

/// A resolver beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Upstream {
    /// Where it answers.
    pub address: SocketAddr,
    /// The network that it is in; none: it is asked from the host.
    pub network: Option<NetworkId>,
}

/// Resolvers that know the same names, in order of preference.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) upstreams: Vec<Upstream>,
    /// Tells what one group said from what another did.
    pub(crate) tag: u64,
    /// Who of them asks in turn, by each address that it may ask from, has those behind it asked; none: there are none. So no
    /// question comes back to a resolver that has had it, whatever two of them ask each other.
    behind: HashMap<IpAddr, Option<Arc<Group>>>,
}

/// Whom the containers of a network, or the host, have asked for names that are not the mesh's: of domains with resolvers of
/// their own those, the longest that matches; for all others the network's resolvers, or the host's.
#[derive(Debug, Default)]
pub struct Routes {
    /// By key, the longest first.
    domains: Vec<(Box<[u8]>, Arc<Group>)>,
    /// The network's resolvers; none: the host's.
    rest: Option<Arc<Group>>,
    /// Who may have the host's resolvers asked, if not everybody.
    only: Option<HashSet<IpAddr>>,
    asking: Asking,
    /// The subnets of all networks, without any name: what is asked of one that the client is not on is not there for it, and
    /// nobody else is to hear of it (RFC 6303).
    withheld: Option<Published>,
}

/// The addresses that resolvers in networks may ask from themselves.
type Asking = HashMap<Upstream, Vec<IpAddr>>;

impl Group {
    pub(crate) fn new(upstreams: &[Upstream]) -> Self {
        let mut once: Vec<Upstream> = Vec::new();
        for upstream in upstreams {
            if !once.contains(upstream) {
                once.push(*upstream);
            }
        }
        let mut hasher = DefaultHasher::new();
        once.hash(&mut hasher);
        Self { upstreams: once, tag: hasher.finish(), behind: HashMap::new() }
    }

    /// The same, some of which ask in turn from these addresses.
    fn of_network(upstreams: &[Upstream], asking: &Asking) -> Self {
        let mut group = Self::new(upstreams);
        for (place, upstream) in group.upstreams.iter().enumerate() {
            let behind = &group.upstreams[place + 1..];
            // One may be named twice, by an address of either family: its last place counts.
            for address in asking.get(upstream).into_iter().flatten() {
                group.behind.insert(*address, (!behind.is_empty()).then(|| Arc::new(Self::new(behind))));
            }
        }
        group
    }
}

impl Routes {
    /// These domains to these resolvers, all else to `rest`, or to the host's if that is empty. With `only`, nobody but those
    /// addresses has the host's asked. `addresses` are those of the container that an upstream is, on all its networks. A domain
    /// that DNS can't express is nobody's.
    pub fn new(
        domains: &[(String, Vec<Upstream>)],
        rest: &[Upstream],
        only: Option<HashSet<IpAddr>>,
        addresses: impl Fn(&Upstream) -> Vec<IpAddr>,
    ) -> Self {
        let all = domains.iter().flat_map(|(_, upstreams)| upstreams).chain(rest);
        let in_networks = all.filter(|upstream| upstream.network.is_some());
        let asking: Asking = in_networks
            .map(|upstream| {
                let own = [upstream.address.ip()];
                (*upstream, own.into_iter().chain(addresses(upstream)).collect())
            })
            .collect();
        let group = |upstreams: &[Upstream]| Arc::new(Group::of_network(upstreams, &asking));
        let key = |domain: &str| encode(&domain.to_ascii_lowercase()).map(Into::into);
        let domains = domains.iter();
        let mut domains: Vec<(Box<[u8]>, Arc<Group>)> =
            domains.filter_map(|(domain, upstreams)| Some((key(domain)?, group(upstreams)))).collect();
        domains.sort_by_key(|(domain, _)| std::cmp::Reverse(domain.len()));
        let rest = (!rest.is_empty()).then(|| group(rest));
        Self { domains, rest, only, asking, withheld: None }
    }

    /// What [`Routes::withholding`] takes, for all routes alike: names of addresses in these subnets.
    pub fn withheld(subnets: impl IntoIterator<Item = IpNetwork>) -> Published {
        let mut withheld = Table::empty(&[]);
        withheld.set_subnets(subnets.into_iter().collect());
        Arc::new(ArcSwap::from_pointee(withheld))
    }

    /// The same, but for these names: of those nobody is asked, except by a domain of its own.
    pub fn withholding(self, withheld: &Published) -> Self {
        Self { withheld: Some(Arc::clone(withheld)), ..self }
    }

    /// Answers a query, given as its message too, for what is none of the client's names; none if it may be asked for.
    pub(crate) fn withhold(
        &self,
        query: &Query<'_>,
        message: &[u8],
        transport: Transport,
        rng: &mut impl Rng,
        out: &mut [u8],
    ) -> Option<usize> {
        let name = query.name.key();
        let withheld = self.withheld.as_ref().filter(|_| name.ends_with(ARPA) && self.domain(name).is_none());
        match answer(Names::OfHost(std::slice::from_ref(withheld?)), message, transport, rng, out) {
            Outcome::Answer(len) => Some(len),
            Outcome::Refuse(_) | Outcome::Forward | Outcome::Drop => None,
        }
    }

    /// The resolvers of the longest domain that a name is in.
    fn domain(&self, name: &[u8]) -> Option<&Arc<Group>> {
        let domain = self.domains.iter().find(|(domain, _)| strip_suffix(name, domain).is_some());
        domain.map(|(_, group)| group)
    }

    /// Whom to ask for a name, given as a key; nobody if the client may not. A resolver that somebody runs in the network is
    /// not asked for what it wants to know itself: that goes to those behind it.
    pub(crate) fn group(&self, name: &[u8], client: IpAddr, host: &Arc<Group>) -> Option<Arc<Group>> {
        let group = self.domain(name).or(self.rest.as_ref());
        let group = group.and_then(|group| match group.behind.get(&client) {
            Some(behind) => behind.as_ref(),
            None => Some(group),
        });
        match group {
            Some(group) => Some(Arc::clone(group)),
            None if self.only.as_ref().is_some_and(|only| !only.contains(&client)) => None,
            None => Some(Arc::clone(host)),
        }
    }

    /// All resolvers in it.
    pub(crate) fn upstreams(&self) -> impl Iterator<Item = Upstream> {
        let groups = self.domains.iter().map(|(_, group)| group).chain(&self.rest);
        groups.flat_map(|group| group.upstreams.iter().copied())
    }

    /// The addresses that one of them may ask from itself.
    pub(crate) fn asking(&self, upstream: &Upstream) -> &[IpAddr] {
        self.asking.get(upstream).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(last: u8, network: Option<u64>) -> Upstream {
        let network = network.map(NetworkId::from_bits);
        Upstream { address: ([10, 0, 0, last], 53).into(), network }
    }

    /// Of an upstream no other address is known.
    fn nothing_more(_: &Upstream) -> Vec<IpAddr> {
        Vec::new()
    }

    fn asked(routes: &Routes, name: &str, client: [u8; 4]) -> Option<Vec<u8>> {
        let host = Arc::new(Group::new(&[upstream(1, None)]));
        let group = routes.group(&encode(name).unwrap(), client.into(), &host)?;
        let last = |upstream: &Upstream| match upstream.address {
            SocketAddr::V4(address) => address.ip().octets()[3],
            SocketAddr::V6(_) => 0,
        };
        Some(group.upstreams.iter().map(last).collect())
    }

    #[test]
    fn the_longest_domain_counts_and_whole_labels_do() {
        let domains = [
            ("corp.example".to_owned(), vec![upstream(2, None)]),
            ("Deep.corp.example".to_owned(), vec![upstream(3, None), upstream(3, None)]),
        ];
        let routes = Routes::new(&domains, &[upstream(4, None), upstream(5, None)], None, nothing_more);
        for (name, expected) in [
            ("corp.example", &[2][..]),
            ("www.corp.example", &[2]),
            ("www.deep.corp.example", &[3]),
            ("xcorp.example", &[4, 5]),
            ("example", &[4, 5]),
        ] {
            assert_eq!(asked(&routes, name, [10, 9, 9, 9]).as_deref(), Some(expected), "{name}");
        }
        assert_eq!(asked(&Routes::default(), "example", [10, 9, 9, 9]), Some(vec![1]));
    }

    #[test]
    fn a_resolver_in_the_network_asks_the_hosts() {
        let routes = Routes::new(&[], &[upstream(7, Some(1))], None, nothing_more);
        assert_eq!(asked(&routes, "example", [10, 0, 0, 8]), Some(vec![7]));
        assert_eq!(asked(&routes, "example", [10, 0, 0, 7]), Some(vec![1]));
    }

    #[test]
    fn what_a_resolver_asks_from_any_of_its_addresses_goes_to_those_behind_it() {
        let addresses = |upstream: &Upstream| match upstream.address.ip() {
            IpAddr::V4(address) => vec![[10, 1, 0, address.octets()[3]].into()],
            IpAddr::V6(_) => Vec::new(),
        };
        // 7 and 8 are in the network, 9 is beyond.
        let upstreams = [upstream(7, Some(1)), upstream(9, None), upstream(8, Some(1))];
        let routes = Routes::new(&[], &upstreams, None, addresses);
        for second in [0, 1] {
            assert_eq!(asked(&routes, "example", [10, second, 0, 7]), Some(vec![9, 8]));
            assert_eq!(asked(&routes, "example", [10, second, 0, 8]), Some(vec![1]), "nobody is behind it");
        }
        assert_eq!(asked(&routes, "example", [10, 1, 0, 9]), Some(vec![7, 9, 8]), "nobody knows who that is");
        // Named twice.
        let routes = Routes::new(&[], &upstreams, None, |_| vec![[10, 1, 0, 7].into()]);
        assert_eq!(asked(&routes, "example", [10, 1, 0, 7]), Some(vec![1]));
    }

    #[test]
    fn who_may_not_ask_the_hosts_resolvers_asks_the_networks() {
        let only = || Some(HashSet::from([IpAddr::from([10, 0, 0, 8])]));
        let routes = Routes::new(&[], &[], only(), nothing_more);
        assert_eq!(asked(&routes, "example", [10, 0, 0, 8]), Some(vec![1]));
        assert_eq!(asked(&routes, "example", [10, 0, 0, 9]), None);
        let routes = Routes::new(&[], &[upstream(2, None)], only(), nothing_more);
        assert_eq!(asked(&routes, "example", [10, 0, 0, 9]), Some(vec![2]));
    }
}
