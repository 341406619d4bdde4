//! `STATUS`: whether `ADD` would work.

use crate::{
    config::Config,
    daemon::Daemon,
    failure::{Code, Failure},
};
use mesh_api::{NetworkView, State, StatusView};
use mesh_model::{Availability, Subnet, first_free_in};
use std::{collections::BTreeSet, net::IpAddr};

pub(crate) async fn status(daemon: &Daemon, config: &Config) -> Result<(), Failure> {
    // Without its daemon a node's containers stay connected.
    let away = |error| Failure::new(Code::NotAvailable, "meshd is not available").because(error);
    ready(&daemon.status().await.map_err(away)?, &config.network)?;
    let unknown = |error| Failure::new(Code::NotAvailable, "the network is not available").because(error);
    has_addresses(&daemon.network(&config.network).await.map_err(unknown)?)
}

fn ready(status: &StatusView, network: &str) -> Result<(), Failure> {
    let not_available = |why: &str| Err(Failure::new(Code::NotAvailable, "meshd is not ready").because(why));
    match status.state {
        State::Unclustered => not_available("it belongs to no cluster: 'meshctl cluster init' or 'join'"),
        State::Detached => not_available("no manager answers"),
        State::Removed => {
            let why = "this node is no member of the cluster any more: containers here are cut off";
            Err(Failure::new(Code::Limited, "meshd is not ready").because(why))
        }
        State::Ready => {
            if status.node.as_ref().is_some_and(|node| node.availability != Availability::Active) {
                return not_available(
                    "this node takes no endpoints: 'meshctl node update --availability active'",
                );
            }
            // As meshd says it of a network that it can't make.
            let beginning = format!("network '{network}': ");
            match status.problems.iter().find(|problem| problem.starts_with(&beginning)) {
                Some(problem) => {
                    Err(Failure::new(Code::Limited, "the network does not work here").because(problem))
                }
                None => Ok(()),
            }
        }
    }
}

/// A network that is full takes nobody.
fn has_addresses(network: &NetworkView) -> Result<(), Failure> {
    let uses = network.endpoints.iter().chain(&network.services);
    let gateways = network.subnets.iter().map(|subnet| subnet.gateway);
    let used: BTreeSet<IpAddr> = uses.flat_map(|u| u.addresses.iter().copied()).chain(gateways).collect();
    for v6 in [false, true] {
        let mut of_family = network.subnets.iter().filter(|subnet| subnet.cidr.is_ipv6() == v6).peekable();
        let free = |subnet: &Subnet| {
            first_free_in(subnet.cidr, subnet.range.unwrap_or(subnet.cidr), &used).is_some()
        };
        if of_family.peek().is_some() && !of_family.any(free) {
            let text = format!("network '{}' has no free address left", network.name);
            return Err(Failure::new(Code::NotAvailable, text)
                .because("add a subnet (meshctl network update --subnet-add), or remove what is not used"));
        }
    }
    Ok(())
}
