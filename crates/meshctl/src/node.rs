//! `meshctl node`.

use crate::{
    endpoint,
    output::{Column, ago, joined},
    removal,
    session::Session,
    value,
};
use clap::{Args, Subcommand, ValueEnum};
use mesh_api::{EndpointFilter, NodeView, RoleChanged};
use mesh_model::{Availability, NodeStatus, NodeUpdate, Refusal, Role};

/// What can be asked of nodes.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the nodes of the cluster; the one that answers has a '*'
    #[command(visible_alias = "list", after_help = "Example:\n  meshctl node ls")]
    Ls {
        /// Show whole IDs
        #[arg(long)]
        no_trunc: bool,
    },
    /// Show nodes in full
    #[command(after_help = "Examples:\n  meshctl node inspect self\n  meshctl -o json node inspect vm1")]
    Inspect {
        /// Names, IDs or unique prefixes of IDs; 'self' is the one that answers
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// List the endpoints on a node
    #[command(after_help = "Examples:\n  meshctl node ps\n  meshctl node ps vm2")]
    Ps {
        /// Name, ID or unique prefix of the ID; 'self' is the one that answers
        #[arg(default_value = "self")]
        node: String,
        /// Show whole IDs
        #[arg(long)]
        no_trunc: bool,
    },
    /// Make workers managers: with three, the cluster takes changes while one of them is away
    #[command(after_help = "Example:\n  meshctl node promote vm2 vm3")]
    Promote {
        /// Names, IDs or unique prefixes of IDs
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// Make managers workers
    ///
    /// A former manager has seen the key of the cluster's CA. If its host is not to be trusted any more, replace the CA as
    /// well: 'meshctl cluster ca --rotate'.
    #[command(after_help = "Example:\n  meshctl node demote vm3")]
    Demote {
        /// Names, IDs or unique prefixes of IDs
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// Change a node; what is not given stays
    #[command(after_help = "Examples:
  meshctl node update --availability drain vm2
  meshctl node update --availability active --label-add zone=a vm2")]
    Update(UpdateArgs),
    /// Remove nodes that are down, with their endpoints
    #[command(
        visible_alias = "remove",
        after_help = "Examples:\n  meshctl node rm vm3\n  meshctl node rm --force vm3"
    )]
    Rm {
        /// Also if the node is up: it is refused from then on
        #[arg(long, short)]
        force: bool,
        /// Names, IDs or unique prefixes of IDs
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
    },
}

/// `node update`.
#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    changes: Changes,
    /// Name, ID or unique prefix of the ID; 'self' is the one that answers
    node: String,
}

/// What of a node to change: something.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Changes {
    /// Whether it is offered new traffic
    #[arg(long, value_enum)]
    availability: Option<AvailabilityName>,
    /// Set a label (repeatable)
    #[arg(long, value_name = "KEY=VALUE", value_parser = value::label)]
    label_add: Vec<(String, String)>,
    /// Remove a label (repeatable)
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AvailabilityName {
    /// In use
    Active,
    /// Keeps its endpoints and takes no new ones
    Pause,
    /// Its endpoints get no new connections, and it takes no new ones
    Drain,
}

impl From<AvailabilityName> for Availability {
    fn from(name: AvailabilityName) -> Self {
        match name {
            AvailabilityName::Active => Self::Active,
            AvailabilityName::Pause => Self::Pause,
            AvailabilityName::Drain => Self::Drain,
        }
    }
}

pub(crate) const COLUMNS: &[Column<NodeView>] = &[
    ("ID", |n, style| style.id(n.id) + if n.local { " *" } else { "" }),
    ("NAME", |n, _| n.name.clone()),
    ("STATUS", |n, _| n.status.to_string()),
    ("AVAILABILITY", |n, _| n.availability.to_string()),
    ("MANAGER STATUS", |n, _| manager_status(n).to_owned()),
    ("ADDRESS", |n, _| n.address.ip().to_string()),
];

