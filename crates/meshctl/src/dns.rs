//! `meshctl dns`.

use crate::{
    output::{Column, Style, joined, table},
    session::Session,
};
use clap::Subcommand;
use mesh_api::{DnsView, NameServerView, Resolve, Resolved, UpstreamState, UpstreamView};

/// What can be asked of name servers.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Ask for a name as a container on this host would
    #[command(
        long_about = "Ask for a name as a container on this host would

The name servers of this host's networks are asked, from inside them. Without --network, those answer that have the name; with
it, names of others are asked of the resolvers beyond, as for a container of that network.",
        after_help = "Examples:
  meshctl dns resolve web
  meshctl dns resolve --network blue tasks.web
  meshctl dns resolve --type SRV _80._tcp.web
  meshctl dns resolve 192.168.100.2
  meshctl -q dns resolve --network blue --type A example.com

Exit codes: 0 found; 1 no such name, or no answer."
    )]
    Resolve {
        /// The network: name, ID or unique prefix of the ID
        #[arg(long, value_name = "NETWORK")]
        network: Option<String>,
        /// Type of the records [default: A and AAAA; PTR for an address]
        #[arg(long = "type", short = 't', value_name = "TYPE")]
        rtype: Option<String>,
        /// The name, or an address
        name: String,
    },
    /// Show this host's name servers, what they were asked, and the resolvers beyond
    #[command(
        after_help = "Examples:\n  meshctl dns status\n  meshctl -o json dns status | jq '.upstreams[].state'"
    )]
    Status,
}

/// A record, and the network whose containers get it.
struct Row {
    network: String,
    name: String,
    rtype: String,
    ttl: String,
    data: String,
}

const RECORDS: &[Column<Row>] = &[
    ("NETWORK", |r, _| r.network.clone()),
    ("NAME", |r, _| r.name.clone()),
    ("TYPE", |r, _| r.rtype.clone()),
    ("TTL", |r, _| r.ttl.clone()),
    ("DATA", |r, _| r.data.clone()),
];

const SERVERS: &[Column<NameServerView>] = &[
    ("NETWORK", |s, _| s.network.clone().unwrap_or_else(|| "(this host)".to_owned())),
    ("ADDRESS", |s, _| joined(&s.addresses)),
    ("QUERIES", |s, _| (s.counts.udp + s.counts.tcp).to_string()),
    ("ANSWERED", |s, _| s.counts.answered.to_string()),
    ("CACHED", |s, _| s.counts.cached.to_string()),
    ("FORWARDED", |s, _| s.counts.forwarded.to_string()),
    ("FAILED", |s, _| s.counts.failed.to_string()),
    ("REFUSED", |s, _| s.counts.refused.to_string()),
    ("LIMITED", |s, _| s.counts.limited.to_string()),
    ("DROPPED", |s, _| s.counts.dropped.to_string()),
];

const UPSTREAMS: &[Column<UpstreamView>] = &[
    ("RESOLVER", |u, _| u.address.to_string()),
    ("ASKED FROM", |u, style| match u.network {
        Some(network) => format!("network {}", style.id(network)),
        None => "this host".to_owned(),
    }),
    ("STATE", |u, _| match u.state {
        UpstreamState::Good => "good".to_owned(),
        UpstreamState::Silent => "silent: asked after the others".to_owned(),
        UpstreamState::Loops => "asks this host in turn: not asked".to_owned(),
    }),
];

impl Command {
    pub(crate) async fn act(self, session: &Session) -> anyhow::Result<()> {
        match self {
            Self::Resolve { network, rtype, name } => {
                let what = Resolve { name, rtype, network };
                let resolved =
                    session.wait("asking the name servers", session.client.dns_resolve(&what)).await?;
                let data: Vec<&str> = records(&resolved).map(|record| record.data.as_str()).collect();
                let style = Style { whole: true, now: 0 };
                let shown = table::rows(&rows(&resolved), RECORDS, &style);
                session.output.done(&resolved, shown.trim_end(), &data.join("\n"))
            }
            Self::Status => {
                let view = session.wait("asking meshd", session.client.dns()).await?;
                session.output.report(&view, |style| status(&view, style))
            }
        }
    }
}

fn records(resolved: &Resolved) -> impl Iterator<Item = &mesh_api::RecordView> {
    resolved.answers.iter().flat_map(|answer| &answer.records)
}

fn rows(resolved: &Resolved) -> Vec<Row> {
    let mut rows = Vec::new();
    for answer in &resolved.answers {
        let network = answer.network.clone();
        if answer.records.is_empty() {
            let (name, rtype, ttl) = (String::new(), String::new(), String::new());
            rows.push(Row {
                network,
                name,
                rtype,
                ttl,
                data: "the name is there, such records are not".to_owned(),
            });
            continue;
        }
        rows.extend(answer.records.iter().map(|record| Row {
            network: network.clone(),
            name: record.name.clone(),
            rtype: record.rtype.clone(),
            ttl: record.ttl.to_string(),
            data: record.data.clone(),
        }));
    }
    rows
}

pub(crate) fn status(view: &DnsView, style: &Style) -> String {
    let mut text = table::rows(&view.servers, SERVERS, style);
    if view.servers.is_empty() {
        text = "No name server: no network is on this host yet\n".to_owned();
    }
    if !view.upstreams.is_empty() {
        text += &format!("\n{}", table::rows(&view.upstreams, UPSTREAMS, style));
    }
    text
}
