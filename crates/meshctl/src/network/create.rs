//! `meshctl network create`.

use crate::{session::Session, value};
use ipnetwork::IpNetwork;
use mesh_model::{DomainName, Name, NetworkDns, NetworkSpec, Resolver};
use std::net::IpAddr;

pub(super) const EXAMPLES: &str = "\
Examples:
  meshctl network create blue
  meshctl network create --subnet 192.168.100.0/24 --gateway 192.168.100.254 blue
  meshctl network create --subnet 10.8.0.0/16 --ip-range 10.8.1.0/24 --subnet fd08::/64 dual
  meshctl network create --internal --label tier=db db
  meshctl network create --dns 10.0.0.53 --dns-domain corp.example=10.1.0.53,10.2.0.53 blue";

/// `network create`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Subnet, one of each family or either; taken from the cluster's pool unless given
    #[arg(long, value_name = "CIDR", value_parser = value::cidr)]
    subnet: Vec<IpNetwork>,
    /// Gateway and name server, inside a subnet; its first usable address unless given
    #[arg(long, value_name = "IP", value_parser = value::address)]
    gateway: Vec<IpAddr>,
    /// Part of a subnet that addresses are given out from
    #[arg(long, value_name = "CIDR", value_parser = value::cidr)]
    ip_range: Vec<IpNetwork>,
    /// Take an IPv6 subnet from the pool too, if none is given
    #[arg(long)]
    ipv6: bool,
    /// No way out: containers reach this network only
    #[arg(long)]
    internal: bool,
    /// Encrypt what passes between hosts
    #[arg(long)]
    encrypted: bool,
    /// MTU in bytes; derived from the hosts' links unless given
    #[arg(long, value_name = "BYTES", value_parser = value::mtu, allow_negative_numbers = true)]
    mtu: Option<u32>,
    /// VXLAN network identifier, 1 to 16777215; a free one unless given
    #[arg(long, value_parser = value::vni, allow_negative_numbers = true)]
    vni: Option<u32>,
    /// Resolver for names that are none of the mesh's, in place of the hosts' (repeatable)
    #[arg(long, value_name = "ADDR[:PORT]")]
    dns: Vec<Resolver>,
    /// Resolvers for a domain and what is below it (repeatable)
    #[arg(long, value_name = "DOMAIN=ADDR[:PORT][,ADDR…]", value_parser = value::dns_domain)]
    dns_domain: Vec<(DomainName, Vec<Resolver>)>,
    /// Label (repeatable)
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = value::label)]
    labels: Vec<(String, String)>,
    /// Name of the network
    name: Name,
}

impl Args {
    pub(super) async fn act(self, session: &Session) -> anyhow::Result<()> {
        let spec = self.spec();
        let created = session.wait("creating the network", session.client.network_create(&spec)).await?;
        session.created(&created)
    }

    pub(crate) fn spec(self) -> NetworkSpec {
        NetworkSpec {
            name: self.name,
            subnets: self.subnet,
            gateways: self.gateway,
            ranges: self.ip_range,
            ipv6: self.ipv6,
            internal: self.internal,
            encrypted: self.encrypted,
            mtu: self.mtu,
            vni: self.vni,
            dns: NetworkDns { upstreams: self.dns, domains: value::by_domain(self.dns_domain) },
            labels: self.labels.into_iter().collect(),
        }
    }
}
