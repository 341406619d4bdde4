//! The open ends of the kernel: a netlink socket in the host's namespace and in each other one.

use crate::{
    conntrack::Conntrack,
    error::{Error, Result},
    netlink::{
        Monitor, Netlink, RawLink, RawSpace, Request, delete, get_configured_route, get_route, link_named,
        read_links,
    },
    netns::{self, Namespace, TargetNamespace, within},
    nft::Nft,
    object::{Ifname, Object, Space},
};
use mesh_model::{EndpointId, NetworkId};
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteMetric, RouteType},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
};

/// Handles of all spaces that are open.
pub(crate) struct Kernel {
    pub(crate) run_dir: PathBuf,
    host: Handle<Namespace>,
    overlays: BTreeMap<NetworkId, Handle<Namespace>>,
    /// Held for a moment only: what is held open does not end.
    targets: BTreeMap<EndpointId, Handle<TargetNamespace>>,
}

struct Handle<N> {
    namespace: N,
    netlink: Netlink,
    nft: Option<Nft>,
    conntrack: Option<Conntrack>,
    monitor: Option<Monitor>,
}

impl<N: AsFd> Handle<N> {
    fn new(namespace: N) -> Result<Self> {
        let netlink = within(&namespace, Netlink::open)??;
        Ok(Self { namespace, netlink, nft: None, conntrack: None, monitor: None })
    }

    fn conntrack(&mut self) -> Result<&mut Conntrack> {
        match &mut self.conntrack {
            Some(conntrack) => Ok(conntrack),
            none => Ok(none.insert(within(&self.namespace, Conntrack::open)?.map_err(Error::Socket)?)),
        }
    }

    /// Whether anything may have changed since the last call: at the first one, and where nobody can listen, it may have.
    fn has_news(&mut self) -> bool {
        if let Some(monitor) = &mut self.monitor {
            return monitor.has_news();
        }
        match within(&self.namespace, Monitor::open) {
            Ok(Ok(monitor)) => self.monitor = Some(monitor),
            Ok(Err(err)) => tracing::debug!(%err, "changes are not told"),
            Err(err) => tracing::debug!(%err, "changes are not told"),
        }
        true
    }

    fn nft(&mut self, space: Space) -> Result<&mut Nft> {
        if self.nft.is_none() {
            let open = within(&self.namespace, Nft::open)?;
            let opened =
                open.map_err(|source| Error::Firewall { place: space.to_string(), source: Box::new(source) });
            return Ok(self.nft.insert(opened?));
        }
        self.nft.as_mut().ok_or_else(|| not_open(space))
    }
}

impl Handle<Namespace> {
    /// Deletes the links of a namespace that somebody has taken from its place. It may live on in open sockets, and its
    /// VXLAN link would keep the network's VNI.
    fn clear(&mut self) {
        let links = read_links(&mut self.netlink).unwrap_or_default();
        let deletions: Vec<Request> = links
            .iter()
            .filter_map(|(index, raw)| delete(&Object::Link(raw.name, raw.link), *index))
            .collect();
        // Loopback stays, and the other end of what is deleted is gone already.
        if let Err(err) = self.netlink.batch(&deletions) {
            tracing::warn!(%err, "a lost namespace could not be cleared");
        }
    }
}

impl Kernel {
    /// Opens the calling thread's namespace as the host's.
    pub(crate) fn open(run_dir: PathBuf) -> Result<Self> {
        let host = Handle::new(Namespace::current()?)?;
        Ok(Self { run_dir, host, overlays: BTreeMap::new(), targets: BTreeMap::new() })
    }

