//! `meshctl cluster`.

mod backup;

use crate::{
    output::Column,
    session::Session,
    value::{self, Peer},
};
use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use ipnetwork::IpNetwork;
use mesh_api::{
    AuthorityView, ExternalEtcd, Init, Initialized, Join, JoinTokenRequest, Leave, RotateAuthority, StoreSpec,
};
use mesh_model::{Role, parse_millis};
use std::{io, net::SocketAddr, path::PathBuf};

/// What can be asked of the cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a cluster, with this host as its manager
    #[command(after_help = "Examples:
  meshctl cluster init --advertise-addr 10.0.0.1
  meshctl cluster init --advertise-addr [fd00::1]:7443 --default-addr-pool 10.64.0.0/12
  meshctl cluster init --advertise-addr 10.0.0.1 --store etcd")]
    Init(InitArgs),
    /// Join the cluster of another host
    #[command(
        after_help = "A token on the command line is seen by every user of the host, and kept in the shell's history.

Examples:
  meshctl cluster join --token TOKEN 10.0.0.1:7443
  meshctl cluster join --token - 10.0.0.1:7443 </root/token"
    )]
    Join(JoinArgs),
    /// Leave the cluster: this host forgets it, and can join again
    #[command(after_help = "Examples:
  meshctl cluster leave
  meshctl cluster leave --force    (with endpoints, without a manager, or as a manager that is the last)")]
    Leave {
        /// Also with endpoints, which are disconnected; without a manager that answers; as the last manager, which ends
        /// the cluster, or as one of several whose majority is lost, which can be restored from a backup then
        #[arg(long)]
        force: bool,
    },
    /// Show the command that other hosts join with
    #[command(after_help = "Examples:
  meshctl cluster join-token worker
  meshctl -q cluster join-token worker --rotate --ttl 1h")]
    JoinToken(JoinTokenArgs),
    /// Show the CA that nodes trust, or replace it
    #[command(after_help = "Examples:
  meshctl cluster ca
  meshctl cluster ca --rotate
  meshctl cluster ca --rotate --force")]
    Ca(CaArgs),
    /// Save the state of the cluster and its keys to a file; on a manager
    #[command(after_help = "Examples:
  meshctl cluster backup /root/mesh.backup
  meshctl cluster backup - | gpg --encrypt -r me >mesh.backup.gpg")]
    Backup(backup::BackupArgs),
    /// Make this host, which is no member, the manager again that it was in a backup
    #[command(after_help = "Example:\n  meshctl cluster restore /root/mesh.backup")]
    Restore(backup::RestoreArgs),
    /// Move the state of the only manager to etcd, which serves several; traffic goes on
    #[command(after_help = "Nodes that are down are not needed: they follow when they are back.

Examples:
  meshctl cluster migrate --to etcd
  meshctl cluster migrate --to etcd --etcd-endpoints http://10.0.0.5:2379,http://10.0.0.6:2379
  meshctl cluster migrate --to etcd --etcd-endpoints https://10.0.0.5:2379 --etcd-ca /etc/etcd/ca.pem \\
    --etcd-cert /etc/etcd/meshd.pem --etcd-key /etc/etcd/meshd.key")]
    Migrate(MigrateArgs),
}

/// `cluster init`.
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Address at which other hosts reach this one; the port is 7443 unless given
    #[arg(long, value_name = "IP[:PORT]", value_parser = value::advertise)]
    advertise_addr: SocketAddr,
    /// Where networks without a subnet of their own get one (repeatable)
    #[arg(long, value_name = "CIDR", value_parser = value::cidr)]
    default_addr_pool: Vec<IpNetwork>,
    /// Where the nodes' own overlay addresses are taken from (repeatable)
    #[arg(long, value_name = "CIDR", value_parser = value::cidr)]
    node_addr_pool: Vec<IpNetwork>,
    /// UDP port of VXLAN
    #[arg(long, value_name = "PORT", default_value_t = 4789, value_parser = value::port, allow_negative_numbers = true)]
    data_path_port: u16,
    /// How long nodes' certificates are valid; each renews its own after two thirds of that
    #[arg(long, value_name = "DURATION", default_value = "90d", value_parser = parse_millis)]
    cert_expiry: u64,
    #[command(flatten)]
    store: StoreArgs,
}

/// Where the managers keep the state.
#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    /// What keeps the state: a file of one manager, or an etcd of several [default: redb, or etcd with --etcd-endpoints]
    #[arg(long, value_enum)]
    store: Option<StoreName>,
    #[command(flatten)]
    etcd: EtcdArgs,
}

