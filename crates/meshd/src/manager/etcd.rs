//! The etcd of this manager: a child process with a directory of its own, one member of the cluster's etcd.
//!
//! ```text
//! DATA/etcd/            0700
//!   data/               etcd's own
//!   etcd.pem            certificate and key, 0600; read by etcd at each handshake
//!   trusted.pem         the CAs that clients and other members must be of; read by etcd at its start
//! ```
//!
//! When the CA is replaced, certificates of the new one come with its [bridge](Authority::bridge), which members that
//! know the old one only believe. So each can start again, to learn of the new one, when the others run.
//!
//! Only managers get in: workers have certificates of the same CA, but not the managers' name. Clients come over
//! loopback alone; other members to the advertised address.

mod child;
pub(super) mod turns;

use crate::{clock, config::Config, identity::Identity};
use anyhow::{Context, bail};
use child::{Child, Invocation};
use mesh_cluster::{Authority, MANAGER_NAME, read_private, write_private};
use mesh_store::{EtcdClientCertificate, EtcdOptions, EtcdStore, EtcdTls};
use std::{
    env,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Directory of the child.
pub(crate) const ETCD: &str = "etcd";

/// Where the child's clients, we alone, reach it.
const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7444);
/// Where other members reach it, on the advertised address.
const PEER_PORT: u16 = 7445;

/// How long a child may take until it answers: as long as the other managers' may take to come back with this one.
const START: Duration = Duration::from_secs(60);
/// Between two looks whether it does.
const PROBE: Duration = Duration::from_millis(100);

/// Past 1.5 MiB, etcd's default: a change of a service touches many records.
const REQUEST_BYTES: usize = 16 << 20;
/// The same for 128 operations.
const TXN_OPS: usize = 4096;
/// etcd's largest file before it takes no more: the state of thousands of nodes is some megabytes.
const QUOTA_BYTES: u64 = 4 << 30;

/// Is told what a start waits for, in words for the user.
pub(crate) type Waiting<'a> = &'a (dyn Fn(String) + Send + Sync);

/// How a child finds its cluster.
#[derive(Debug, Clone)]
pub(crate) enum Bootstrap {
    /// It is a cluster of one.
    New,
    /// It was added to the members that are given, by name and peer URL.
    Existing(Vec<(String, String)>),
    /// It ran before.
    Again,
}

/// The child of this node, and where its files are.
pub(super) struct LocalEtcd {
    child: Child,
    files: Files,
    /// The CAs that it was started with.
    trusts: Mutex<String>,
}

/// What it is started with.
#[derive(Debug, Clone)]
struct Files {
    dir: PathBuf,
    identity: Identity,
}

/// Where other members reach the etcd of the manager with this address.
pub(super) fn peer_url(advertise: IpAddr) -> String {
    format!("https://{}", SocketAddr::new(advertise, PEER_PORT))
}

/// Makes the directory of a child that runs for the first time.
pub(super) fn prepare(config: &Config, identity: &Identity, authority: &Authority) -> anyhow::Result<()> {
    crate::make_directory(&config.data_dir.join(ETCD), 0o700)?;
    let trusted = authority.certificate().to_pem();
    Files::of(config, identity).save(authority, &trusted)
}

impl LocalEtcd {
    /// Starts the child. It goes on, however often it dies, until [`run`](Self::run) ends or this is dropped.
    pub(super) fn start(config: &Config, identity: &Identity, bootstrap: &Bootstrap) -> anyhow::Result<Self> {
        let program = program()?;
        let files = Files::of(config, identity);
        let ran = files.data().join("member").is_dir();
        if matches!(bootstrap, Bootstrap::Again) && !ran {
            bail!(
                "{} is missing: restore it from a backup, or remove this node from the cluster and let it join anew",
                files.data().display()
            );
        }
        let peer = SocketAddr::new(identity.advertise.ip(), PEER_PORT);
        for address in [CLIENT, peer] {
            drop(TcpListener::bind(address).with_context(|| {
                format!("etcd can't listen on {address}: is the port free? 'ss -tlnp' shows who has it")
            })?);
        }
        let arguments = files.arguments(bootstrap);
        let invocation = Invocation { program, arguments, directory: files.dir.clone() };
        let trusts = Mutex::new(Files::read(&files.trusted())?);
        Ok(Self { child: Child::start(invocation)?, files, trusts })
    }

