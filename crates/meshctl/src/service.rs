//! `meshctl service`.

mod create;
mod health;
mod update;

use crate::{
    endpoint,
    output::{Column, ago, bytes, joined},
    removal,
    session::Session,
};
use clap::{Subcommand, ValueEnum};
use mesh_api::{EndpointFilter, EndpointView, ServiceView, TrafficView};
use mesh_model::{Balance, EndpointMode, ParsePortError, PublishedPort, Service};

/// What can be asked of services.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a service and print its ID
    #[command(after_help = create::EXAMPLES)]
    Create(create::Args),
    /// List services
    #[command(visible_alias = "list", after_help = "Example:\n  meshctl service ls")]
    Ls {
        /// Show whole IDs
        #[arg(long)]
        no_trunc: bool,
    },
    /// List the endpoints of a service
    #[command(after_help = "Example:\n  meshctl service ps web")]
    Ps {
        /// Name, ID or unique prefix of the ID
        service: String,
        /// Show whole IDs
        #[arg(long)]
        no_trunc: bool,
    },
    /// Show services in full: also what went through their published ports on each node, and which nodes can't serve them
    ///
    /// Traffic is counted by port and replica since the node's meshd started; that of HTTP ports is not, nor that of services with
    /// more than 1,024 ports. Nodes that do not answer in two seconds are named.
    #[command(after_help = "Example:\n  meshctl -o json service inspect web")]
    Inspect {
        /// Names, IDs or unique prefixes of IDs
        #[arg(required = true, value_name = "SERVICE")]
        services: Vec<String>,
    },
    /// Change a service; what is not given stays
    #[command(after_help = update::EXAMPLES)]
    Update(update::Args),
    /// Remove services that have no endpoints
    #[command(visible_alias = "remove", after_help = "Example:\n  meshctl service rm web")]
    Rm {
        /// Names, IDs or unique prefixes of IDs
        #[arg(required = true, value_name = "SERVICE")]
        services: Vec<String>,
    },
}

pub(crate) const COLUMNS: &[Column<ServiceView>] = &[
    ("ID", |s, style| style.id(s.id)),
    ("NAME", |s, _| s.name.clone()),
    ("MODE", |s, _| s.endpoint_mode.to_string()),
    ("ENDPOINTS", |s, _| format!("{}/{}", s.healthy, s.total)),
    ("PORTS", |s, _| joined(&s.ports)),
];

pub(crate) const PS_COLUMNS: &[Column<EndpointView>] = &[
    ("ID", |e, style| style.id(e.id)),
    ("NAME", |e, _| e.name.clone()),
    ("NETWORK", |e, _| e.network.clone()),
    ("NODE", |e, _| e.node.clone()),
    ("ADDRESS", |e, _| joined(&e.addresses)),
    ("HEALTH", |e, _| endpoint::health(e)),
    ("SINCE", |e, style| ago(e.created, style.now)),
];

pub(crate) const FIELDS: &[Column<ServiceView>] = &[
    ("ID", |s, _| s.id.to_string()),
    ("Name", |s, _| s.name.clone()),
    ("Mode", |s, _| s.endpoint_mode.to_string()),
    ("Networks", |s, _| {
        let line = |on: &mesh_api::AddressesView| format!("{} {}", on.network, joined(&on.addresses));
        s.networks.iter().map(line).collect::<Vec<_>>().join("\n")
    }),
    ("Aliases", |s, _| s.aliases.join(", ")),
    ("Ports", |s, _| joined(&s.ports)),
    ("Endpoints", |s, _| format!("{} of {} take traffic", s.healthy, s.total)),
    ("Source NAT", |s, _| {
        let line = |of: &mesh_api::SourceNatView| {
            format!(
                "UDP to {} on {} ({}) comes from the gateway",
                of.endpoint,
                of.node,
                joined(&of.addresses)
            )
        };
        s.source_nat.iter().map(line).collect::<Vec<_>>().join("\n")
    }),
    ("Degraded", |s, _| {
        let line = |of: &mesh_api::DegradedView| format!("{}: {}", of.node, of.problem);
        s.degraded.iter().map(line).collect::<Vec<_>>().join("\n")
    }),
    ("Traffic", |s, _| {
        let some = s.traffic.iter().filter(|of| of.connections > 0 || of.sent.packets > 0).map(traffic);
        let uncounted = (s.ports.len() > Service::COUNTED_PORTS)
            .then(|| format!("not counted: more than {} ports", Service::COUNTED_PORTS));
        uncounted.into_iter().chain(some).collect::<Vec<_>>().join("\n")
    }),
    ("Not told by", |s, _| s.silent.join(", ")),
    ("Health check", |s, _| s.health.as_ref().map(health::described).unwrap_or_default()),
    ("Balance", |s, _| {
        let local = if s.prefer_local { ", local replicas preferred" } else { "" };
        format!("{}{local}", s.balance)
    }),
    ("Drain timeout", |s, _| health::duration(s.drain_timeout_ms)),
    ("Created", |s, style| ago(s.created, style.now)),
];

