//! `meshctl node`.

use crate::{
    output::{Column, ago, joined},
    session::Session,
};
use clap::Subcommand;
use mesh_api::NodeView;
use mesh_model::Refusal;

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
}

pub(crate) const COLUMNS: &[Column<NodeView>] = &[
    ("ID", |n, style| style.id(n.id) + if n.local { " *" } else { "" }),
    ("NAME", |n, _| n.name.clone()),
    ("STATUS", |n, _| n.status.to_string()),
    ("AVAILABILITY", |n, _| n.availability.to_string()),
    ("MANAGER STATUS", |n, _| if n.leader { "Leader".to_owned() } else { String::new() }),
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

fn id(node: &NodeView) -> String {
    node.id.to_string()
}

impl Command {
    pub(crate) async fn act(self, session: &Session) -> anyhow::Result<()> {
        let nodes = session.wait("asking meshd", session.client.nodes()).await?;
        match self {
            Self::Ls { no_trunc } => session.output.list(&nodes, id, COLUMNS, no_trunc),
            Self::Inspect { nodes: wanted } => {
                let found: Result<Vec<&NodeView>, _> = wanted.iter().map(|w| find(&nodes, w)).collect();
                let found: Vec<NodeView> = found?.into_iter().cloned().collect();
                session.output.inspect(&found, id, FIELDS)
            }
        }
    }
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