    /// Opens the overlay namespaces that are kept on this node, by whichever process made them, and names them. A file
    /// whose mount is gone (the run directory outlived a reboot) is no namespace and is made anew. One that can't be opened
    /// is neither cleared nor made a second time.
    pub(crate) fn open_overlays(&mut self) -> Result<BTreeSet<NetworkId>> {
        let mut kept = BTreeSet::new();
        for network in netns::kept(&self.run_dir)? {
            let namespace = match Namespace::open(&netns::namespace_of(&self.run_dir, network)) {
                Ok(namespace) => namespace,
                Err(error) if netns::is_gone(&error) => continue,
                Err(error) => return Err(error),
            };
            kept.insert(network);
            let known = self.overlays.get(&network).is_some_and(|h| h.namespace.inode() == namespace.inode());
            if !known {
                let lost = self.overlays.insert(network, Handle::new(namespace)?);
                lost.into_iter().for_each(|mut handle| handle.clear());
            }
        }
        self.overlays.retain(|network, handle| {
            let is_kept = kept.contains(network);
            if !is_kept {
                handle.clear();
            }
            is_kept
        });
        Ok(kept)
    }

    /// The overlays in which something may have changed since this was last asked, sysctls aside.
    pub(crate) fn changed_overlays(&mut self) -> BTreeSet<NetworkId> {
        let all = self.overlays.iter_mut();
        all.filter_map(|(network, handle)| handle.has_news().then_some(*network)).collect()
    }

    /// How many overlays are open.
    pub(crate) fn overlays(&self) -> usize {
        self.overlays.len()
    }

    /// Makes the namespace of a network.
    pub(crate) fn create_overlay(&mut self, network: NetworkId) -> Result<()> {
        let namespace = netns::create(&self.run_dir, network)?;
        self.overlays.insert(network, Handle::new(namespace)?);
        Ok(())
    }

    /// Ends the namespace of a network.
    pub(crate) fn remove_overlay(&mut self, network: NetworkId) -> Result<()> {
        self.overlays.remove(&network);
        netns::remove(&self.run_dir, network)
    }

    /// Makes a target usable.
    pub(crate) fn open_target(&mut self, endpoint: EndpointId, namespace: TargetNamespace) -> Result<()> {
        self.targets.insert(endpoint, Handle::new(namespace)?);
        Ok(())
    }

    /// Lets go of a target.
    pub(crate) fn close_target(&mut self, endpoint: EndpointId) {
        self.targets.remove(&endpoint);
    }

    /// Whether a space is open.
    pub(crate) fn is_open(&self, space: Space) -> bool {
        match space {
            Space::Host => true,
            Space::Overlay(network) => self.overlays.contains_key(&network),
            Space::Target(endpoint) => self.targets.contains_key(&endpoint),
        }
    }

