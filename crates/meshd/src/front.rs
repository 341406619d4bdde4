//! `meshd front`: the process that containers and clients talk to, with the name servers, the L7 ingress
//! and the relay.
//!
//! It outlives the daemon, so that neither a restart nor an upgrade nor a crash of that breaks a connection. The daemon
//! starts it, opens every socket it serves on, and tells it the state; the next daemon takes it over:
//!
//! ```text
//! daemon: agent/fronts ── places with their sockets, states ──► daemon ──► names (DNS) · ingress (L7) · relay (L4)
//!                      ◄── the same sockets for the next daemon, what is in force, the log ──
//! ```
//!
//! Without a daemon it goes on with what it was told last. It ends when it is told to, or when its socket in the run
//! directory is gone.

mod channel;
mod confine;
mod daemon;
mod log;
mod messages;
mod names;
mod telling;

pub(crate) use channel::{receive, send};
pub(crate) use messages::{
    Delta, Descriptors, Held, NameServer, NamesReport, Order, PROTOCOL, Place, Report,
};

use crate::{
    config::{LogFormat, LogLevel},
    sockets::Sockets,
    wire::Counted,
};
use anyhow::Context;
use daemon::{Daemons, Event};
use mesh_api::CountView;
use mesh_model::{Key, NodeId, Snapshot};
use mesh_proxy::{
    Datagrams, Error, Ingress, Listeners, Relay, Routes, Settings, Tally, Target, UdpSockets, Volume,
};
use names::Names;
use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use telling::Telling;
use tokio::{
    select,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

/// How often it looks after the host's resolvers, and whether it is wanted still.
const LOOK: Duration = Duration::from_secs(2);
/// How long a daemon may take to hear what the name servers do.
const TELL: Duration = Duration::from_millis(100);
/// How long the last lines of the log may take to be taken.
const LAST_LINES: Duration = Duration::from_secs(1);
/// How long name servers may take to answer what was asked already.
const LAST_ANSWERS: Duration = Duration::from_secs(10);

/// What fails if it does.
const SERVING: &str = "the L7 ingress or the relay";

/// What the daemon starts it with.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    pub(crate) run_dir: PathBuf,
    #[arg(long)]
    pub(crate) node: NodeId,
    #[arg(long)]
    pub(crate) log_level: LogLevel,
    #[arg(long)]
    pub(crate) log_format: LogFormat,
}

/// Where the front process of a number listens for daemons.
pub(crate) fn socket(run_dir: &Path, pid: u32) -> PathBuf {
    run_dir.join(format!("front.{pid}.sock"))
}

/// Runs until told to end; standard input is the daemon.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    // Keys of the daemon's terminal are not for it. It may lead a session already, if somebody started it by hand.
    let _ = rustix::process::setsid();
    confine::confine().context("cannot give up privileges")?;
    let (writer, lines) = log::lines();
    crate::log_to(args.log_level, args.log_format, writer, false);
    std::panic::set_hook(Box::new(|panic| tracing::error!("front: {panic}")));
    crate::raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(async {
        let mut daemons = Daemons::open(&args.run_dir, lines).context("no socket for the daemon")?;
        let mut front = Front::new(args);
        // What went wrong until here was told by standard error. From now on the log goes to the daemon of the day, and
        // whoever waits for the end of the first one's output waits for no other process.
        let nowhere = std::fs::File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&nowhere)?;
        rustix::stdio::dup2_stdout(&nowhere)?;
        rustix::stdio::dup2_stderr(&nowhere)?;
        if let Err(err) = serve(&mut front, &mut daemons).await {
            tracing::error!(err = format!("{err:#}"), "front: ends");
        }
        drop(timeout(LAST_LINES, daemons.farewell()).await);
        Ok(())
    })
}

