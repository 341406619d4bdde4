//! The front processes of this node: the one that serves, and those that finish what they began.
//!
//! The daemon holds every socket too, so that a front that dies is followed by another on the same sockets: whoever
//! connects meanwhile waits in their queues.

use super::pidfd::process_end;
use crate::{
    config::{Config, DnsConfig},
    front::{self, Delta, Descriptors, Held, NamesReport, Order, PROTOCOL, Place, Report, receive, send},
    wire::Counted,
};
use anyhow::{Context, ensure};
use mesh_api::{FrontState, FrontView};
use mesh_model::{NodeId, Snapshot};
use rustix::{
    net::sockopt::socket_peercred,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{fs::MetadataExt, net, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::UnixStream,
    process::Command,
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};

/// What this process runs, even after another file took its place on the disk.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// How long a front may take to say what it holds, or to take an order.
const ANSWER: Duration = Duration::from_secs(5);
/// How long the planes wait until a state is in force.
const IN_FORCE: Duration = Duration::from_secs(1);
/// How long one may take to end: connections in flight may go on until then.
const END: Duration = Duration::from_secs(15);
/// First and longest pause before another one is started. One that lived for longer than the longest starts with the
/// first.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// Places that failed and wait to be looked at.
const FAILED: usize = 64;

/// The front processes.
pub(crate) struct Fronts {
    config: Config,
    node: NodeId,
    serving: Option<Front>,
    retired: Vec<Front>,
    /// When another may be started, and the pause after that.
    again: Option<Instant>,
    pause: Duration,
}

/// One of them.
struct Front {
    pid: i32,
    process: OwnedFd,
    stream: Arc<UnixStream>,
    since: Instant,
    protocol: u32,
    version: Option<String>,
    retired: bool,
    /// What it serves, as of the last order.
    held: Held,
    told: Option<Arc<Snapshot>>,
    turn: u64,
    reports: Reports,
}

/// What a front says of itself.
struct Reports {
    /// The turn that is in force. Closed, the process is gone.
    applied: watch::Receiver<u64>,
    failed: mpsc::Receiver<Place>,
    names: watch::Receiver<Arc<NamesReport>>,
    relayed: watch::Receiver<Arc<Vec<Counted>>>,
}

/// What it says first.
struct Ready {
    protocol: u32,
    version: Option<String>,
    node: NodeId,
    retired: bool,
    held: Held,
}

/// The front processes that run, as they are found.
type Found = Vec<(Front, NodeId)>;

impl Fronts {
    /// Takes over those of an earlier life; returns them with the sockets that they hold.
    pub(super) async fn adopt(config: &Config, node: NodeId) -> (Self, Held) {
        let mut fronts = Self {
            config: config.clone(),
            node,
            serving: None,
            retired: Vec::new(),
            again: None,
            pause: BACKOFF.0,
        };
        let mut held = Held::new();
        for (mut front, of) in found(&config.run_dir).await {
            if of != node {
                // Of another membership, which ended without it.
                front.end().await;
                continue;
            }
            held.extend(front.held.iter().map(|(place, sockets)| (*place, Arc::clone(sockets))));
            let serves = !front.retired && front.protocol == PROTOCOL && front.runs(OWN_PROGRAM);
            if serves && fronts.serving.is_none() {
                tracing::info!(pid = front.pid, "names and the L7 ingress went on without this daemon");
                fronts.serving = Some(front);
                continue;
            }
            if !front.retired {
                tracing::info!(
                    pid = front.pid,
                    "another program serves names and the L7 ingress: it is replaced"
                );
            }
            fronts.retired.push(front);
        }
        (fronts, held)
    }

    /// Serves these places from this state. Returns what can't be, a line each.
    pub(super) async fn apply(&mut self, snapshot: &Arc<Snapshot>, wanted: &Held) -> Vec<String> {
        self.note_ends();
        if self.serving.is_none()
            && !wanted.is_empty()
            && self.again.is_none_or(|again| again <= Instant::now())
        {
            match self.start().await {
                Ok(front) => self.serving = Some(front),
                Err(err) => {
                    self.later();
                    return vec![format!("names and the L7 ingress are not served: {err:#}")];
                }
            }
        }
        // Only now: the sockets of those are served by another.
        for front in &mut self.retired {
            front.retire(snapshot).await;
        }
        let Some(front) = &mut self.serving else {
            return match self.again {
                Some(_) => {
                    vec!["names and the L7 ingress are not served: the process that does ended".to_owned()]
                }
                None => Vec::new(),
            };
        };
        match front.serve(&self.config.dns, snapshot, wanted).await {
            Ok(()) if front.is_in_force().await => Vec::new(),
            Ok(()) => vec![front.silence()],
            Err(err) => {
                // It would be of no use any more: an order was not taken whole.
                tracing::error!(pid = front.pid, %err, "the process of names and the L7 ingress is ended");
                front.kill();
                vec![front.silence()]
            }
        }
    }

    /// What runs, the one that serves first.
    pub(super) fn view(&self) -> Vec<FrontView> {
        self.serving.iter().chain(&self.retired).filter(|front| !front.is_gone()).map(Front::view).collect()
    }

    /// What its name servers do, as of a moment ago.
    pub(super) fn names(&self) -> Arc<NamesReport> {
        self.serving.as_ref().map(|front| Arc::clone(&front.reports.names.borrow())).unwrap_or_default()
    }

    /// What it relayed, likewise.
    pub(super) fn relayed(&self) -> Arc<Vec<Counted>> {
        self.serving.as_ref().map(|front| Arc::clone(&front.reports.relayed.borrow())).unwrap_or_default()
    }

    /// Places whose sockets do not work.
    pub(super) fn failed(&mut self) -> Vec<Place> {
        let Some(front) = &mut self.serving else { return Vec::new() };
        let failed: Vec<Place> = std::iter::from_fn(|| front.reports.failed.try_recv().ok()).collect();
        failed.iter().for_each(|place| drop(front.held.remove(place)));
        failed
    }

    /// Returns when there is something to do: another process is to be started.
    pub(super) async fn lost(&mut self) {
        match (&mut self.serving, self.again) {
            (Some(front), _) => {
                while front.reports.applied.changed().await.is_ok() {}
                self.note_ends();
            }
            (None, Some(again)) => {
                sleep_until(again).await;
                self.again = None;
            }
            (None, None) => std::future::pending().await,
        }
    }

    /// Ends all of them, with what they serve.
    pub(super) async fn end(mut self) {
        for front in self.retired.iter_mut().chain(&mut self.serving) {
            front.end().await;
        }
    }

    /// Ends those of an earlier life, where there is no membership any more.
    pub(crate) async fn end_strays(run_dir: &Path) {
        for (mut front, _) in found(run_dir).await {
            front.end().await;
        }
    }

    fn note_ends(&mut self) {
        for front in self.retired.extract_if(.., |front| front.is_gone()) {
            tracing::info!(pid = front.pid, "an earlier process has finished its connections");
        }
        if let Some(front) = self.serving.take_if(|front| front.is_gone()) {
            // Had it ended by itself, its socket would be gone.
            drop(fs::remove_file(front::socket(&self.config.run_dir, front.pid.cast_unsigned())));
            tracing::error!(
                pid = front.pid,
                "the process of names and the L7 ingress ended: another follows"
            );
            if front.since.elapsed() > BACKOFF.1 {
                self.pause = BACKOFF.0;
                self.again = None;
            } else {
                self.later();
            }
        }
    }

    fn later(&mut self) {
        self.again = Some(Instant::now() + self.pause);
        self.pause = BACKOFF.1.min(self.pause * 2);
    }

    async fn start(&self) -> anyhow::Result<Front> {
        let (ours, theirs) = net::UnixStream::pair().context("no socket")?;
        let mut command = std::process::Command::new(OWN_PROGRAM);
        command.arg0("meshd").arg("front");
        command.arg("--run-dir").arg(&self.config.run_dir).arg("--node").arg(self.node.to_string());
        command.arg("--log-level").arg(self.config.log_level.name());
        command.arg("--log-format").arg(self.config.log_format.name());
        command.env_clear().current_dir("/").stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
        let mut command = Command::from(command);
        let child = command.spawn().context("cannot start a process")?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).context("it ended at once")?;
        ours.set_nonblocking(true)?;
        let (front, _) = Front::meet(UnixStream::from_std(ours)?, pid).await?;
        ensure!(front.protocol == PROTOCOL, "it is of another version");
        tracing::info!(pid, "names and the L7 ingress have a process of their own");
        Ok(front)
    }
}