    /// Waits until it answers, which takes a majority of the managers. Tells `waiting` why that takes so long.
    pub(super) async fn open(&self, waiting: Waiting<'_>) -> anyhow::Result<EtcdStore> {
        let deadline = Instant::now() + START;
        let mut told = false;
        loop {
            // What its files say may change while it starts.
            let opened = EtcdStore::open(self.files.options()?);
            let err = tokio::select! {
                opened = opened => match opened {
                    Ok(store) => return Ok(store),
                    Err(err) => err,
                },
                () = self.child.ended() => {
                    bail!("its etcd has ended: {}", self.child.last_words().unwrap_or_default())
                }
            };
            if Instant::now() >= deadline {
                return match self.child.last_words() {
                    Some(words) => Err(err).context(format!("etcd says '{words}'")),
                    None => Err(err.into()),
                };
            }
            if !told {
                told = true;
                tracing::info!(%err, "waiting for etcd: it answers once a majority of the managers is there");
            }
            waiting(match self.child.ailment() {
                Some(words) => format!("its etcd ends again and again: {words}"),
                None => {
                    format!("waiting for etcd, which answers once a majority of the managers is there: {err}")
                }
            });
            sleep(PROBE).await;
        }
    }

    /// Issues another certificate for the child and for `store`'s connections to it. Whom to trust the child reads when
    /// it is [started again](Self::restart).
    pub(super) fn renew(
        &self,
        store: &EtcdStore,
        authority: &Authority,
        trusted: &str,
    ) -> anyhow::Result<()> {
        self.files.save(authority, trusted)?;
        let tls = self.files.options()?.tls.context("a local etcd speaks TLS")?;
        Ok(store.renew(tls)?)
    }

    /// Returns when the child has ended for good.
    pub(super) async fn ended(&self) {
        self.child.ended().await;
    }

    /// Why the child ended by itself, if it did so lately, or for good.
    pub(super) fn ailment(&self) -> Option<String> {
        self.child.ailment()
    }

    /// Whether the child trusts these CAs, and no others.
    pub(super) fn trusts(&self, trusted: &str) -> bool {
        *self.trusts.lock().unwrap_or_else(PoisonError::into_inner) == trusted
    }

    /// Ends the child and starts it again with the CAs that its file holds now.
    pub(super) fn restart(&self) -> anyhow::Result<()> {
        let trusted = Files::read(&self.files.trusted())?;
        self.child.restart();
        *self.trusts.lock().unwrap_or_else(PoisonError::into_inner) = trusted;
        Ok(())
    }

    /// Ends the child when cancelled.
    pub(super) async fn run(&self, cancel: CancellationToken) {
        cancel.cancelled().await;
        self.child.stop().await;
    }
}