async fn serve(front: &mut Front, daemons: &mut Daemons) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        select! {
            biased;
            _ = terminate.recv() => break,
            event = daemons.next() => match event {
                Event::Met => {
                front.telling_names.meet();
                front.telling_relayed.meet();
                front.introduce(daemons).await;
            }
                Event::Told(order, descriptors) => {
                    if !front.follow(order, descriptors, daemons).await {
                        break;
                    }
                }
            },
            ended = front.serving.join_next() => {
                // Of a retired one, when all connections have ended.
                let Some(ended) = ended else { return Ok(()) };
                ended.context(SERVING)?.context(SERVING)?;
            }
            _ = look.tick() => {
                if !daemons.is_wanted() {
                    tracing::info!("front: the run directory is gone: ends");
                    break;
                }
                let snapshot = Arc::clone(&front.snapshot.borrow());
                front.names.look_at_host(&snapshot, &front.held);
                front.serve_names(daemons).await;
                front.tell(daemons).await;
            }
        }
    }
    front.end().await
}

/// Sockets of published ports, as handles that stay the same for as long as the sockets do.
type Handles<T> = BTreeMap<Place, (Descriptors, Arc<T>)>;

/// What is served.
struct Front {
    node: NodeId,
    snapshot: watch::Sender<Arc<Snapshot>>,
    held: Held,
    names: Names,
    /// What is relayed.
    tally: Tally,
    telling_names: Telling<NamesReport>,
    telling_relayed: Telling<Vec<Counted>>,
    listening: Handles<TcpListener>,
    receiving: Handles<UdpSocket>,
    http: watch::Sender<Listeners>,
    streams: watch::Sender<Listeners>,
    datagrams: watch::Sender<UdpSockets>,
    routes: watch::Sender<Arc<Routes>>,
    /// The ingress and the relay.
    serving: JoinSet<Result<(), Error>>,
    retire: CancellationToken,
    cancel: CancellationToken,
}

impl Front {
    fn new(args: Args) -> Self {
        let (snapshot, seen) = watch::channel(Arc::default());
        let (routes, to_routes) = watch::channel(Arc::default());
        let (http, to_http) = watch::channel(Listeners::default());
        let (streams, to_streams) = watch::channel(Listeners::default());
        let (datagrams, to_datagrams) = watch::channel(UdpSockets::default());
        let (cancel, retire) = (CancellationToken::new(), CancellationToken::new());
        let sockets = Arc::new(Sockets::new(args.run_dir, args.node, seen));
        let names = Names::new(args.node, Sockets::clone(&sockets));
        let ingress = Ingress::new(to_http, to_routes.clone(), sockets.clone(), Settings::default());
        let tally = Tally::default();
        let relay =
            Relay::new(to_streams, to_routes.clone(), sockets.clone(), tally.clone(), Settings::default());
        let of_datagrams = Datagrams::new(to_datagrams, to_routes, sockets, tally.clone());
        let mut serving = JoinSet::new();
        serving.spawn(ingress.run(retire.clone(), cancel.clone()));
        serving.spawn(relay.run(retire.clone(), cancel.clone()));
        serving.spawn(of_datagrams.run(retire.clone(), cancel.clone()));
        Self {
            node: args.node,
            snapshot,
            held: Held::default(),
            names,
            tally,
            telling_names: Telling::new(),
            telling_relayed: Telling::new(),
            listening: BTreeMap::new(),
            receiving: BTreeMap::new(),
            http,
            streams,
            datagrams,
            routes,
            serving,
            retire,
            cancel,
        }
    }

    /// Says to a daemon what is served here, and with which sockets.
    async fn introduce(&self, daemons: &Daemons) {
        for (place, descriptors) in &self.held {
            daemons.tell(Report::Holds(*place), Arc::clone(descriptors)).await;
        }
        let ready = Report::Ready {
            protocol: PROTOCOL,
            node: self.node,
            retired: self.retire.is_cancelled(),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        };
        daemons.tell(ready, Descriptors::default()).await;
    }

    /// Tells a daemon what is news of the name servers and the relay. One that does not listen is told again.
    async fn tell(&mut self, daemons: &Daemons) {
        let telling = |report| timeout(TELL, daemons.tell(report, Descriptors::default()));
        if let Some(report) = self.telling_names.news(self.names.report())
            && telling(Report::Names(report)).await.is_err()
        {
            self.telling_names.forget();
        }
        let snapshot = Arc::clone(&self.snapshot.borrow());
        let relayed = self.tally.read(|endpoint| snapshot.endpoints.contains_key(&endpoint));
        if let Some(report) = self.telling_relayed.news(relayed.into_iter().map(counted).collect())
            && telling(Report::Relayed(report)).await.is_err()
        {
            self.telling_relayed.forget();
        }
    }

