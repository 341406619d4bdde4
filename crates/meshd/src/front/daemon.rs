//! The daemon, as a front process sees it: first the one that started it, later others that find its socket.

use super::{
    channel::{receive, send},
    log::Lines,
    messages::{Descriptors, Order, Report},
};
use rustix::net::sockopt::socket_peercred;
use std::{
    fs::{self, Permissions},
    io,
    os::{
        fd::AsFd,
        unix::{
            fs::{MetadataExt, PermissionsExt},
            net,
        },
    },
    path::{Path, PathBuf},
    process,
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{UnixListener, UnixStream},
    select,
    sync::mpsc,
    task::JoinHandle,
    time::sleep,
};

/// Orders that wait to be followed.
const ORDERS: usize = 16;
/// Reports that wait to be read.
const REPORTS: usize = 64;
/// How long no daemon is met after one could not be.
const PAUSE: Duration = Duration::from_secs(1);
/// How often it is seen whether the last lines are told.
const LAST_LOOK: Duration = Duration::from_millis(5);

/// What happens.
#[derive(Debug)]
pub(super) enum Event {
    /// There is a daemon, which waits to be told what is served here.
    Met,
    Told(Order, Descriptors),
}

/// All of them, one after the other.
#[derive(Debug)]
pub(super) struct Daemons {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
    lines: Arc<Lines>,
    /// The one that started this process, before anything else.
    first: Option<UnixStream>,
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    orders: mpsc::Receiver<(Order, Descriptors)>,
    reports: mpsc::Sender<(Report, Descriptors)>,
    talk: JoinHandle<()>,
}

impl Drop for Current {
    fn drop(&mut self) {
        self.talk.abort();
    }
}

impl Daemons {
    /// Listens for those to come.
    pub(super) fn open(run_dir: &Path, lines: Lines) -> io::Result<Self> {
        let lines = Arc::new(lines);
        let path = super::socket(run_dir, process::id());
        // Left by a process of the same number that was killed.
        drop(fs::remove_file(&path));
        // The umask keeps others out, from the first moment; it is the daemon's, set before it started this process.
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        let inode = fs::symlink_metadata(&path)?.ino();
        let first = net::UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        first.set_nonblocking(true)?;
        let first = Some(UnixStream::from_std(first)?);
        Ok(Self { listener, path, inode, lines, first, current: None })
    }

    /// Whether the socket is still where a daemon would find it.
    pub(super) fn is_wanted(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode)
    }

    /// What happens next. A daemon that goes is no event: the next one introduces itself.
    pub(super) async fn next(&mut self) -> Event {
        if let Some(first) = self.first.take() {
            self.meet(first);
            return Event::Met;
        }
        loop {
            let told = async {
                match &mut self.current {
                    Some(current) => current.orders.recv().await,
                    None => std::future::pending().await,
                }
            };
            select! {
                biased;
                told = told => match told {
                    Some((order, descriptors)) => return Event::Told(order, descriptors),
                    None => self.current = None,
                },
                met = self.listener.accept() => match met {
                    Ok((stream, _)) if is_own(&stream) => {
                        self.meet(stream);
                        return Event::Met;
                    }
                    Ok(_) => tracing::warn!("front: somebody else's connection is refused"),
                    Err(err) => {
                        tracing::warn!(%err, "front: a daemon can't be met");
                        sleep(PAUSE).await;
                    }
                },
            }
        }
    }

    /// Says something to the daemon, if there is one.
    pub(super) async fn tell(&self, report: Report, descriptors: Descriptors) {
        if let Some(current) = &self.current {
            // One that goes meanwhile asks no more.
            drop(current.reports.send((report, descriptors)).await);
        }
    }

    /// Returns once the log is told, if there is a daemon to take it.
    pub(super) async fn farewell(&self) {
        while self.current.as_ref().is_some_and(|current| !current.talk.is_finished())
            && !self.lines.is_empty()
        {
            sleep(LAST_LOOK).await;
        }
        // The very last one may be on its way.
        sleep(LAST_LOOK).await;
    }

    fn meet(&mut self, stream: UnixStream) {
        let stream = Arc::new(stream);
        let (to_orders, orders) = mpsc::channel(ORDERS);
        let (reports, to_send) = mpsc::channel(REPORTS);
        let lines = Arc::clone(&self.lines);
        let talk = async move {
            // Whichever ends first: there is no daemon any more.
            select! {
                () = listen(&stream, to_orders) => {}
                () = report(&stream, to_send, &lines) => {}
            }
        };
        self.current = Some(Current { orders, reports, talk: tokio::spawn(talk) });
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        if self.is_wanted() {
            drop(fs::remove_file(&self.path));
        }
    }
}

/// Whether the other end is of the same user.
fn is_own(stream: &UnixStream) -> bool {
    socket_peercred(stream).is_ok_and(|peer| peer.uid == rustix::process::geteuid())
}

async fn listen(stream: &UnixStream, orders: mpsc::Sender<(Order, Descriptors)>) {
    loop {
        match receive(stream).await {
            Ok(Some((order, descriptors))) => {
                if orders.send((order, Arc::new(descriptors))).await.is_err() {
                    return;
                }
            }
            Ok(None) => return tracing::debug!("front: the daemon is gone"),
            Err(err) => return tracing::warn!(%err, "front: lost the daemon"),
        }
    }
}

async fn report(stream: &UnixStream, mut reports: mpsc::Receiver<(Report, Descriptors)>, lines: &Lines) {
    loop {
        let sent = select! {
            biased;
            report = reports.recv() => match report {
                Some((report, descriptors)) => send(stream, &report, &descriptors).await,
                None => return,
            },
            line = lines.next() => send(stream, &Report::Log(line), &[]).await,
        };
        if sent.is_err() {
            return;
        }
    }
}
