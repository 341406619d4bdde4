//! `meshctl service update`.

use super::{BalanceName, ModeName, Publish, health::HealthArgs, ports, publish};
use crate::session::Session;
use mesh_model::{HealthCheck, Name, ServiceUpdate, parse_millis};

pub(super) const EXAMPLES: &str = "\
Examples:
  meshctl service update --publish-add 443:8443 --publish-rm 80 web
  meshctl service update --publish-add 80:80 --take web_v2
  meshctl service update --health-http /healthz --health-interval 500ms web
  meshctl service update --no-health --balance random web";

/// `service update`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Port to publish as well (repeatable)
    #[arg(long, visible_alias = "publish", value_name = "SPEC", value_parser = publish)]
    publish_add: Vec<Publish>,
    /// Take ports to publish from the services that have them, in the same change: no client is refused in between
    #[arg(long, requires = "publish_add")]
    take: bool,
    /// Port to publish no more: PUBLISHED[/PROTOCOL], a range FIRST-LAST, or the SPEC that it was published by (repeatable)
    #[arg(long, value_name = "PORT")]
    publish_rm: Vec<String>,
    /// Another name, in place of those it has (repeatable)
    #[arg(long = "alias", value_name = "NAME")]
    aliases: Vec<Name>,
    /// What its name resolves to
    #[arg(long, value_enum, value_name = "MODE")]
    endpoint_mode: Option<ModeName>,
    #[command(flatten)]
    health: HealthArgs,
    /// Check no more
    #[arg(long, conflicts_with = "HealthArgs")]
    no_health: bool,
    /// How a replica is chosen for a new connection
    #[arg(long, value_enum, value_name = "HOW")]
    balance: Option<BalanceName>,
    /// Whether each node leads to replicas of its own as long as it has any
    #[arg(long, value_name = "true|false")]
    prefer_local: Option<bool>,
    /// How long connections may go on after their replica was withdrawn
    #[arg(long, value_name = "DURATION", value_parser = parse_millis)]
    drain_timeout: Option<u64>,
    /// Name, ID or unique prefix of the ID
    service: String,
}

impl Args {
    pub(super) async fn act(self, session: &Session) -> anyhow::Result<()> {
        let service = self.service.clone();
        // What is not said of the check stays as it is.
        let current = if self.health.given() {
            session.wait("asking meshd", session.client.service(&service)).await?.health
        } else {
            None
        };
        let update = self.update(current.as_ref())?;
        let request = session.client.service_update(&service, &update);
        let updated = session.wait("updating the service", request).await?;
        session.created(&updated)
    }

    pub(crate) fn update(self, current: Option<&HealthCheck>) -> anyhow::Result<ServiceUpdate> {
        let health = match (self.no_health, self.health.given()) {
            (true, _) => Some(None),
            (false, true) => Some(Some(self.health.check(current)?)),
            (false, false) => None,
        };
        Ok(ServiceUpdate {
            publish_add: ports(self.publish_add),
            take: self.take,
            publish_rm: self.publish_rm,
            aliases: Some(self.aliases).filter(|aliases| !aliases.is_empty()),
            endpoint_mode: self.endpoint_mode.map(Into::into),
            health,
            balance: self.balance.map(Into::into),
            prefer_local: self.prefer_local,
            drain_timeout_ms: self.drain_timeout,
        })
    }
}
