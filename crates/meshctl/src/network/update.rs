//! `meshctl network update`.

use crate::{session::Session, value};
use ipnetwork::IpNetwork;
use mesh_model::NetworkUpdate;
use std::net::IpAddr;

pub(super) const EXAMPLES: &str = "\
Examples:
  meshctl network update --subnet-add 192.168.101.0/24 blue
  meshctl network update --subnet-add fd08::/64 --gateway fd08::ff blue
  meshctl network update --label-add tier=db --label-rm owner blue";

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
    /// Set a label (repeatable)
    #[arg(long, value_name = "KEY=VALUE", value_parser = value::label)]
    label_add: Vec<(String, String)>,
    /// Remove a label (repeatable)
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
}

impl Args {
    pub(super) async fn act(self, session: &Session) -> anyhow::Result<()> {
        let update = NetworkUpdate {
            subnet_add: self.changes.subnet_add,
            gateways: self.gateway,
            ranges: self.ip_range,
            label_add: self.changes.label_add.into_iter().collect(),
            label_rm: self.changes.label_rm,
        };
        let request = session.client.network_update(&self.network, &update);
        session.created(&session.wait("updating the network", request).await?)
    }
}
