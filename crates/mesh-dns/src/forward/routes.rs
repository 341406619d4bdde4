//! Whom to ask for which names.

use crate::name::{encode, strip_suffix};
use mesh_model::NetworkId;
use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

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
}

impl Upstream {
    /// Whether it is a container of the network that asks.
    pub(super) fn is(&self, client: IpAddr) -> bool {
        self.network.is_some() && self.address.ip() == client
    }
}

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
        Self { upstreams: once, tag: hasher.finish() }
    }

    fn is(&self, client: IpAddr) -> bool {
        self.upstreams.iter().any(|upstream| upstream.is(client))
    }
}

impl Routes {
    /// These domains to these resolvers, all else to `rest`, or to the host's if that is empty. With `only`, nobody but those
    /// addresses has the host's asked. A domain that DNS can't express is nobody's.
    pub fn new(
        domains: &[(String, Vec<Upstream>)],
        rest: &[Upstream],
        only: Option<HashSet<IpAddr>>,
    ) -> Self {
        let key = |domain: &str| encode(&domain.to_ascii_lowercase()).map(Into::into);
        let domains = domains.iter();
        let mut domains: Vec<(Box<[u8]>, Arc<Group>)> = domains
            .filter_map(|(domain, upstreams)| Some((key(domain)?, Arc::new(Group::new(upstreams)))))
            .collect();
        domains.sort_by_key(|(domain, _)| std::cmp::Reverse(domain.len()));
        Self { domains, rest: (!rest.is_empty()).then(|| Arc::new(Group::new(rest))), only }
    }

    /// Whom to ask for a name, given as a key; nobody if the client may not. A resolver that somebody runs in the network is
    /// not asked for what it wants to know itself.
    pub(crate) fn group(&self, name: &[u8], client: IpAddr, host: &Arc<Group>) -> Option<Arc<Group>> {
        let domain = self.domains.iter().find(|(domain, _)| strip_suffix(name, domain).is_some());
        let group = domain.map(|(_, group)| group).or(self.rest.as_ref());
        match group.filter(|group| !group.is(client)) {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(last: u8, network: Option<u64>) -> Upstream {
        let network = network.map(NetworkId::from_bits);
        Upstream { address: ([10, 0, 0, last], 53).into(), network }
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
        let routes = Routes::new(&domains, &[upstream(4, None), upstream(5, None)], None);
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
        let routes = Routes::new(&[], &[upstream(7, Some(1))], None);
        assert_eq!(asked(&routes, "example", [10, 0, 0, 8]), Some(vec![7]));
        assert_eq!(asked(&routes, "example", [10, 0, 0, 7]), Some(vec![1]));
    }

    #[test]
    fn who_may_not_ask_the_hosts_resolvers_asks_the_networks() {
        let only = || Some(HashSet::from([IpAddr::from([10, 0, 0, 8])]));
        let routes = Routes::new(&[], &[], only());
        assert_eq!(asked(&routes, "example", [10, 0, 0, 8]), Some(vec![1]));
        assert_eq!(asked(&routes, "example", [10, 0, 0, 9]), None);
        let routes = Routes::new(&[], &[upstream(2, None)], only());
        assert_eq!(asked(&routes, "example", [10, 0, 0, 9]), Some(vec![2]));
    }
}
