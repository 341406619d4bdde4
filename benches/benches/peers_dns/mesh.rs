//! One host with a network of many services.

use super::{
    place::{Contender, Place},
    zone::Zone,
};
use anyhow::{Context, Result};
use mesh_net::netns::namespace_of;
use mesh_tests::{Lab, Meshd, within};
use std::{net::Ipv4Addr, path::Path, time::Duration};

const SERVICES: usize = 200;
/// More names of each.
const ALIASES: usize = 4;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

pub(super) struct Mesh {
    // Ends the daemon when dropped.
    daemon: Meshd,
    pub(super) place: Place,
    pub(super) zone: Zone,
}

impl Mesh {
    pub(super) fn start(lab: &Lab) -> Result<Self> {
        let host = lab.host("vm1")?;
        // One container asks for as much as many would: the limit is there, but out of its reach.
        let daemon = host.meshd_under(&["sh", "-c", r#"exec "$@" --dns-limit 1000000"#, "sh"])?;
        host.meshctl(&["cluster", "init", "--advertise-addr", &host.ip().to_string()]).ok()?;
        host.meshctl(&["network", "create", "--subnet", "10.99.0.0/20", "bench"]).ok()?;
        let client = lab.container("client")?;
        host.meshctl(&["network", "connect", "--name", "client", "bench", &client.target()]).ok()?;
        for service in 0..SERVICES {
            let mut line = ["service", "create", "--network", "bench", "--name"].map(str::to_owned).to_vec();
            line.push(format!("service{service}"));
            line.extend((0..ALIASES).flat_map(|alias| ["--alias".to_owned(), alias_of(service, alias)]));
            host.meshctl(&line.iter().map(String::as_str).collect::<Vec<_>>()).ok()?;
        }
        let services = host.meshctl(&["-o", "json", "service", "ls"]).json()?;
        let zone = Zone { domain: "bench.mesh.internal".to_owned(), names: names(&services)? };
        let network = host.meshctl(&["-o", "json", "network", "inspect", "bench"]).json()?;
        let network = network[0]["id"].as_str().context("the network has no ID")?.parse();
        let namespace = namespace_of(Path::new(&host.run_dir()), network.context("the network's ID")?);
        let namespace = namespace.to_str().context("the namespace's path")?;
        let place = Place::within(&host, namespace, Clone::clone(&*client), GATEWAY);
        Ok(Self { daemon, place, zone })
    }

    /// The process that serves the network's names, at the port where containers ask.
    pub(super) fn contender(&self) -> Result<Contender> {
        let front = within(Duration::from_secs(10), "a front runs", || {
            self.daemon.fronts()?.first().copied().context("none yet")
        })?;
        self.place.contender("meshd", 53, front)
    }
}

fn alias_of(service: usize, alias: usize) -> String {
    format!("alias{alias}-of-service{service}")
}

/// From what the API tells of the services: their own names first.
fn names(services: &serde_json::Value) -> Result<Vec<(String, Ipv4Addr)>> {
    let (mut own, mut aliases) = (Vec::new(), Vec::new());
    for service in services.as_array().context("no list of services")? {
        let vip = service["networks"][0]["addresses"][0].as_str().context("a service without a VIP")?;
        let (name, vip) = (service["name"].as_str().context("a service without a name")?, vip.parse()?);
        own.push((name.to_owned(), vip));
        let others = service["aliases"].as_array().into_iter().flatten();
        aliases.extend(others.filter_map(|alias| alias.as_str()).map(|alias| (alias.to_owned(), vip)));
    }
    Ok([own, aliases].concat())
}
