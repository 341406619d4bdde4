//! `meshctl network connect` and `meshctl network disconnect`.

use crate::{session::Session, value};
use mesh_api::Disconnect;
use mesh_model::{EndpointSpec, Name, Target};
use std::net::IpAddr;

pub(super) const EXAMPLES: &str = "\
Examples:
  meshctl network connect blue netns:/run/netns/web1
  meshctl network connect --service web --name web1 --ip 192.168.100.20 blue pid:4711";

/// `network connect`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Address, at most one of each family; free ones unless given
    #[arg(long, value_name = "IP", value_parser = value::address)]
    ip: Vec<IpAddr>,
    /// Another name for it on the network (repeatable)
    #[arg(long, value_name = "NAME")]
    alias: Vec<Name>,
    /// Make it a replica of this service
    #[arg(long)]
    service: Option<String>,
    /// Name of the endpoint; made up unless given
    #[arg(long)]
    name: Option<Name>,
    /// Interface inside the container
    #[arg(long, default_value = "eth0")]
    ifname: String,
    /// Name, ID or unique prefix of the ID
    network: String,
    /// What to connect: netns:/path or pid:NUMBER
    target: Target,
}

impl Args {
    pub(super) async fn act(self, session: &Session) -> anyhow::Result<()> {
        let doing = format!("connecting {}", self.target);
        let spec = EndpointSpec {
            network: self.network,
            service: self.service,
            name: self.name,
            addresses: self.ip,
            aliases: self.alias,
            target: self.target,
            namespace_inode: 0,
            ifname: self.ifname,
        };
        let endpoint = session.wait(&doing, session.client.connect(&spec)).await?;
        let id = endpoint.id.to_string();
        session.output.done(&endpoint, &id, &id)
    }
}

/// `network disconnect`.
#[derive(Debug, clap::Args)]
pub(crate) struct DisconnectArgs {
    /// Do not wait for connections in flight
    #[arg(short, long)]
    force: bool,
    /// Name, ID or unique prefix of the ID
    network: String,
    /// What was connected (netns:/path, pid:NUMBER), or the endpoint's name or ID
    #[arg(value_name = "TARGET|ENDPOINT")]
    endpoint: String,
}

impl DisconnectArgs {
    pub(super) async fn act(self, session: &Session) -> anyhow::Result<()> {
        let doing = format!("draining {}", self.endpoint);
        let request = Disconnect { network: self.network, endpoint: self.endpoint, force: self.force };
        let removed = session.wait(&doing, session.client.disconnect(&request)).await?;
        session.output.done(&removed, if removed.removed { &request.endpoint } else { "" }, "")
    }
}