/// An etcd that somebody else runs.
#[derive(Debug, Args)]
pub(crate) struct EtcdArgs {
    /// Use the etcd of these client URLs, rather than one that each manager runs itself
    #[arg(long, value_name = "URL,…", value_delimiter = ',')]
    etcd_endpoints: Vec<String>,
    /// CA of that etcd's certificates, for https URLs
    #[arg(long, value_name = "FILE", requires = "etcd_endpoints")]
    etcd_ca: Option<PathBuf>,
    /// Certificate to show to that etcd
    #[arg(long, value_name = "FILE", requires_all = ["etcd_ca", "etcd_key"])]
    etcd_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "etcd_cert")]
    etcd_key: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StoreName {
    Redb,
    Etcd,
}

impl StoreArgs {
    fn spec(self) -> anyhow::Result<StoreSpec> {
        match (self.store, self.etcd.external()?) {
            (Some(StoreName::Redb), Some(_)) => bail!("--etcd-endpoints needs --store etcd, not redb"),
            (_, Some(external)) => Ok(external),
            (Some(StoreName::Etcd), None) => Ok(StoreSpec::Etcd),
            (Some(StoreName::Redb) | None, None) => Ok(StoreSpec::Redb),
        }
    }
}

impl EtcdArgs {
    /// None if it was not asked for.
    fn external(self) -> anyhow::Result<Option<StoreSpec>> {
        if self.etcd_endpoints.is_empty() {
            return Ok(None);
        }
        // meshd runs elsewhere in the file system than this command.
        let whole = |path: Option<PathBuf>| path.map(std::path::absolute).transpose();
        Ok(Some(StoreSpec::External(ExternalEtcd {
            endpoints: self.etcd_endpoints,
            ca: whole(self.etcd_ca)?,
            cert: whole(self.etcd_cert)?,
            key: whole(self.etcd_key)?,
        })))
    }
}

/// `cluster migrate`.
#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    /// What keeps the state from now on; there is no way back but a backup
    #[arg(long, value_enum)]
    to: StoreName,
    #[command(flatten)]
    etcd: EtcdArgs,
}

/// `cluster join`.
#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// Token that 'cluster init' or 'cluster join-token' shows; '-' is a line of standard input
    #[arg(long, env = "MESH_TOKEN", hide_env_values = true)]
    token: String,
    /// Address at which other hosts reach this one; the one that leads to the manager unless given
    #[arg(long, value_name = "IP[:PORT]", value_parser = value::advertise)]
    advertise_addr: Option<SocketAddr>,
    /// A manager, by name or address; the port is 7443 unless given
    #[arg(value_name = "HOST:PORT", value_parser = value::peer)]
    manager: Peer,
}

/// `cluster join-token`.
#[derive(Debug, Args)]
pub(crate) struct JoinTokenArgs {
    /// As what hosts join with it
    #[arg(value_enum)]
    role: RoleName,
    /// Make a new token; the old one ends
    #[arg(long)]
    rotate: bool,
    /// Make a new token that ends after this time, such as 1h; the old one ends
    #[arg(long, value_name = "DURATION", value_parser = parse_millis)]
    ttl: Option<u64>,
}

