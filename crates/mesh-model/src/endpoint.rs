//! Endpoints: one interface of one container on one network.

use crate::{EndpointId, MacAddr, Name, NetworkId, NodeId, PublishedPort, ServiceId, Weight};
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr};

/// What an endpoint is attached to, on its own node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// A network namespace kept at a path.
    Netns(PathBuf),
    /// The network namespace of a process.
    Pid(i32),
    /// A container of Docker.
    Docker(Container),
}

/// A container, as its engine knows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Container {
    /// Its name or ID, as the user says it.
    pub name: String,
    /// Where the engine keeps its network namespace; nowhere as long as it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<PathBuf>,
}

impl Target {
    /// The file that stands for the network namespace.
    pub fn namespace_path(&self) -> PathBuf {
        match self {
            Self::Netns(path) => path.clone(),
            Self::Pid(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
            // An empty path is nothing that exists.
            Self::Docker(container) => container.netns.clone().unwrap_or_default(),
        }
    }
}

impl Target {
    /// Whether a user who says `other` means this one: where an engine keeps a container is not said.
    pub fn is_named_as(&self, other: &Target) -> bool {
        match (self, other) {
            (Self::Docker(this), Self::Docker(other)) => this.name == other.name,
            _ => self == other,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Netns(path) => write!(f, "netns:{}", path.display()),
            Self::Pid(pid) => write!(f, "pid:{pid}"),
            Self::Docker(container) => write!(f, "docker:{}", container.name),
        }
    }
}

impl FromStr for Target {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("netns", path)) if path.starts_with('/') => Ok(Self::Netns(path.into())),
            Some(("netns", path)) => {
                Err(format!("'{path}' is no absolute path: write netns:/run/netns/NAME"))
            }
            Some(("pid", pid)) => match pid.parse() {
                Ok(pid) if pid > 0 => Ok(Self::Pid(pid)),
                _ => Err(format!("'{pid}' is no process ID: write pid:NUMBER")),
            },
            Some(("docker", name)) if is_container_name(name) => {
                Ok(Self::Docker(Container { name: name.to_owned(), netns: None }))
            }
            Some(("docker", name)) => {
                Err(format!("'{name}' is no container's name or ID: write docker:NAME"))
            }
            Some((engine @ "podman", _)) => Err(format!(
                "{engine}: targets are not supported yet: use pid:NUMBER with the process ID that '{engine} inspect' shows"
            )),
            _ => Err(format!("'{text}' is no target: write netns:/path, pid:NUMBER or docker:NAME")),
        }
    }
}

/// As Docker and Podman check names; IDs are hexadecimal digits.
fn is_container_name(text: &str) -> bool {
    text.len() >= 2
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Begins the owner of every endpoint that meshd's network driver for Docker makes.
pub const DOCKER: &str = "docker:";

/// An endpoint, as committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its identity.
    pub id: EndpointId,
    /// Its name, unique in its network.
    pub name: Name,
    /// The network.
    pub network: NetworkId,
    /// The node it is on.
    pub node: NodeId,
    /// One address for each family of the network.
    pub addresses: Vec<IpAddr>,
    /// Its MAC address, drawn at random.
    pub mac: MacAddr,
    /// The service it is a replica of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceId>,
    /// More names for it; endpoints may share them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<Name>,
    /// What it is attached to.
    pub target: Target,
    /// Inode of the target's network namespace: tells it from a later one at the same path.
    pub namespace_inode: u64,
    /// Name of the interface inside the target.
    pub ifname: String,
    /// Ports of its node that lead to it alone, as an engine's `-p` publishes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PublishedPort>,
    /// What the program that attached it calls the attachment, to find it again: `cni:NETWORK/CONTAINER/INTERFACE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// What its engine gives it beside the cluster's addresses: good between containers of one node only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub local_addresses: Vec<IpAddr>,
    /// Those of its addresses that datagrams from outside the network reach with the gateway's address for the sender's, as
    /// its target's default route is not the network's. Its node finds it out, and goes by what it sees itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_nat: Vec<IpAddr>,
    /// How much of its service's traffic it is to have.
    #[serde(default)]
    pub weight: Weight,
    /// Offered no new connections.
    #[serde(default)]
    pub draining: bool,
    /// When it was made, in seconds since 1970.
    pub created: u64,
}

