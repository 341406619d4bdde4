//! `meshctl endpoint`.

use crate::{
    output::{Column, ago, joined},
    removal,
    session::Session,
};
use clap::Subcommand;
use mesh_api::{EndpointFilter, EndpointSettings, EndpointView};
use mesh_model::Weight;

/// What can be asked of endpoints.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List endpoints
    #[command(
        visible_alias = "list",
        after_help = "Examples:
  meshctl endpoint ls
  meshctl -q endpoint ls --network blue --service web"
    )]
    Ls {
        /// Only those of this network
        #[arg(long)]
        network: Option<String>,
        /// Only those of this service
        #[arg(long)]
        service: Option<String>,
        /// Show whole IDs
        #[arg(long)]
        no_trunc: bool,
    },
    /// Show endpoints in full
    #[command(after_help = "Example:\n  meshctl -o json endpoint inspect web1")]
    Inspect {
        /// IDs, unique prefixes of IDs, or unique names
        #[arg(required = true, value_name = "ENDPOINT")]
        endpoints: Vec<String>,
    },
    /// Change an endpoint; returns when every node does as it says
    #[command(after_help = "Examples:
  meshctl endpoint update --weight 3 web1
  meshctl endpoint update --weight 0 web1    # no new connections, until it has a weight again")]
    Update {
        /// Share of the service's new connections relative to its other replicas, 0 to 256
        #[arg(long, required = true)]
        weight: Weight,
        /// ID, unique prefix of it, or unique name
        endpoint: String,
    },
    /// Send an endpoint no new connections; returns when no node does any more
    #[command(after_help = "Example:\n  meshctl endpoint drain web1")]
    Drain {
        /// ID, unique prefix of it, or unique name
        endpoint: String,
    },
    /// Disconnect endpoints from their network, drained first
    #[command(after_help = "Example:\n  meshctl endpoint rm web1 web2")]
    Rm {
        /// IDs, unique prefixes of IDs, or unique names
        #[arg(required = true, value_name = "ENDPOINT")]
        endpoints: Vec<String>,
    },
}

pub(crate) const COLUMNS: &[Column<EndpointView>] = &[
    ("ID", |e, style| style.id(e.id)),
    ("NAME", |e, _| e.name.clone()),
    ("NETWORK", |e, _| e.network.clone()),
    ("SERVICE", |e, _| e.service.clone().unwrap_or_default()),
    ("NODE", |e, _| e.node.clone()),
    ("ADDRESS", |e, _| joined(&e.addresses)),
    ("HEALTH", |e, _| health(e)),
];

pub(crate) const FIELDS: &[Column<EndpointView>] = &[
    ("ID", |e, _| e.id.to_string()),
    ("Name", |e, _| e.name.clone()),
    ("Network", |e, _| e.network.clone()),
    ("Service", |e, _| e.service.clone().unwrap_or_default()),
    ("Node", |e, _| e.node.clone()),
    ("Addresses", |e, _| joined(&e.addresses)),
    ("MAC", |e, _| e.mac.to_string()),
    ("Aliases", |e, _| e.aliases.join(", ")),
    ("Health", |e, _| health(e)),
    ("Target", |e, _| e.target.to_string()),
    ("Interface", |e, _| e.ifname.clone()),
    ("Source NAT", |e, _| {
        let of = |addresses: String| format!("UDP from outside to {addresses} comes from the gateway");
        Some(joined(&e.source_nat)).filter(|addresses| !addresses.is_empty()).map(of).unwrap_or_default()
    }),
    ("Name servers", |e, _| joined(&e.nameservers)),
    ("Connected", |e, style| ago(e.created, style.now)),
];

/// What its check says, and what else decides on how much traffic it gets.
pub(crate) fn health(endpoint: &EndpointView) -> String {
    let mut words = endpoint.health.to_string();
    if !endpoint.weight.is_default() {
        words += &format!(", weight {}", endpoint.weight);
    }
    if endpoint.draining {
        words += ", draining";
    }
    words
}

/// For `-q`.
pub(crate) fn id(endpoint: &EndpointView) -> String {
    endpoint.id.to_string()
}

impl Command {
    pub(crate) async fn act(self, session: &Session) -> anyhow::Result<()> {
        let Session { client, output } = session;
        match self {
            Self::Ls { network, service, no_trunc } => {
                let filter = EndpointFilter { network, service, ..EndpointFilter::default() };
                let found = session.wait("asking meshd", client.endpoints(&filter)).await?;
                output.list(&found, id, COLUMNS, no_trunc)
            }
            Self::Inspect { endpoints } => {
                let mut found = Vec::new();
                for endpoint in &endpoints {
                    found.push(session.wait("asking meshd", client.endpoint(endpoint)).await?);
                }
                output.inspect(&found, id, FIELDS)
            }
            Self::Update { weight, endpoint } => {
                let settings = EndpointSettings { weight: Some(weight) };
                let doing = format!("updating {endpoint}");
                let updated = session.wait(&doing, client.endpoint_update(&endpoint, &settings)).await?;
                output.done(&updated, &updated.id.to_string(), &updated.id.to_string())
            }
            Self::Drain { endpoint } => {
                let doing = format!("draining {endpoint}");
                let drained = session.wait(&doing, client.endpoint_drain(&endpoint)).await?;
                output.done(&drained, &drained.id.to_string(), &drained.id.to_string())
            }
            Self::Rm { endpoints } => {
                removal::each(session, &endpoints, async |name| client.endpoint_rm(name).await).await
            }
        }
    }
}