/// Those that answer on their sockets in the run directory; the sockets of others are removed.
async fn found(run_dir: &Path) -> Found {
    let is_socket = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("front.") && name.ends_with(".sock")
    };
    let entries = fs::read_dir(run_dir).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.path()).filter(is_socket) {
        match Front::find(&path).await {
            Ok(front) => found.push(front),
            Err(err) if err.downcast_ref::<io::Error>().is_some_and(is_refused) => {
                drop(fs::remove_file(&path))
            }
            Err(err) => {
                tracing::error!(path = %path.display(), err = format!("{err:#}"), "a front process is not taken over");
            }
        }
    }
    found
}

fn is_refused(err: &io::Error) -> bool {
    err.kind() == io::ErrorKind::ConnectionRefused
}

impl Front {
    /// One of an earlier life.
    async fn find(path: &Path) -> anyhow::Result<(Self, NodeId)> {
        let stream = UnixStream::connect(path).await?;
        let peer = socket_peercred(&stream).map_err(anyhow::Error::msg)?;
        ensure!(peer.uid == rustix::process::geteuid(), "it is of another user");
        Self::meet(stream, peer.pid.as_raw_nonzero().get()).await
    }

    async fn meet(stream: UnixStream, pid: i32) -> anyhow::Result<(Self, NodeId)> {
        let process = Pid::from_raw(pid).context("no process")?;
        let process = pidfd_open(process, PidfdFlags::empty()).context("it ended")?;
        let ready = timeout(ANSWER, ready(&stream)).await.context("it does not answer")??;
        let stream = Arc::new(stream);
        let (to_applied, applied) = watch::channel(0);
        let (to_failed, failed) = mpsc::channel(FAILED);
        let (to_names, names) = watch::channel(Arc::default());
        let (to_relayed, relayed) = watch::channel(Arc::default());
        tokio::spawn(listen(Arc::clone(&stream), to_applied, to_failed, to_names, to_relayed));
        let reports = Reports { applied, failed, names, relayed };
        let (since, Ready { protocol, version, retired, held, node }) = (Instant::now(), ready);
        let (told, turn) = (None, 0);
        Ok((
            Self { pid, process, stream, since, protocol, version, retired, held, told, turn, reports },
            node,
        ))
    }