impl Files {
    fn of(config: &Config, identity: &Identity) -> Self {
        Self { dir: config.data_dir.join(ETCD), identity: identity.clone() }
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn certificate(&self) -> PathBuf {
        self.dir.join("etcd.pem")
    }

    fn trusted(&self) -> PathBuf {
        self.dir.join("trusted.pem")
    }

    /// Writes a new certificate, and who is trusted.
    fn save(&self, authority: &Authority, trusted: &str) -> anyhow::Result<()> {
        let addresses =
            [self.identity.advertise.ip(), Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let pem = authority.issue_for_etcd(self.identity.node, &addresses, clock::unix_seconds())?;
        write_private(&self.certificate(), &pem)?;
        if read_private(&self.trusted())?.as_deref() != Some(trusted) {
            write_private(&self.trusted(), trusted)?;
        }
        Ok(())
    }

    fn read(path: &Path) -> anyhow::Result<String> {
        let text = read_private(path)?;
        text.with_context(|| format!("{} is missing: restore it from a backup", path.display()))
    }

    fn options(&self) -> anyhow::Result<EtcdOptions> {
        let pem = Self::read(&self.certificate())?;
        let client = EtcdClientCertificate { certificate: pem.clone(), key: pem };
        let tls = EtcdTls { ca: Self::read(&self.trusted())?, client: Some(client) };
        let endpoint = format!("https://{CLIENT}");
        let options = EtcdOptions::new([endpoint], self.identity.cluster.to_string());
        Ok(EtcdOptions { tls: Some(tls), ..options })
    }

    fn arguments(&self, bootstrap: &Bootstrap) -> Vec<String> {
        let (name, peer) = (self.identity.node.to_string(), peer_url(self.identity.advertise.ip()));
        let client = format!("https://{CLIENT}");
        let mut members = vec![(name.clone(), peer.clone())];
        let state = match bootstrap {
            Bootstrap::Existing(others) => {
                members.extend(others.iter().cloned());
                "existing"
            }
            // Ignored by an etcd that ran before.
            Bootstrap::New | Bootstrap::Again => "new",
        };
        let members: Vec<_> = members.into_iter().map(|(name, url)| format!("{name}={url}")).collect();
        let path = |path: PathBuf| path.display().to_string();
        let (certificate, trusted) = (path(self.certificate()), path(self.trusted()));
        let mut arguments = vec!["--client-cert-auth".to_owned(), "--peer-client-cert-auth".to_owned()];
        let options = [
            ("name", name),
            ("data-dir", path(self.data())),
            ("listen-client-urls", client.clone()),
            ("advertise-client-urls", client),
            ("listen-peer-urls", peer.clone()),
            ("initial-advertise-peer-urls", peer),
            ("initial-cluster", members.join(",")),
            ("initial-cluster-state", state.to_owned()),
            // etcd tells its clusters apart by this and by addresses: a member of an earlier life of this one, before a
            // restore, would take the new for its own, and both would lose what they hold. Who is added is told.
            ("initial-cluster-token", format!("{}-{:016x}", self.identity.cluster, rand::random::<u64>())),
            ("cert-file", certificate.clone()),
            ("key-file", certificate.clone()),
            ("trusted-ca-file", trusted.clone()),
            ("client-cert-allowed-hostname", MANAGER_NAME.to_owned()),
            ("peer-cert-file", certificate.clone()),
            ("peer-key-file", certificate),
            ("peer-trusted-ca-file", trusted),
            ("peer-cert-allowed-hostname", MANAGER_NAME.to_owned()),
            // A host with several addresses may come from another than it advertises: its certificate says who it is.
            ("experimental-peer-skip-client-san-verification", "true".to_owned()),
            ("max-request-bytes", REQUEST_BYTES.to_string()),
            ("max-txn-ops", TXN_OPS.to_string()),
            ("quota-backend-bytes", QUOTA_BYTES.to_string()),
            // It would wait five seconds after each newcomer. Who votes is decided by the managers, which know whose store
            // answers (manager/roles.rs).
            ("strict-reconfig-check", "false".to_owned()),
            // A member that comes back does not disturb those that go on.
            ("pre-vote", "true".to_owned()),
            // Nobody asks in JSON, and it knocks at its own door without a certificate.
            ("enable-grpc-gateway", "false".to_owned()),
            ("logger", "zap".to_owned()),
            ("log-outputs", "stderr".to_owned()),
        ];
        arguments.extend(options.into_iter().map(|(option, value)| format!("--{option}={value}")));
        arguments
    }
}

fn program() -> anyhow::Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|dir| dir.join("etcd")).find(|file| is_program(file));
    found.context(
        "there is no 'etcd' in PATH: install it (Debian: 'apt install etcd-server'), or use '--etcd-endpoints'",
    )
}

fn is_program(path: &Path) -> bool {
    path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
}
