//! `meshctl network connect` and `meshctl network disconnect`.

use super::podman::Container;
use crate::{session::Session, value};
use anyhow::Context;
use mesh_api::{Disconnect, Removed};
use mesh_model::{EndpointSpec, Name, Target, Weight};
use std::net::IpAddr;

/// What a container of Podman is written as.
const PODMAN: &str = "podman:";
const DOCKER: &str = "docker:";

pub(super) const EXAMPLES: &str = "\
Examples:
  meshctl network connect blue netns:/run/netns/web1
  meshctl network connect --service web --name web1 --ip 192.168.100.20 blue pid:4711
  meshctl network connect --service web blue docker:web1
  meshctl network connect blue podman:web1

A container of Podman is connected as its labels mesh.service, mesh.name,
mesh.aliases and mesh.weight say, unless an option says otherwise.";

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
    /// Share of the service's new connections relative to its other replicas, 0 to 256; 1 unless given
    #[arg(long)]
    weight: Option<Weight>,
    /// Interface inside the container; eth0 unless given, in a container of Docker the first free ethN
    #[arg(long)]
    ifname: Option<String>,
    /// Name, ID or unique prefix of the ID
    network: String,
    /// What to connect: netns:/path, pid:NUMBER, docker:NAME or podman:NAME
    #[arg(value_parser = target)]
    target: String,
}

impl Args {
    pub(super) async fn act(self, session: &Session) -> anyhow::Result<()> {
        let doing = format!("connecting {}", self.target);
        let spec = self.spec()?;
        let endpoint = session.wait(&doing, session.client.connect(&spec)).await?;
        let id = endpoint.id.to_string();
        session.output.done(&endpoint, &id, &id)
    }

    fn spec(self) -> anyhow::Result<EndpointSpec> {
        // The names that Docker's networks have taken are known to the daemon.
        let usual = if self.target.starts_with(DOCKER) { "" } else { "eth0" };
        let ifname = self.ifname.unwrap_or_else(|| usual.to_owned());
        let spec = |target| EndpointSpec {
            service: self.service,
            name: self.name,
            addresses: self.ip,
            aliases: self.alias,
            weight: self.weight.unwrap_or_default(),
            ..EndpointSpec::new(self.network, target, ifname)
        };
        let Some(name) = self.target.strip_prefix(PODMAN) else {
            return Ok(spec(self.target.parse().map_err(anyhow::Error::msg)?));
        };
        let container = Container::find(name)?.with_context(|| {
            format!("no container is called '{name}': 'podman ps -a' shows what there is")
        })?;
        let labels = container.labels()?;
        let mut spec = spec(container.target()?);
        spec.service = spec.service.or(labels.service);
        spec.name = spec.name.or(labels.name);
        spec.weight = self.weight.or(labels.weight).unwrap_or_default();
        if spec.aliases.is_empty() {
            spec.aliases = labels.aliases;
        }
        spec.preferred_name = container.preferred_name();
        spec.owner = Some(container.owner());
        Ok(spec)
    }
}

/// A target as it is written; whether a container of this name exists is found out later.
fn target(text: &str) -> Result<String, String> {
    match text.strip_prefix(PODMAN) {
        Some("") => Err("podman: has no container: write podman:NAME".to_owned()),
        Some(_) => Ok(text.to_owned()),
        None => text.parse::<Target>().map(|_| text.to_owned()),
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
    /// What was connected (netns:/path, pid:NUMBER, docker:NAME, podman:NAME), or the endpoint's name or ID
    #[arg(value_name = "TARGET|ENDPOINT")]
    endpoint: String,
}

impl DisconnectArgs {
    pub(super) async fn act(self, session: &Session) -> anyhow::Result<()> {
        let doing = format!("draining {}", self.endpoint);
        let endpoint = match self.endpoint.strip_prefix(PODMAN).map(Container::find).transpose()? {
            None => self.endpoint.clone(),
            Some(Some(container)) => container.owner(),
            // Endpoints of containers that are gone go by themselves.
            Some(None) => {
                return session.output.done(&Removed { removed: false, addresses: Vec::new() }, "", "");
            }
        };
        let request = Disconnect { network: self.network, endpoint, force: self.force };
        let removed = session.wait(&doing, session.client.disconnect(&request)).await?;
        session.output.done(&removed, if removed.removed { &self.endpoint } else { "" }, "")
    }
}
