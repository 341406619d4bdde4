//! `meshctl status` and `meshctl version`.

use crate::{
    output::{Column, joined},
    session::Session,
};
use anyhow::bail;
use mesh_api::{FrontState, FrontView, State, StatusView};
use serde::Serialize;

pub(crate) const FIELDS: &[Column<StatusView>] = &[
    ("State", |s, _| match s.state {
        State::Unclustered => "waits for 'meshctl cluster init' or 'meshctl cluster join'".to_owned(),
        State::Detached => "detached: runs from the last state, no manager answers".to_owned(),
        State::Removed => "removed from the cluster: runs from the last state until it leaves".to_owned(),
        State::Ready => "ready".to_owned(),
    }),
    ("Node", |s, _| {
        s.node.as_ref().map(|n| format!("{} ({}, {})", n.name, n.id, n.role)).unwrap_or_default()
    }),
    ("Address", |s, _| s.node.as_ref().map(|n| n.address.to_string()).unwrap_or_default()),
    ("Cluster", |s, _| s.cluster.clone().unwrap_or_default()),
    ("Managers", |s, _| joined(&s.managers)),
    ("Revision", |s, _| s.revision.to_string()),
    ("Version", |s, _| s.version.clone()),
    ("Front", |s, _| {
        let fronts: Vec<_> = s.fronts.iter().map(|front| self::front(front, &s.version)).collect();
        fronts.join("\n")
    }),
    ("Problems", |s, _| s.problems.join("\n")),
];

/// A front process, and its version if that is not the daemon's.
fn front(front: &FrontView, daemon: &str) -> String {
    let does = match front.state {
        FrontState::Serving => "serves",
        FrontState::Finishing => "finishes its connections",
    };
    let version = match front.version.as_deref() {
        Some(version) if version == daemon => String::new(),
        Some(version) => format!(" (version {version})"),
        None => " (of an earlier version)".to_owned(),
    };
    format!("process {}{version} {does}", front.pid)
}

/// `meshctl status`: done if meshd is ready, or waits for a cluster; failed if no manager answers it.
pub(crate) async fn status(session: &Session) -> anyhow::Result<()> {
    let status = session.wait("asking meshd", session.client.status()).await?;
    session.output.show(&status, FIELDS)?;
    match status.state {
        State::Unclustered | State::Ready => Ok(()),
        State::Removed => bail!(
            "this node was removed from the cluster: run 'meshctl cluster leave --force' here, then join again"
        ),
        State::Detached => bail!("no manager answers ({}): see that one runs", joined(&status.managers)),
    }
}

#[derive(Debug, Serialize)]
struct Versions {
    client: &'static str,
    server: Option<String>,
}

const VERSIONS: &[Column<Versions>] = &[
    ("meshctl", |v, _| v.client.to_owned()),
    ("meshd", |v, _| v.server.clone().unwrap_or_else(|| "not reached".to_owned())),
];

/// `meshctl version`: its own is shown even if meshd does not answer, which is a failure all the same.
pub(crate) async fn version(session: &Session) -> anyhow::Result<()> {
    let status = session.wait("asking meshd", session.client.status()).await;
    let server = status.as_ref().ok().map(|status| status.version.clone());
    session.output.show(&Versions { client: env!("CARGO_PKG_VERSION"), server }, VERSIONS)?;
    status.map(drop)
}