/// `cluster ca`.
#[derive(Debug, Args)]
pub(crate) struct CaArgs {
    /// Make a new CA: nodes renew their certificates by themselves, join tokens of the old CA end
    #[arg(long)]
    rotate: bool,
    /// Forget the old CA now: nodes that are away since have to join again
    #[arg(long, requires = "rotate")]
    force: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleName {
    Worker,
    Manager,
}

impl Command {
    pub(crate) async fn act(self, session: &Session) -> anyhow::Result<()> {
        match self {
            Self::Init(args) => init(session, args).await,
            Self::Join(args) => join(session, args).await,
            Self::Leave { force } => {
                session.wait("leaving the cluster", session.client.cluster_leave(&Leave { force })).await?;
                session.output.done(&(), "This node left the cluster.", "")
            }
            Self::Backup(args) => backup::backup(session, &args).await,
            Self::Restore(args) => backup::restore(session, &args).await,
            Self::Migrate(args) => migrate(session, args).await,
            Self::JoinToken(args) => join_token(session, &args).await,
            Self::Ca(args) => ca(session, &args).await,
        }
    }
}

async fn init(session: &Session, args: InitArgs) -> anyhow::Result<()> {
    let init = Init {
        advertise: args.advertise_addr,
        address_pools: args.default_addr_pool,
        node_pools: args.node_addr_pool,
        data_path_port: args.data_path_port,
        cert_expiry_s: args.cert_expiry / 1000,
        store: args.store.spec()?,
    };
    let made = session.wait("starting the cluster", session.client.cluster_init(&init)).await?;
    session.output.done(&made, &welcome(&made), &made.node.to_string())
}

async fn migrate(session: &Session, args: MigrateArgs) -> anyhow::Result<()> {
    ensure!(args.to == StoreName::Etcd, "a cluster can be moved to etcd only: give '--to etcd'");
    let to = args.etcd.external()?.unwrap_or(StoreSpec::Etcd);
    let moved = session.wait("moving the cluster to etcd", session.client.cluster_migrate(&to)).await?;
    let text = format!(
        "The cluster's state ({} records) is in etcd now; 'events' keep their history, with new revisions.\n\
         As it was, it is kept in {}: remove that when you don't want it any more.\n\
         To add a manager: 'meshctl cluster join-token manager'.",
        moved.records,
        moved.old_store.display()
    );
    session.output.done(&moved, &text, "")
}

fn welcome(made: &Initialized) -> String {
    format!(
        "Cluster initialized: this node ({}) is now its manager.\n\n{}",
        made.node,
        join_command("worker", &made.join_token, made.manager),
    )
}

fn join_command(role: &str, token: &str, manager: SocketAddr) -> String {
    format!(
        "To add a {role} to this cluster, run the following command on another host:\n\n    \
         meshctl cluster join --token {token} {manager}\n"
    )
}

async fn join(session: &Session, args: JoinArgs) -> anyhow::Result<()> {
    let manager = args.manager.resolve(args.advertise_addr).await?;
    let token = if args.token == "-" { read_token()? } else { args.token };
    let join = Join { token, manager, advertise: args.advertise_addr };
    let joined = session.wait("joining the cluster", session.client.cluster_join(&join)).await?;
    let text = format!("This node joined the cluster as a {}.", joined.role);
    session.output.done(&joined, &text, &joined.node.to_string())
}

fn read_token() -> anyhow::Result<String> {
    let mut line = String::new();
    io::stdin().read_line(&mut line).context("cannot read the token from standard input")?;
    let token = line.trim();
    ensure!(
        !token.is_empty(),
        "no token on standard input: 'meshctl -q cluster join-token' on a manager prints one"
    );
    Ok(token.to_owned())
}

async fn join_token(session: &Session, args: &JoinTokenArgs) -> anyhow::Result<()> {
    let (role, name) = match args.role {
        RoleName::Worker => (Role::Worker, "worker"),
        RoleName::Manager => (Role::Manager, "manager"),
    };
    let request = JoinTokenRequest { role, rotate: args.rotate, ttl_ms: args.ttl };
    let view = session.wait("asking for the token", session.client.join_token(&request)).await?;
    session.output.done(&view, &join_command(name, &view.token, view.manager), &view.token)
}

const CA_FIELDS: &[Column<AuthorityView>] = &[
    ("Fingerprint", |ca, _| ca.fingerprint.clone()),
    ("Expires", |ca, style| format!("in {} days", ca.expires.saturating_sub(style.now) / 86_400)),
    ("Node certificates", |ca, _| format!("valid for {}", duration(ca.cert_expiry_s))),
    ("Replaces", |ca, _| ca.rotation.as_ref().map(|r| r.old_fingerprint.clone()).unwrap_or_default()),
    ("Waits for", |ca, _| ca.rotation.as_ref().map(|r| r.waiting_for.join(", ")).unwrap_or_default()),
];

/// In the largest unit that leaves no rest.
fn duration(seconds: u64) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "m")];
    let unit = units.into_iter().find(|(length, _)| seconds >= *length && seconds.is_multiple_of(*length));
    unit.map_or_else(|| format!("{seconds}s"), |(length, name)| format!("{}{name}", seconds / length))
}

async fn ca(session: &Session, args: &CaArgs) -> anyhow::Result<()> {
    let view = if args.rotate {
        let request = RotateAuthority { force: args.force };
        session.wait("replacing the CA", session.client.rotate_authority(&request)).await?
    } else {
        session.wait("asking for the CA", session.client.authority()).await?
    };
    session.output.show(&view, CA_FIELDS)
}
