//! `CHECK`: whether an attachment is as its result says.

use crate::{
    config::Config,
    daemon::Daemon,
    failure::{Code, Failure},
    namespace::{Interface, Namespace},
    request::Attachment,
    result::malformed,
};
use ipnetwork::IpNetwork;
use mesh_api::EndpointView;
use serde::Deserialize;
use serde_json::Value;
use std::{net::IpAddr, path::Path};

/// The parts of a result that this plugin may have made.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Previous {
    interfaces: Option<Vec<Link>>,
    ips: Option<Vec<Ip>>,
    routes: Option<Vec<Route>>,
}

#[derive(Deserialize)]
struct Link {
    name: String,
    #[serde(default)]
    mac: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct Ip {
    address: IpNetwork,
    interface: Option<usize>,
}

#[derive(Deserialize)]
struct Route {
    dst: IpNetwork,
    gw: Option<IpAddr>,
}

/// What a result says of one attachment.
struct Expected {
    mac: String,
    addresses: Vec<IpNetwork>,
    routes: Vec<(IpNetwork, IpAddr)>,
}

pub(crate) async fn check(daemon: &Daemon, config: &Config, attachment: &Attachment) -> Result<(), Failure> {
    let netns = attachment.netns.as_deref().unwrap_or(Path::new(""));
    let expected = Expected::of(config.previous.as_ref(), attachment, netns)?;
    let interface = Namespace::open(netns)?.interface(&attachment.ifname)?;
    let interface = interface.ok_or_else(|| broken(format!("interface {} is gone", attachment.ifname)))?;
    expected.compare(&interface, &attachment.ifname)?;
    let failed = |error| Failure::of_daemon("cannot tell whether the container is connected", &error);
    let endpoints = daemon.attached(config, attachment).await.map_err(failed)?;
    let endpoint = endpoints.first().ok_or_else(|| broken("meshd has no endpoint for it".to_owned()))?;
    expected.compare_record(endpoint)
}

impl Expected {
    fn of(previous: Option<&Value>, attachment: &Attachment, netns: &Path) -> Result<Self, Failure> {
        let previous = previous.ok_or_else(|| {
            Failure::new(Code::Config, "CHECK needs prevResult, the result of ADD: it is missing")
        })?;
        let previous: Previous = serde_json::from_value(previous.clone()).map_err(malformed)?;
        let links = previous.interfaces.unwrap_or_default();
        let own = |link: &Link| link.name == attachment.ifname && Path::new(&link.sandbox) == netns;
        let index = links.iter().position(own).ok_or_else(|| {
            let text = format!("prevResult has no interface {} in {}", attachment.ifname, netns.display());
            Failure::new(Code::Config, text)
        })?;
        let ips = previous.ips.unwrap_or_default();
        let addresses: Vec<IpNetwork> =
            ips.iter().filter(|ip| ip.interface == Some(index)).map(|ip| ip.address).collect();
        // Routes of another plugin's gateways are that plugin's.
        let near = |via: IpAddr| addresses.iter().any(|address| address.contains(via));
        let routes = previous.routes.unwrap_or_default().into_iter();
        let routes =
            routes.filter_map(|route| Some((route.dst, route.gw?))).filter(|(_, via)| near(*via)).collect();
        Ok(Self { mac: links[index].mac.clone(), addresses, routes })
    }

    fn compare(&self, interface: &Interface, name: &str) -> Result<(), Failure> {
        if !interface.up {
            return Err(broken(format!("interface {name} is down")));
        }
        let mac = interface.mac.map(|mac| mac.to_string()).unwrap_or_default();
        if !self.mac.is_empty() && !mac.eq_ignore_ascii_case(&self.mac) {
            return Err(broken(format!("interface {name} has MAC address {mac} instead of {}", self.mac)));
        }
        if let Some(lost) = self.addresses.iter().find(|address| !interface.addresses.contains(address)) {
            return Err(broken(format!("interface {name} has lost its address {lost}")));
        }
        let there =
            |(to, via): &(IpNetwork, IpAddr)| interface.routes.iter().any(|r| r.to == *to && r.via == *via);
        match self.routes.iter().find(|route| !there(route)) {
            Some((to, via)) => Err(broken(format!("the route to {to} via {via} is gone"))),
            None => Ok(()),
        }
    }

    fn compare_record(&self, endpoint: &EndpointView) -> Result<(), Failure> {
        match self.addresses.iter().find(|address| !endpoint.addresses.contains(&address.ip())) {
            Some(other) => {
                let text =
                    format!("meshd's endpoint '{}' does not have address {}", endpoint.name, other.ip());
                Err(broken(text))
            }
            None => Ok(()),
        }
    }
}

fn broken(why: String) -> Failure {
    Failure::new(Code::Broken, "the container is not connected as it should be").because(why)
}