    /// Whether the process runs a program: the very file, not its name.
    fn runs(&self, program: &str) -> bool {
        let file = |path: &str| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
        let theirs = file(&format!("/proc/{}/exe", self.pid));
        theirs.is_some() && theirs == file(program)
    }

    fn view(&self) -> FrontView {
        let state = if self.retired { FrontState::Finishing } else { FrontState::Serving };
        FrontView { pid: self.pid.cast_unsigned(), state, version: self.version.clone() }
    }

    fn is_gone(&self) -> bool {
        self.reports.applied.has_changed().is_err()
    }

    /// The same as [`Front::follow`], of one that serves: it learns first how, as the daemon before may have had it otherwise.
    async fn serve(&mut self, dns: &DnsConfig, snapshot: &Arc<Snapshot>, wanted: &Held) -> io::Result<()> {
        if self.told.is_none() {
            self.order(&Order::Forward(dns.clone()), &[]).await?;
        }
        self.follow(snapshot, wanted).await
    }

    /// Opens, closes and applies.
    async fn follow(&mut self, snapshot: &Arc<Snapshot>, wanted: &Held) -> io::Result<()> {
        let same = |held: &Held, place: &Place, sockets: &Descriptors| {
            held.get(place).is_some_and(|other| Arc::ptr_eq(sockets, other))
        };
        let closed: Vec<Place> = self
            .held
            .iter()
            .filter(|(place, of)| !same(wanted, place, of))
            .map(|(place, _)| *place)
            .collect();
        for place in closed {
            self.held.remove(&place);
            self.order(&Order::Close(place), &[]).await?;
        }
        for (place, sockets) in wanted {
            if !same(&self.held, place, sockets) {
                self.held.insert(*place, Arc::clone(sockets));
                self.order(&Order::Open(*place), sockets).await?;
            }
        }
        self.turn += 1;
        let delta = Delta::between(self.told.as_deref(), snapshot);
        self.order(&Order::Apply { turn: self.turn, delta }, &[]).await?;
        self.told = Some(Arc::clone(snapshot));
        Ok(())
    }