    /// Does as it is told; returns whether it goes on.
    async fn follow(&mut self, order: Order, descriptors: Descriptors, daemons: &Daemons) -> bool {
        match order {
            Order::Open(place) => drop(self.held.insert(place, descriptors)),
            Order::Close(place) => drop(self.held.remove(&place)),
            Order::Forward(config) => {
                self.names.set_forwarding(config);
                self.telling_names.begin();
                self.telling_relayed.begin();
            }
            Order::Apply { turn, delta } => {
                let mut snapshot = Arc::unwrap_or_clone(self.snapshot.send_replace(Arc::default()));
                let changed = delta.changed();
                delta.apply(&mut snapshot);
                self.snapshot.send_replace(Arc::new(snapshot));
                self.apply(changed, daemons).await;
                daemons.tell(Report::Applied { turn }, Descriptors::default()).await;
            }
            Order::Retire => {
                self.held.clear();
                self.retire.cancel();
                if timeout(LAST_ANSWERS, self.names.finish()).await.is_err() {
                    tracing::warn!("front: the last queries got no answer");
                }
                tracing::info!(
                    "front: another process serves from now on; open connections are finished here"
                );
            }
            Order::End => return false,
        }
        true
    }

    async fn apply(&mut self, changed: Option<Vec<Key>>, daemons: &Daemons) {
        let snapshot = Arc::clone(&self.snapshot.borrow());
        self.names.follow(&snapshot, changed.as_deref());
        self.serve_names(daemons).await;
        // Before the listeners, so that the first request finds its route.
        self.routes.send_replace(Arc::new(Routes::new(&snapshot, self.node)));
        follow(&mut self.listening, &self.held, |place| place.http().or(place.stream()));
        follow(&mut self.receiving, &self.held, Place::datagrams);
        self.http.send_replace(at(&self.listening, Place::http));
        self.streams.send_replace(at(&self.listening, Place::stream));
        self.datagrams.send_replace(at(&self.receiving, Place::datagrams));
    }

    async fn serve_names(&mut self, daemons: &Daemons) {
        let snapshot = Arc::clone(&self.snapshot.borrow());
        for place in self.names.serve(&snapshot, &self.held) {
            self.held.remove(&place);
            daemons.tell(Report::Failed(place), Descriptors::default()).await;
        }
    }

    async fn end(&mut self) -> anyhow::Result<()> {
        self.cancel.cancel();
        drop(timeout(LAST_ANSWERS, self.names.finish()).await);
        while let Some(ended) = self.serving.join_next().await {
            ended.context(SERVING)?.context(SERVING)?;
        }
        Ok(())
    }
}

fn counted((target, volume): (Target, Volume)) -> Counted {
    let view = |(packets, bytes)| CountView { packets, bytes };
    Counted {
        protocol: target.transport.into(),
        target: target.port,
        endpoint: target.endpoint,
        connections: volume.connections,
        sent: view(volume.sent),
        received: view(volume.received),
    }
}

/// Makes the handles those of the places that are held and have such an address.
fn follow<T: From<OwnedFd>>(
    handles: &mut Handles<T>,
    held: &Held,
    address: impl Fn(&Place) -> Option<SocketAddr>,
) {
    handles.retain(|place, (of, _)| held.get(place).is_some_and(|descriptors| Arc::ptr_eq(descriptors, of)));
    for (place, descriptors) in held {
        let Some(address) = address(place).filter(|_| !handles.contains_key(place)) else { continue };
        match descriptors.first().map(OwnedFd::try_clone) {
            Some(Ok(socket)) => {
                handles.insert(*place, (Arc::clone(descriptors), Arc::new(T::from(socket))));
            }
            Some(Err(err)) => tracing::error!(%address, %err, "front: a port can't be served"),
            None => tracing::error!(%address, "front: no socket came along"),
        }
    }
}

/// Those of one kind, by their addresses.
fn at<T>(
    handles: &Handles<T>,
    address: impl Fn(&Place) -> Option<SocketAddr>,
) -> BTreeMap<SocketAddr, Arc<T>> {
    handles.iter().filter_map(|(place, (_, socket))| Some((address(place)?, Arc::clone(socket)))).collect()
}