impl Endpoint {
    /// Whether it waits for its container: Docker asks for the endpoint first, and makes the network namespace later.
    pub fn is_staged(&self) -> bool {
        self.namespace_inode == 0 && matches!(self.target, Target::Docker(_))
    }

    /// Whether it is to have no new connections, by somebody's word.
    pub fn is_withdrawn(&self) -> bool {
        self.draining || self.weight == Weight::ZERO
    }

    /// Whether it is on a network of Docker's: Docker sets up its interface, and the container's default routes.
    pub fn is_dockers(&self) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.starts_with(DOCKER))
    }
}

/// What a user wants otherwise of an endpoint, or its agent has learnt of it from the container's engine: only what is given
/// changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointUpdate {
    /// Name or ID of the service to be a replica of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// See [`EndpointSpec::preferred_name`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferred_name: Option<Name>,
    /// All other names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aliases: Option<Vec<Name>>,
    /// What it is attached to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// How much of its service's traffic it is to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<Weight>,
    /// Inode of the target's network namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_inode: Option<u64>,
    /// Name of the interface inside the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ifname: Option<String>,
    /// See [`Endpoint::owner`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// What an agent asks of the manager when it attaches a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EndpointSpec {
    /// Name or ID of the network.
    pub network: String,
    /// Name or ID of the service to be a replica of.
    #[serde(default)]
    pub service: Option<String>,
    /// Its name; one is made up if absent.
    #[serde(default)]
    pub name: Option<Name>,
    /// Its name if no other endpoint of the network has it, else one of its aliases: what an engine calls a container,
    /// and may call one on each node.
    #[serde(default)]
    pub preferred_name: Option<Name>,
    /// Addresses wanted, at most one a family.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// More names.
    #[serde(default)]
    pub aliases: Vec<Name>,
    /// How much of its service's traffic it is to have.
    #[serde(default)]
    pub weight: Weight,
    /// What to attach.
    pub target: Target,
    /// Inode of the target's network namespace, filled in by its node.
    #[serde(default)]
    pub namespace_inode: u64,
    /// Name of the interface inside the target.
    pub ifname: String,
    /// Its MAC address; one is drawn if absent.
    #[serde(default)]
    pub mac: Option<MacAddr>,
    /// Ports of its node that lead to it alone.
    #[serde(default)]
    pub ports: Vec<PublishedPort>,
    /// What the program that asks calls the attachment.
    #[serde(default)]
    pub owner: Option<String>,
    /// Addresses that its engine gives it beside the cluster's.
    #[serde(default)]
    pub local_addresses: Vec<IpAddr>,
}

impl EndpointSpec {
    /// An endpoint of which everything else is left to the cluster.
    pub fn new(network: impl Into<String>, target: Target, ifname: impl Into<String>) -> Self {
        Self {
            network: network.into(),
            service: None,
            name: None,
            preferred_name: None,
            addresses: Vec::new(),
            aliases: Vec::new(),
            weight: Weight::default(),
            target,
            namespace_inode: 0,
            ifname: ifname.into(),
            mac: None,
            ports: Vec::new(),
            owner: None,
            local_addresses: Vec::new(),
        }
    }
}

/// What the check of an endpoint's service says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Checked, with no verdict yet: out until its first success.
    #[default]
    Starting,
    /// In.
    Healthy,
    /// Out.
    Unhealthy,
    /// Its service has no check (or it has no service): in.
    Unchecked,
}

impl Health {
    /// Whether such an endpoint is offered traffic.
    pub const fn is_in(self) -> bool {
        matches!(self, Self::Healthy | Self::Unchecked)
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Unchecked => "unchecked",
        })
    }
}