pub(crate) const FIELDS: &[Column<NodeView>] = &[
    ("ID", |n, _| n.id.to_string()),
    ("Name", |n, _| n.name.clone()),
    ("Role", |n, _| n.role.to_string() + if n.leader { " (leader)" } else { "" }),
    ("Status", |n, _| n.status.to_string()),
    ("Availability", |n, _| n.availability.to_string()),
    ("Address", |n, _| n.address.to_string()),
    ("Overlay addresses", |n, _| joined(&n.overlay_addresses)),
    ("Labels", |n, _| joined(n.labels.iter().map(|(key, value)| format!("{key}={value}")))),
    ("Joined", |n, style| ago(n.created, style.now)),
];

/// As Docker has it: empty for workers.
fn manager_status(node: &NodeView) -> &'static str {
    match (node.role, node.status) {
        (Role::Worker, _) => "",
        (Role::Manager, NodeStatus::Down) => "Unreachable",
        (Role::Manager, _) if node.leader => "Leader",
        (Role::Manager, _) => "Reachable",
    }
}

fn id(node: &NodeView) -> String {
    node.id.to_string()
}

impl Command {
    pub(crate) async fn act(self, session: &Session) -> anyhow::Result<()> {
        let nodes = session.wait("asking meshd", session.client.nodes()).await?;
        match self {
            Self::Ls { no_trunc } => session.output.list(&nodes, id, COLUMNS, no_trunc),
            Self::Inspect { nodes: wanted } => {
                let found: Vec<NodeView> = in_full(&nodes, &wanted)?.into_iter().cloned().collect();
                session.output.inspect(&found, id, FIELDS)
            }
            Self::Ps { node, no_trunc } => {
                let node = Some(find(&nodes, &node)?.id.to_string());
                let filter = EndpointFilter { node, ..EndpointFilter::default() };
                let endpoints = session.wait("asking meshd", session.client.endpoints(&filter)).await?;
                session.output.list(&endpoints, endpoint::id, endpoint::COLUMNS, no_trunc)
            }
            Self::Promote { nodes: wanted } => {
                for node in in_full(&nodes, &wanted)? {
                    let node = node.id.to_string();
                    let done = session.client.node_promote(&node);
                    role_changed(session, &session.wait("making it a manager", done).await?)?;
                }
                Ok(())
            }
            Self::Demote { nodes: wanted } => {
                for node in in_full(&nodes, &wanted)? {
                    let node = node.id.to_string();
                    let done = session.client.node_demote(&node);
                    role_changed(session, &session.wait("making it a worker", done).await?)?;
                }
                Ok(())
            }
            Self::Update(args) => {
                let node = find(&nodes, &args.node)?;
                let update = NodeUpdate {
                    availability: args.changes.availability.map(Availability::from),
                    label_add: args.changes.label_add.into_iter().collect(),
                    label_rm: args.changes.label_rm,
                };
                let id = node.id.to_string();
                let updated =
                    session.wait("changing the node", session.client.node_update(&id, &update)).await?;
                session.output.done(&updated, &updated.name, &id)
            }
            Self::Rm { force, nodes } => {
                removal::each(session, &nodes, async |name| session.client.node_rm(name, force).await).await
            }
        }
    }
}

/// All of them, or none if one is unknown.
fn in_full<'a>(nodes: &'a [NodeView], wanted: &[String]) -> Result<Vec<&'a NodeView>, Refusal> {
    wanted.iter().map(|wanted| find(nodes, wanted)).collect()
}

fn role_changed(session: &Session, done: &RoleChanged) -> anyhow::Result<()> {
    let already = if done.unchanged { " already" } else { "" };
    let text = format!("Node {} is a {}{already}.", done.name, done.role);
    session.output.done(done, &text, &done.id.to_string())
}

/// A node by name, ID or a prefix of its ID that no other has: the rules of [`mesh_model::Snapshot::find_node`].
fn find<'a>(nodes: &'a [NodeView], wanted: &str) -> Result<&'a NodeView, Refusal> {
    let named = nodes.iter().find(|n| n.name == wanted);
    let own = || nodes.iter().find(|n| wanted == "self" && n.local);
    let by_prefix = || {
        let mut matching = nodes
            .iter()
            .filter(|n| wanted.len() >= mesh_model::ID_PREFIX && n.id.to_string().starts_with(wanted));
        matching.next().filter(|_| matching.next().is_none())
    };
    let not_found = || Refusal::NotFound { kind: "node", wanted: wanted.to_owned() };
    named.or_else(own).or_else(by_prefix).ok_or_else(not_found)
}