    /// The namespace of a space.
    pub(crate) fn namespace(&self, space: Space) -> Result<BorrowedFd<'_>> {
        let found = match space {
            Space::Host => Some(self.host.namespace.as_fd()),
            Space::Overlay(network) => self.overlays.get(&network).map(|h| h.namespace.as_fd()),
            Space::Target(endpoint) => self.targets.get(&endpoint).map(|h| h.namespace.as_fd()),
        };
        found.ok_or_else(|| not_open(space))
    }

    /// The socket of a space.
    pub(crate) fn netlink(&mut self, space: Space) -> Result<&mut Netlink> {
        let found = match space {
            Space::Host => Some(&mut self.host.netlink),
            Space::Overlay(network) => self.overlays.get_mut(&network).map(|h| &mut h.netlink),
            Space::Target(endpoint) => self.targets.get_mut(&endpoint).map(|h| &mut h.netlink),
        };
        found.ok_or_else(|| not_open(space))
    }

    /// nf_tables of a space.
    pub(crate) fn nft(&mut self, space: Space) -> Result<&mut Nft> {
        match space {
            Space::Host => self.host.nft(space),
            Space::Overlay(network) => {
                self.overlays.get_mut(&network).ok_or_else(|| not_open(space))?.nft(space)
            }
            Space::Target(endpoint) => {
                self.targets.get_mut(&endpoint).ok_or_else(|| not_open(space))?.nft(space)
            }
        }
    }

    /// Connection tracking of the host or of a network.
    pub(crate) fn conntrack(&mut self, space: Space) -> Result<&mut Conntrack> {
        match space {
            Space::Host => self.host.conntrack(),
            Space::Overlay(network) => {
                self.overlays.get_mut(&network).ok_or_else(|| not_open(space))?.conntrack()
            }
            Space::Target(_) => Err(not_open(space)),
        }
    }

    /// Inode of a space's namespace.
    pub(crate) fn inode(&self, space: Space) -> Result<u64> {
        let found = match space {
            Space::Host => Some(self.host.namespace.inode()),
            Space::Overlay(network) => self.overlays.get(&network).map(|h| h.namespace.inode()),
            Space::Target(endpoint) => self.targets.get(&endpoint).map(|h| h.namespace.inode()),
        };
        found.ok_or_else(|| not_open(space))
    }

    /// Everything that a space holds.
    pub(crate) fn read(&mut self, space: Space) -> Result<RawSpace> {
        RawSpace::read(self.netlink(space)?)
    }

    /// What a space holds of one link, and its rules.
    pub(crate) fn read_link(&mut self, space: Space, link: Ifname) -> Result<RawSpace> {
        RawSpace::read_link(self.netlink(space)?, link)
    }

    /// Whether a space has rules of somebody else's that choose routes by source addresses.
    pub(crate) fn has_source_rules(&mut self, space: Space) -> Result<bool> {
        RawSpace::has_source_rules(self.netlink(space)?)
    }

    /// The index of a link, if there is one of that name.
    pub(crate) fn index(&mut self, space: Space, link: Ifname) -> Result<Option<u32>> {
        Ok(self.link(space, link)?.map(|(index, _)| index))
    }

    /// Whether a link passes packets. Asking makes recent kernels (6.9 and later) take note of a new carrier at once.
    pub(crate) fn is_operational(&mut self, space: Space, link: Ifname) -> Result<bool> {
        Ok(self.link(space, link)?.is_some_and(|(_, raw)| raw.operational))
    }

    /// Whether packets to an address are delivered in a space.
    pub(crate) fn is_local(&mut self, space: Space, address: IpAddr) -> Result<bool> {
        let answer = self.netlink(space)?.get_route(get_route(address))?;
        Ok(
            matches!(answer, Some(RouteNetlinkMessage::NewRoute(route)) if route.header.kind == RouteType::Local),
        )
    }

    /// What is configured on the way to an address: the index of the interface, and the route's MTU if it has one. Nothing
    /// if there is no way.
    pub(crate) fn way_to(&mut self, address: IpAddr) -> Result<Option<(u32, Option<u32>)>> {
        let Some(RouteNetlinkMessage::NewRoute(route)) =
            self.host.netlink.get_route(get_configured_route(address))?
        else {
            return Ok(None);
        };
        let (mut link, mut mtu) = (None, None);
        for attribute in route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => link = Some(index),
                RouteAttribute::Metrics(metrics) => {
                    mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        Ok(link.map(|link| (link, mtu)))
    }

    /// A link of that name, with its index.
    pub(crate) fn link(&mut self, space: Space, link: Ifname) -> Result<Option<(u32, RawLink)>> {
        link_named(self.netlink(space)?, link)
    }

    /// Runs `f` inside a space; `None` if that is not open.
    pub(crate) fn within<T>(&self, space: Space, f: impl FnOnce() -> T) -> Result<Option<T>> {
        match self.namespace(space) {
            Ok(namespace) => within(namespace, f).map(Some),
            Err(_) => Ok(None),
        }
    }
}

fn not_open(space: Space) -> Error {
    match space {
        Space::Host => unreachable!("the host's namespace is always open"),
        Space::Overlay(_) => Error::NetworkNotReady(format!("{space} has no namespace")),
        Space::Target(_) => Error::Incomplete(space.to_string()),
    }
}
