//! This node's certificate: renewed by itself, over the link, long before it ends.
//!
//! What is new is saved first and used for the next connection; streams that are open go on with what they began with.
//! A node that was off until its certificate expired renews it before anything else: managers let an expired certificate
//! do that, and only that, as long as its node is a member.

use super::{Agent, problem::Problem};
use crate::{
    api::Failure,
    client::ask_once,
    clock,
    identity::Identity,
    wire::{CertificateHeld, RenewReply, RenewRequest},
};
use anyhow::Context;
use arc_swap::ArcSwap;
use mesh_cluster::{AuthorityCertificate, Credentials, NodeKey};
use mesh_model::{Node, Snapshot};
use std::{
    future::Future,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, time::sleep};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// Longest pause between two looks at the clock, which may be set meanwhile.
const LOOK: Duration = Duration::from_secs(60);
/// Pause before what failed is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// When the CA changes all nodes renew: within this time, not at once.
const SPREAD: Duration = Duration::from_secs(1);

/// What this node proves itself with, and whom it believes.
pub(super) struct Trust {
    credentials: ArcSwap<Credentials>,
    data_dir: PathBuf,
    /// Moves each node's renewals by another part of a certificate's life.
    jitter: f64,
    /// Why the certificate is not up to date, if it is not.
    outdated: Problem,
}

impl Trust {
    pub(super) fn load(data_dir: &Path) -> anyhow::Result<Self> {
        let credentials = ArcSwap::from_pointee(Identity::credentials(data_dir)?);
        Ok(Self {
            credentials,
            data_dir: data_dir.to_owned(),
            jitter: rand::random(),
            outdated: Problem::new("the certificate of this node is not up to date"),
        })
    }

    /// For the next connection.
    pub(super) fn connector(&self) -> anyhow::Result<TlsConnector> {
        Ok(TlsConnector::from(Arc::new(self.credentials.load().client_config()?)))
    }

    /// Renews a certificate that has expired at this manager; nothing to do as long as it has not.
    pub(super) async fn renew_expired(&self, manager: SocketAddr) -> anyhow::Result<()> {
        if clock::unix_seconds() < self.credentials.load().validity().until {
            return Ok(());
        }
        tracing::warn!(%manager, "the certificate of this node has expired: asking for a new one");
        let connector = self.connector()?;
        let ask = async |request| ask_once(manager, &connector, "/v1/agent/renew", &request).await;
        self.renew(ask).await.context("the expired certificate is not renewed")
    }

    /// Runs until cancelled, with the snapshots that managers send.
    pub(super) async fn run(
        self: Arc<Self>,
        agent: Arc<Agent>,
        mut snapshot: watch::Receiver<Arc<Snapshot>>,
        cancel: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut connection = agent.link.watch();
        // The first snapshot is that of the disk: it may be older than the certificate beside it.
        snapshot.mark_unchanged();
        let (mut heard, mut reported) = (false, None);
        loop {
            let latest = heard.then(|| Arc::clone(&snapshot.borrow_and_update()));
            let connected = connection.borrow_and_update().is_some();
            let tended = tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                tended = self.tend(&agent, latest.as_deref(), connected, &mut reported) => tended,
            };
            let failed = self.outdated.note(tended);
            let pause = if failed { RETRY } else { LOOK.min(Duration::from_secs(self.due_in())) };
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                changed = snapshot.changed() => {
                    changed?;
                    heard = true;
                }
                changed = connection.changed() => changed?,
                () = sleep(pause.max(Duration::from_millis(100))) => {}
            }
        }
    }

    /// Why the certificate is not up to date, in a line for people; none if it is.
    pub(super) fn problem(&self) -> Option<String> {
        self.outdated.line()
    }

    /// Does what is due: trusts whom the cluster trusts, renews, reports.
    async fn tend(
        &self,
        agent: &Agent,
        snapshot: Option<&Snapshot>,
        connected: bool,
        reported: &mut Option<CertificateHeld>,
    ) -> anyhow::Result<()> {
        if let Some(cluster) = snapshot.and_then(|snapshot| snapshot.cluster.as_ref()) {
            self.believe(&cluster.authorities)?;
        }
        if !connected {
            return Ok(());
        }
        let node = snapshot.and_then(|snapshot| snapshot.nodes.get(&agent.identity.node));
        let replaced = self.is_of_another_ca();
        if replaced {
            sleep(SPREAD.mul_f64(rand::random())).await;
        }
        if replaced || self.due_in() == 0 || node.is_some_and(|node| self.is_of_another_role(node)) {
            self.renew(async |request| agent.link.post("/v1/agent/renew", &request).await).await?;
        }
        let held = self.held();
        if reported.as_ref() != Some(&held) {
            let told = agent.link.post::<()>("/v1/agent/certificate", &held).await;
            told.context("the managers do not know of it")?;
            *reported = Some(held);
        }
        Ok(())
    }

    /// Seconds until the certificate is to be renewed.
    fn due_in(&self) -> u64 {
        self.credentials.load().validity().renewal(self.jitter).saturating_sub(clock::unix_seconds())
    }

    fn held(&self) -> CertificateHeld {
        let credentials = self.credentials.load();
        let authority = credentials.authority().fingerprint();
        CertificateHeld { authority, expires: credentials.validity().until }
    }

    /// The first of the CAs is the one that signs.
    fn is_of_another_ca(&self) -> bool {
        let credentials = self.credentials.load();
        credentials.trusted().first() != Some(credentials.authority())
    }

    fn is_of_another_role(&self, node: &Node) -> bool {
        self.credentials.load().identity().role != node.role
    }

    fn believe(&self, authorities: &[String]) -> anyhow::Result<()> {
        let current = self.credentials.load_full();
        let known = current.trusted().iter().map(AuthorityCertificate::to_pem);
        if authorities.is_empty() || known.eq(authorities.iter().cloned()) {
            return Ok(());
        }
        let trusted = certificates(authorities)?;
        tracing::info!(?trusted, "CAs that this node trusts");
        self.keep(Credentials::clone(&current).trusting(trusted))
    }

    async fn renew<A>(&self, ask: impl FnOnce(RenewRequest) -> A) -> anyhow::Result<()>
    where
        A: Future<Output = Result<RenewReply, Failure>>,
    {
        let key = NodeKey::generate()?;
        let reply = ask(RenewRequest { csr: key.request()? }).await?;
        let authority = AuthorityCertificate::from_pem(&reply.ca)?;
        let renewed = Credentials::new(authority, &reply.certificate, key, clock::unix_seconds())?;
        let renewed = renewed.trusting(certificates(&reply.authorities)?);
        tracing::info!(until = renewed.validity().until, ca = ?renewed.authority(), "certificate renewed");
        self.keep(renewed)
    }

    /// Saved first: what is in use is never newer than what a restart finds.
    fn keep(&self, credentials: Credentials) -> anyhow::Result<()> {
        Identity::save_credentials(&self.data_dir, &credentials)?;
        self.credentials.store(Arc::new(credentials));
        Ok(())
    }
}

fn certificates(authorities: &[String]) -> Result<Vec<AuthorityCertificate>, mesh_cluster::Error> {
    authorities.iter().map(|pem| AuthorityCertificate::from_pem(pem)).collect()
}
