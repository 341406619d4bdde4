//! `meshctl service create`.

use super::{BalanceName, ModeName, Publish, health::HealthArgs, ports, publish};
use crate::session::Session;
use mesh_model::{Name, ServiceSpec, parse_millis};

pub(super) const EXAMPLES: &str = "\
Examples:
  meshctl service create --name web --publish 80:80
  meshctl service create --name web --network blue --publish 8080:80 --health-http /healthz
  meshctl service create --name api --publish published=443,target=8443,mode=host
  meshctl service create --name site --publish published=80,target=8080,protocol=http
  meshctl service create --name mail --publish published=25,target=25,proxy-protocol=v2
  meshctl service create --name dns --publish 53:53/udp --endpoint-mode dnsrr

Containers become replicas with 'meshctl network connect --service NAME …' or
'meshctl run --service NAME …'.";

/// `service create`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the service
    #[arg(long)]
    name: Name,
    /// Network (repeatable; published ports lead into the first); 'default' unless given
    #[arg(long = "network", value_name = "NETWORK")]
    networks: Vec<String>,
    /// Another name for it on its networks (repeatable)
    #[arg(long = "alias", value_name = "NAME")]
    aliases: Vec<Name>,
    /// Port to publish on every node: PUBLISHED:TARGET, IP:PUBLISHED:TARGET or TARGET alone for a free port,
    /// with /udp for UDP; or published=PORT,target=PORT with any of ,protocol=tcp|udp|http ,mode=ingress|host
    /// ,ip=IP ,proxy-protocol=v1|v2 (repeatable)
    #[arg(long, value_name = "SPEC", value_parser = publish)]
    publish: Vec<Publish>,
    /// What its name resolves to
    #[arg(long, value_enum, value_name = "MODE", default_value = "vip")]
    endpoint_mode: ModeName,
    #[command(flatten)]
    health: HealthArgs,
    /// How a replica is chosen for a new connection
    #[arg(long, value_enum, value_name = "HOW", default_value = "roundrobin")]
    balance: BalanceName,
    /// Let each node lead to replicas of its own as long as it has any
    #[arg(long)]
    prefer_local: bool,
    /// How long connections may go on after their replica was withdrawn
    #[arg(long, value_name = "DURATION", value_parser = parse_millis, default_value = "10s")]
    drain_timeout: u64,
}

impl Args {
    pub(super) async fn act(self, session: &Session) -> anyhow::Result<()> {
        let spec = self.spec()?;
        let created = session.wait("creating the service", session.client.service_create(&spec)).await?;
        session.created(&created)
    }

    pub(crate) fn spec(self) -> anyhow::Result<ServiceSpec> {
        Ok(ServiceSpec {
            name: self.name,
            networks: self.networks,
            aliases: self.aliases,
            endpoint_mode: self.endpoint_mode.into(),
            ports: ports(self.publish),
            health: if self.health.given() { Some(self.health.check(None)?) } else { None },
            balance: self.balance.into(),
            prefer_local: self.prefer_local,
            drain_timeout_ms: self.drain_timeout,
        })
    }
}