/// `80/tcp on vm1 to web1: 12 connections, sent 3.4 kB (40 packets), received 12.0 MB (900 packets)`.
fn traffic(of: &TrafficView) -> String {
    let count = |count: mesh_api::CountView| match count.packets {
        // Relayed: a process sees no packets.
        0 if count.bytes > 0 => bytes(count.bytes),
        packets => format!("{} ({packets} packets)", bytes(count.bytes)),
    };
    format!(
        "{}/{} on {} to {}: {} connections, sent {}, received {}",
        joined(&of.published),
        of.protocol,
        of.node,
        of.endpoint,
        of.connections,
        count(of.sent),
        count(of.received)
    )
}

fn id(service: &ServiceView) -> String {
    service.id.to_string()
}

impl Command {
    pub(crate) async fn act(self, session: &Session) -> anyhow::Result<()> {
        let Session { client, output } = session;
        match self {
            Self::Create(args) => args.act(session).await,
            Self::Ls { no_trunc } => {
                let services = session.wait("asking meshd", client.services()).await?;
                output.list(&services, id, COLUMNS, no_trunc)
            }
            Self::Ps { service, no_trunc } => {
                let filter = EndpointFilter { service: Some(service), ..EndpointFilter::default() };
                let endpoints = session.wait("asking meshd", client.endpoints(&filter)).await?;
                output.list(&endpoints, endpoint::id, PS_COLUMNS, no_trunc)
            }
            Self::Inspect { services } => {
                let found = session.each(&services, async |name| client.service(name).await).await?;
                output.inspect(&found, id, FIELDS)
            }
            Self::Update(args) => args.act(session).await,
            Self::Rm { services } => {
                removal::each(session, &services, async |name| client.service_rm(name).await).await
            }
        }
    }
}

/// One `--publish`: several ports if it is a range.
#[derive(Debug, Clone)]
struct Publish(Vec<PublishedPort>);

fn publish(text: &str) -> Result<Publish, ParsePortError> {
    mesh_model::parse_publish(text).map(Publish)
}

fn ports(publish: Vec<Publish>) -> Vec<PublishedPort> {
    publish.into_iter().flat_map(|Publish(ports)| ports).collect()
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ModeName {
    /// To one virtual address a network, balanced in the kernel
    Vip,
    /// To the addresses of the endpoints
    Dnsrr,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum BalanceName {
    /// In turn
    Roundrobin,
    /// At random; for those with thousands of services
    Random,
    /// By the client's address: the same endpoint from every node, as long as it is there
    Source,
}

impl From<ModeName> for EndpointMode {
    fn from(name: ModeName) -> Self {
        match name {
            ModeName::Vip => Self::Vip,
            ModeName::Dnsrr => Self::Dnsrr,
        }
    }
}

impl From<BalanceName> for Balance {
    fn from(name: BalanceName) -> Self {
        match name {
            BalanceName::Roundrobin => Self::Roundrobin,
            BalanceName::Random => Self::Random,
            BalanceName::Source => Self::Source,
        }
    }
}
