//! `meshctl network update`.

use crate::{session::Session, value};
use ipnetwork::IpNetwork;
use mesh_model::{DomainName, NetworkUpdate, Resolver};
use std::net::IpAddr;

pub(super) const EXAMPLES: &str = "\
Examples:
  meshctl network update --subnet-add 192.168.101.0/24 blue
  meshctl network update --subnet-add fd08::/64 --gateway fd08::ff blue
  meshctl network update --label-add tier=db --label-rm owner blue
  meshctl network update --dns-add 10.0.0.53 --dns-domain-rm corp.example blue";

/// `network update`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    changes: Changes,
    /// Gateway and name server of a subnet that is added; its first usable address unless given
    #[arg(long, value_name = "IP", value_parser = value::address, requires = "subnet_add")]
    gateway: Vec<IpAddr>,
    /// Part of a subnet that is added from which addresses are given out
    #[arg(long, value_name = "CIDR", value_parser = value::cidr, requires = "subnet_add")]
    ip_range: Vec<IpNetwork>,
    /// Name, ID or unique prefix of the ID
    network: String,
}

/// What of a network to change: something.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
struct Changes {
    /// Add a subnet: addresses are taken from it when those before it are used up (repeatable)
    #[arg(long, value_name = "CIDR", value_parser = value::cidr)]
    subnet_add: Vec<IpNetwork>,
    /// Add a resolver for names that are none of the mesh's, in place of the hosts' (repeatable)
    #[arg(long, value_name = "ADDR[:PORT]")]
    dns_add: Vec<Resolver>,
    /// Remove such a resolver; without any, the hosts' are asked (repeatable)
    #[arg(long, value_name = "ADDR[:PORT]")]
    dns_rm: Vec<Resolver>,
    /// Set the resolvers for a domain and what is below it, in place of those it has (repeatable)
    #[arg(long, value_name = "DOMAIN=ADDR[:PORT][,ADDR…]", value_parser = value::dns_domain)]
    dns_domain_add: Vec<(DomainName, Vec<Resolver>)>,
    /// Remove the resolvers of a domain (repeatable)
    #[arg(long, value_name = "DOMAIN")]
    dns_domain_rm: Vec<DomainName>,
    /// Set a label (repeatable)
    #[arg(long, value_name = "KEY=VALUE", value_parser = value::label)]
    label_add: Vec<(String, String)>,
    /// Remove a label (repeatable)
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
}

impl Args {
    pub(super) async fn act(self, session: &Session) -> anyhow::Result<()> {
        let network = self.network.clone();
        let update = self.update();
        let request = session.client.network_update(&network, &update);
        session.created(&session.wait("updating the network", request).await?)
    }

    pub(crate) fn update(self) -> NetworkUpdate {
        let Changes { subnet_add, dns_add, dns_rm, dns_domain_add, dns_domain_rm, label_add, label_rm } =
            self.changes;
        NetworkUpdate {
            subnet_add,
            gateways: self.gateway,
            ranges: self.ip_range,
            dns_add,
            dns_rm,
            dns_domain_add: value::by_domain(dns_domain_add),
            dns_domain_rm,
            label_add: label_add.into_iter().collect(),
            label_rm,
        }
    }
}
