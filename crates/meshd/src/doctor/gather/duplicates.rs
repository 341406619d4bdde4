//! Asks who answers for addresses, where only one machine should.

use super::{
    super::evidence::{Duplicate, Duplicates},
    Gather, NETWORKS,
};
use crate::sockets::Sockets;
use futures_util::future::join_all;
use mesh_model::{Endpoint, MacAddr, Network, NetworkId, Node};
use mesh_net::{
    desired::bridge,
    resolution,
    survey::{Survey, interface_of},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};
use tokio::task::spawn_blocking;

/// Addresses that are asked for on one link.
const ADDRESSES: usize = 256;
/// How long answers for an address are waited for.
const RESOLVED: Duration = Duration::from_millis(600);

impl Gather<'_> {
    /// Asks who answers for the addresses of nodes on the LAN, and for those of the networks here.
    pub(super) async fn duplicates(&self, survey: Option<&Survey>) -> Duplicates {
        let mut asks: Vec<Ask> = survey.and_then(|survey| self.on_underlay(survey)).into_iter().collect();
        if self.scope.node.is_none_or(|node| node == self.me) {
            asks.extend(self.networks.iter().take(NETWORKS).map(|network| self.inside(network)));
        }
        let sockets = &self.sockets;
        let asked = asks.into_iter().map(|ask| {
            let sockets = sockets.clone();
            spawn_blocking(move || ask.out(&sockets))
        });
        let mut duplicates = Duplicates::default();
        for outcome in join_all(asked).await.into_iter().flatten() {
            match outcome {
                Ok((asked, found)) => {
                    duplicates.asked += asked;
                    duplicates.found.extend(found);
                }
                Err(why) => duplicates.unknown = Some(why),
            }
        }
        duplicates
    }

    fn on_underlay(&self, survey: &Survey) -> Option<Ask> {
        let own = self.member.identity.advertise.ip();
        let interface = interface_of(&survey.addresses, own)?;
        let on_link = |node: &&Arc<Node>| interface.address.contains(node.advertise.ip());
        let others = self.others().filter(on_link).take(ADDRESSES).map(|node| {
            let owner = format!("node '{}'", node.name);
            Owned {
                address: node.advertise.ip(),
                owner,
                peer: Some(node.name.to_string()),
                rightful: Rightful::One,
            }
        });
        let mine =
            Owned { address: own, owner: "this node".to_owned(), peer: None, rightful: Rightful::Nobody };
        let addresses = others.chain([mine]).collect();
        Some(Ask { network: None, link: interface.link.clone(), addresses, known: BTreeMap::new() })
    }

    fn inside(&self, network: &Network) -> Ask {
        let endpoints = || self.snapshot.endpoints.values().filter(|endpoint| endpoint.network == network.id);
        let of_endpoint = |endpoint: &Arc<Endpoint>| {
            let (owner, rightful) = (format!("endpoint '{}'", endpoint.name), Rightful::Mac(endpoint.mac));
            let owned =
                |address: &IpAddr| Owned { address: *address, owner: owner.clone(), peer: None, rightful };
            endpoint.addresses.iter().map(owned).collect::<Vec<_>>()
        };
        let own = |address, owner| Owned { address, owner, peer: None, rightful: Rightful::Nobody };
        let gateways = network.gateways().map(|gateway| own(gateway, "the gateway".to_owned()));
        let vips = self.snapshot.services.values().flat_map(|service| {
            let owner = format!("service '{}'", service.name);
            service.vips(network.id).iter().map(move |vip| own(*vip, owner.clone())).collect::<Vec<_>>()
        });
        let addresses =
            gateways.chain(vips).chain(endpoints().flat_map(of_endpoint)).take(ADDRESSES).collect();
        let known =
            endpoints().map(|endpoint| (endpoint.mac, format!("endpoint '{}'", endpoint.name))).collect();
        Ask {
            network: Some((network.id, network.name.to_string())),
            link: bridge().to_string(),
            addresses,
            known,
        }
    }
}

/// Who may answer for an address.
#[derive(Debug, Clone, Copy)]
enum Rightful {
    /// It is this host's own on that link, which does not answer itself.
    Nobody,
    /// Whoever it is, one machine.
    One,
    /// This one.
    Mac(MacAddr),
}

#[derive(Debug)]
struct Owned {
    address: IpAddr,
    owner: String,
    peer: Option<String>,
    rightful: Rightful,
}

/// A question about addresses on one link.
struct Ask {
    /// In a network; else in the host.
    network: Option<(NetworkId, String)>,
    link: String,
    addresses: Vec<Owned>,
    /// Whose a MAC address is.
    known: BTreeMap<MacAddr, String>,
}

impl Ask {
    /// How many addresses were asked for, and which have wrong owners. Blocks.
    fn out(self, sockets: &Sockets) -> Result<(usize, Vec<Duplicate>), String> {
        let addresses: Vec<IpAddr> = self.addresses.iter().map(|owned| owned.address).collect();
        let ask = || resolution::who_has(&self.link, &addresses, RESOLVED);
        let answers = match &self.network {
            Some((network, _)) => sockets.within(*network, ask),
            None => ask(),
        };
        let answers = answers
            .map_err(|error| format!("nobody can be asked for addresses on {}: {error}", self.link))?;
        let none = BTreeSet::new();
        let found = self.addresses.iter().filter_map(|owned| {
            let macs = answers.get(&owned.address).unwrap_or(&none);
            let wrong = owned.rightful.others(macs);
            let known = wrong.iter().filter_map(|mac| self.known.get(mac).cloned()).collect();
            (!wrong.is_empty()).then(|| Duplicate {
                address: owned.address,
                network: self.network.as_ref().map(|(_, name)| name.clone()),
                owner: owned.owner.clone(),
                peer: owned.peer.clone(),
                others: wrong,
                known,
            })
        });
        Ok((addresses.len(), found.collect()))
    }
}

impl Rightful {
    /// Those that should not have answered; all of several that can't be told apart.
    fn others(self, answered: &BTreeSet<MacAddr>) -> Vec<MacAddr> {
        match self {
            Self::One if answered.len() < 2 => Vec::new(),
            Self::Nobody | Self::One => answered.iter().copied().collect(),
            Self::Mac(rightful) => answered.iter().copied().filter(|mac| *mac != rightful).collect(),
        }
    }
}