    async fn is_in_force(&mut self) -> bool {
        let turn = self.turn;
        let in_force = self.reports.applied.wait_for(|applied| *applied == turn);
        timeout(IN_FORCE, in_force).await.is_ok_and(|applied| applied.is_ok())
    }

    fn silence(&self) -> String {
        format!(
            "names and the L7 ingress may lag behind: process {} that serves them does not answer",
            self.pid
        )
    }

    /// Has it finish what it began, from this state. Should it not listen, it does so with what it knows.
    async fn retire(&mut self, snapshot: &Arc<Snapshot>) {
        if !self.retired {
            self.retired = true;
            self.held.clear();
            drop(self.order(&Order::Retire, &[]).await);
        }
        if self.protocol == PROTOCOL {
            drop(self.follow(snapshot, &Held::new()).await);
        }
    }

    /// Ends it; returns when it has ended.
    async fn end(&mut self) {
        if self.order(&Order::End, &[]).await.is_err() {
            self.kill();
        }
        let applied = &mut self.reports.applied;
        if timeout(END, async { while applied.changed().await.is_ok() {} }).await.is_err() {
            tracing::warn!(pid = self.pid, "the process of names and the L7 ingress does not end: killed");
            self.kill();
        }
        // It has nothing left to do.
        drop(timeout(ANSWER, process_end(self.pid)).await);
    }

    fn kill(&self) {
        // It may have ended by itself.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }

    async fn order(&self, order: &Order, sockets: &[OwnedFd]) -> io::Result<()> {
        timeout(ANSWER, send(&self.stream, order, sockets)).await?
    }
}

/// What a front says first.
async fn ready(stream: &UnixStream) -> anyhow::Result<Ready> {
    let mut held = Held::new();
    loop {
        let (report, sockets) = receive(stream).await?.context("it ended: see the log")?;
        match report {
            Report::Holds(place) => drop(held.insert(place, Arc::new(sockets))),
            Report::Ready { protocol, node, retired, version } => {
                return Ok(Ready { protocol, version, node, retired, held });
            }
            Report::Log(lines) => print(&lines),
            Report::Applied { .. } | Report::Failed(_) | Report::Names(_) | Report::Relayed(_) => {}
        }
    }
}

async fn listen(
    stream: Arc<UnixStream>,
    applied: watch::Sender<u64>,
    failed: mpsc::Sender<Place>,
    names: watch::Sender<Arc<NamesReport>>,
    relayed: watch::Sender<Arc<Vec<Counted>>>,
) {
    loop {
        match receive(&stream).await {
            Ok(Some((Report::Applied { turn }, _))) => drop(applied.send_replace(turn)),
            // One too many is told again by the next pass.
            Ok(Some((Report::Failed(place), _))) => drop(failed.try_send(place)),
            Ok(Some((Report::Names(report), _))) => drop(names.send_replace(Arc::new(report))),
            Ok(Some((Report::Relayed(report), _))) => drop(relayed.send_replace(Arc::new(report))),
            Ok(Some((Report::Log(lines), _))) => print(&lines),
            Ok(Some((Report::Holds(_) | Report::Ready { .. }, _))) => {}
            Ok(None) => return,
            Err(err) => return tracing::warn!(%err, "lost the process of names and the L7 ingress"),
        }
    }
}

/// Lines of its log, which are formatted already.
fn print(lines: &str) {
    eprint!("{lines}");
}
