//! `meshctl network`.

mod connect;
mod create;
mod podman;
mod prune;
mod update;

use crate::{
    output::{Column, ago, joined},
    removal,
    session::Session,
};
use clap::Subcommand;
use mesh_api::{NetworkUse, NetworkView};
use mesh_model::{DomainName, Resolver};

/// What can be asked of networks.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a network and print its ID
    #[command(after_help = create::EXAMPLES)]
    Create(create::Args),
    /// List networks
    #[command(visible_alias = "list", after_help = "Example:\n  meshctl network ls")]
    Ls {
        /// Show whole IDs
        #[arg(long)]
        no_trunc: bool,
    },
    /// Show networks in full
    #[command(after_help = "Example:\n  meshctl -o json network inspect blue")]
    Inspect {
        /// Names, IDs or unique prefixes of IDs
        #[arg(required = true, value_name = "NETWORK")]
        networks: Vec<String>,
    },
    /// Change a network; what is not given stays
    #[command(after_help = update::EXAMPLES)]
    Update(update::Args),
    /// Remove all networks that nothing uses, and print their names
    #[command(after_help = "Example:\n  meshctl network prune -f")]
    Prune(prune::Args),
    /// Remove networks that nothing uses
    #[command(visible_alias = "remove", after_help = "Example:\n  meshctl network rm blue green")]
    Rm {
        /// Names, IDs or unique prefixes of IDs
        #[arg(required = true, value_name = "NETWORK")]
        networks: Vec<String>,
    },
    /// Connect a container to a network and print the ID of its endpoint
    #[command(after_help = connect::EXAMPLES)]
    Connect(connect::Args),
    /// Disconnect a container from a network; it is no error if it is not connected
    #[command(after_help = "Examples:
  meshctl network disconnect blue netns:/run/netns/web1
  meshctl network disconnect --force blue web1")]
    Disconnect(connect::DisconnectArgs),
}

pub(crate) const COLUMNS: &[Column<NetworkView>] = &[
    ("ID", |n, style| style.id(n.id)),
    ("NAME", |n, _| n.name.clone()),
    ("VNI", |n, _| n.vni.to_string()),
    ("SUBNETS", |n, _| joined(n.subnets.iter().map(|s| s.cidr))),
    ("ENDPOINTS", |n, _| n.endpoints.len().to_string()),
    ("FLAGS", |n, _| if n.internal { "internal".to_owned() } else { String::new() }),
];

pub(crate) const FIELDS: &[Column<NetworkView>] = &[
    ("ID", |n, _| n.id.to_string()),
    ("Name", |n, _| n.name.clone()),
    ("VNI", |n, _| n.vni.to_string()),
    ("Subnets", |n, _| joined(n.subnets.iter().map(subnet))),
    ("Internal", |n, _| if n.internal { "yes".to_owned() } else { String::new() }),
    ("MTU", |n, _| n.mtu.map_or_else(String::new, |mtu| mtu.to_string())),
    ("DNS", |n, _| joined(&n.dns.upstreams)),
    ("DNS domains", |n, _| domains(n)),
    ("Labels", |n, _| joined(n.labels.iter().map(|(key, value)| format!("{key}={value}")))),
    ("Services", |n, _| users(&n.services)),
    ("Endpoints", |n, _| users(&n.endpoints)),
    ("Created", |n, style| ago(n.created, style.now)),
];

fn subnet(subnet: &mesh_model::Subnet) -> String {
    let range = subnet.range.map(|range| format!(", range {range}")).unwrap_or_default();
    format!("{} (gateway {}{range})", subnet.cidr, subnet.gateway)
}

/// A line each: the domain and its resolvers.
fn domains(network: &NetworkView) -> String {
    let line = |(domain, resolvers): (&DomainName, &Vec<Resolver>)| format!("{domain} {}", joined(resolvers));
    network.dns.domains.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A line each, by name: name, addresses and, for an endpoint, its node.
fn users(users: &[NetworkUse]) -> String {
    let mut users: Vec<&NetworkUse> = users.iter().collect();
    users.sort_by_key(|u| &u.name);
    let line = |u: &NetworkUse| {
        let node = u.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
        format!("{} {}{node}", u.name, joined(&u.addresses))
    };
    users.into_iter().map(line).collect::<Vec<_>>().join("\n")
}

fn id(network: &NetworkView) -> String {
    network.id.to_string()
}

impl Command {
    pub(crate) async fn act(self, session: &Session) -> anyhow::Result<()> {
        let Session { client, output } = session;
        match self {
            Self::Create(args) => args.act(session).await,
            Self::Ls { no_trunc } => {
                let networks = session.wait("asking meshd", client.networks()).await?;
                output.list(&networks, id, COLUMNS, no_trunc)
            }
            Self::Inspect { networks } => {
                let found = session.each(&networks, async |name| client.network(name).await).await?;
                output.inspect(&found, id, FIELDS)
            }
            Self::Update(args) => args.act(session).await,
            Self::Prune(args) => args.act(session).await,
            Self::Rm { networks } => {
                removal::each(session, &networks, async |name| client.network_rm(name).await).await
            }
            Self::Connect(args) => args.act(session).await,
            Self::Disconnect(args) => args.act(session).await,
        }
    }
}
