//! `meshctl doctor`.

use crate::{
    output::{Column, Style, table},
    session::Session,
};
use anyhow::bail;
use mesh_api::{Diagnosis, Examine, Finding, Outcome};

/// What to look at.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Find what is wrong with this host's node and with its links to the other nodes, and say what to do

Looks at the kernel, the firewall and the networks of this host, and asks every other node over the networks themselves and
past them: blocked ports, MTU black holes, addresses that two machines have, checksum offload trouble, clocks, name servers,
published ports. Each node sees its own links: run it on both ends of a link that is in doubt. Takes about two seconds, five at
most. It connects to published TCP ports of other nodes and hangs up.",
    after_help = "Examples:
  meshctl doctor
  meshctl doctor --node vm2
  meshctl doctor --network blue
  meshctl -o json doctor | jq -r '.findings[] | select(.outcome == \"failed\") | .check'

Exit codes: 0 healthy, warnings or not; 1 something failed."
)]
pub(crate) struct Args {
    /// Only this network: name, ID or unique prefix of the ID
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
    /// Only the links to this node: name, ID or unique prefix of the ID; 'self': only this host
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
}

pub(crate) const COLUMNS: &[Column<Finding>] = &[
    ("STATUS", |f, _| f.outcome.to_string()),
    ("CHECK", |f, _| format!("{}/{}", f.group, f.check)),
    ("WHERE", |f, _| f.place.clone()),
    ("RESULT", |f, _| f.result.clone()),
    ("WHAT TO DO", |f, _| f.remedy.clone()),
];

/// Without what to do: nothing is.
const FINE: usize = 4;

/// Fails if the node is not healthy.
pub(crate) async fn doctor(session: &Session, args: Args) -> anyhow::Result<()> {
    let what = Examine { network: args.network, node: args.node };
    let diagnosis = session.wait("looking and asking the other nodes", session.client.doctor(&what)).await?;
    session.output.report(&diagnosis, |style| text(&diagnosis, style))?;
    if diagnosis.healthy {
        return Ok(());
    }
    let failed = diagnosis.findings.iter().filter(|finding| finding.outcome == Outcome::Failed).count();
    let plural = if failed == 1 { "" } else { "s" };
    let node = if diagnosis.node.is_empty() { "this host" } else { &diagnosis.node };
    bail!(
        "{node} is not healthy: {failed} finding{plural} FAILED: do what stands beside, worst first from the top"
    )
}

/// What needs somebody first, then what does not.
pub(crate) fn text(diagnosis: &Diagnosis, style: &Style) -> String {
    let (bad, fine): (Vec<Finding>, Vec<Finding>) = diagnosis
        .findings
        .iter()
        .cloned()
        .partition(|finding| matches!(finding.outcome, Outcome::Failed | Outcome::Warning));
    let sorted = |mut findings: Vec<Finding>| {
        // By outcome; what is alike stays in its order, which is by group.
        findings.sort_by_key(|finding| finding.outcome);
        findings
    };
    let tables = [(sorted(bad), COLUMNS), (sorted(fine), &COLUMNS[..FINE])];
    let tables = tables.iter().filter(|(findings, _)| !findings.is_empty());
    tables.map(|(findings, columns)| table::rows(findings, columns, style)).collect::<Vec<_>>().join("\n")
}
