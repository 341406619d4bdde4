//! A process that is kept running: started again when it dies, ended with this one, however that ends.
//!
//! The kernel ties its end to the *thread* that started it (`PR_SET_PDEATHSIG`, prctl(2)), so a thread of its own
//! starts it and waits for it.

use anyhow::Context;
use nix::{
    errno::Errno,
    sys::{
        prctl,
        signal::{Signal, kill},
        statvfs::statvfs,
    },
    unistd::{Pid, getpid, getppid},
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// What etcd says when it was removed from its cluster; it ends then.
const REMOVED: &str = "the member has been permanently removed from the cluster";
/// How often the thread looks whether the process still runs.
const LOOK: Duration = Duration::from_millis(100);
/// How long the process may take to end when it is told to.
const GRACE: Duration = Duration::from_secs(5);
/// First and longest pause before it is started again. One that ran for longer than the longest starts with the first.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// After an end that nobody ordered, what it said last is what ails it for so long.
const AILS: Duration = Duration::from_secs(30);
/// `ENOSPC`, as etcd says it.
const NO_SPACE: &str = "no space left";
/// So many bytes are no room.
const ROOM: u64 = 1 << 20;
/// Warnings of one kind are passed on once in this time, and counted: anybody who reaches etcd's ports can cause one with
/// each connection.
const PAUSE: Duration = Duration::from_secs(30);

/// What to run.
#[derive(Debug, Clone)]
pub(super) struct Invocation {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    /// Where it keeps what it has.
    pub(super) directory: PathBuf,
}

/// The process. Dropped, it ends.
pub(super) struct Child {
    orders: Sender<Order>,
    diary: Arc<Mutex<Diary>>,
    /// Whether it has ended for good: nobody starts it again.
    ended: watch::Receiver<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Restart,
    Stop,
}

/// What went wrong with it.
#[derive(Debug, Default)]
struct Diary {
    /// It was removed from its cluster: it never serves again with what is in its directory.
    removed: bool,
    /// The last error in its log.
    last_words: Option<String>,
    /// When it ended last without having been told to.
    ended: Option<Instant>,
}

impl Diary {
    fn says(&self, text: &str) -> bool {
        self.last_words.as_ref().is_some_and(|words| words.contains(text))
    }
}

/// Whether a directory's disk has no room worth mentioning.
fn is_full(directory: &Path) -> bool {
    statvfs(directory).is_ok_and(|disk| disk.blocks_available() * disk.fragment_size() < ROOM)
}

fn lock(diary: &Mutex<Diary>) -> MutexGuard<'_, Diary> {
    diary.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Child {
    /// Starts the process; refused if its thread can't be.
    pub(super) fn start(invocation: Invocation) -> anyhow::Result<Self> {
        let (orders, received) = mpsc::channel();
        let (ended, receiver) = watch::channel(false);
        let diary = Arc::<Mutex<Diary>>::default();
        let own = Arc::clone(&diary);
        let keep = move || {
            keep(&invocation, &received, &own);
            ended.send_replace(true);
        };
        thread::Builder::new().name("etcd".to_owned()).spawn(keep).context("no thread for etcd")?;
        Ok(Self { orders, diary, ended: receiver })
    }

    /// Ends the process and starts it again.
    pub(super) fn restart(&self) {
        // The thread lives as long as this.
        let _ = self.orders.send(Order::Restart);
    }

    /// Ends the process; returns when it has ended.
    pub(super) async fn stop(&self) {
        let _ = self.orders.send(Order::Stop);
        self.ended().await;
    }

    /// Returns when the process has ended for good: it was told to, or its cluster removed it.
    pub(super) async fn ended(&self) {
        let mut ended = self.ended.clone();
        // An error: the thread is gone, and the process with it.
        drop(ended.wait_for(|ended| *ended).await);
    }

    /// The last error that the process told of.
    pub(super) fn last_words(&self) -> Option<String> {
        lock(&self.diary).last_words.clone()
    }

    /// Why it ended by itself, if it did so lately, and may end again, or for good.
    pub(super) fn ailment(&self) -> Option<String> {
        let diary = lock(&self.diary);
        diary.ended.filter(|ended| diary.removed || ended.elapsed() < AILS)?;
        diary.last_words.clone()
    }
}

/// Keeps the process running until told to stop, until nobody can tell any more, or until its cluster removes it.
fn keep(invocation: &Invocation, orders: &Receiver<Order>, diary: &Arc<Mutex<Diary>>) {
    let mut pause = BACKOFF.0;
    loop {
        let started = Instant::now();
        match spawn(invocation) {
            Ok(mut process) => {
                let log = process.stderr.take();
                let own = Arc::clone(diary);
                let reader = thread::spawn(move || log.map(|log| follow_log(BufReader::new(log), &own)));
                let order = wait(&mut process, orders);
                // It ends with the process.
                drop(reader.join());
                match order {
                    Some(Order::Stop) => return,
                    Some(Order::Restart) => continue,
                    None => {
                        let mut diary = lock(diary);
                        diary.ended = Some(Instant::now());
                        if diary.removed {
                            return;
                        }
                        // What it dies of then need not say so: a log that was cut short can't be mended either.
                        if is_full(&invocation.directory) && !diary.says(NO_SPACE) {
                            let words = diary.last_words.take().unwrap_or_default();
                            diary.last_words = Some(format!("{words} ({NO_SPACE} on its disk)"));
                        }
                    }
                }
            }
            Err(err) => tracing::error!(%err, program = %invocation.program.display(), "cannot start etcd"),
        }
        if started.elapsed() > BACKOFF.1 {
            pause = BACKOFF.0;
        }
        if matches!(orders.recv_timeout(pause), Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected)) {
            return;
        }
        pause = (pause * 2).min(BACKOFF.1);
    }
}

#[allow(unsafe_code)]
fn spawn(invocation: &Invocation) -> std::io::Result<process::Child> {
    let mut command = Command::new(&invocation.program);
    // Every option of etcd can be set by the environment too: only ours count.
    command.args(&invocation.arguments).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let parent = getpid();
    let before_exec = move || {
        // It is made for being killed; what it acknowledged is on disk.
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // Had the parent ended before the first line, nothing would tell.
        if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
    };
    // SAFETY: prctl and getppid are async-signal-safe, and nothing allocates.
    unsafe { command.pre_exec(before_exec) };
    command.spawn()
}

/// Waits until the process ends by itself, or ends it as ordered.
fn wait(process: &mut process::Child, orders: &Receiver<Order>) -> Option<Order> {
    loop {
        let order = match orders.recv_timeout(LOOK) {
            Ok(order) => order,
            Err(RecvTimeoutError::Disconnected) => Order::Stop,
            Err(RecvTimeoutError::Timeout) => match process.try_wait() {
                Ok(None) => continue,
                ended => {
                    let status = ended.ok().flatten().map(|status| status.to_string());
                    tracing::warn!(status, "etcd ended");
                    return None;
                }
            },
        };
        end(process);
        return Some(order);
    }
}

fn end(process: &mut process::Child) {
    let deadline = Instant::now() + GRACE;
    // Not waited for yet: the number is still the process's own.
    if let Ok(pid) = process.id().try_into() {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    while let Ok(None) = process.try_wait() {
        if Instant::now() > deadline {
            drop(process.kill());
            drop(process.wait());
            return;
        }
        thread::sleep(LOOK);
    }
}

/// Passes the log of one life on to ours: what it warns of as a warning, the rest for who debugs.
fn follow_log(log: impl BufRead, diary: &Mutex<Diary>) {
    let (mut warnings, mut explained) = (Warnings::default(), false);
    for line in log.split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        let entry: Value = serde_json::from_str(&line).unwrap_or_default();
        let field = |name: &str| entry[name].as_str().unwrap_or_default();
        let said = match (field("msg"), field("error")) {
            ("", _) => line.trim().to_owned(),
            (msg, "") => msg.to_owned(),
            (msg, error) => format!("{msg}: {error}"),
        };
        if said.contains(REMOVED) {
            let mut diary = lock(diary);
            diary.removed = true;
            diary.last_words.get_or_insert_with(|| REMOVED.to_owned());
        }
        match field("level") {
            "info" | "debug" => tracing::debug!(target: "meshd::etcd", "{said}"),
            "warn" => {
                if let Some(more) = warnings.pass(field("msg"), Instant::now()) {
                    tracing::warn!(target: "meshd::etcd", more, "{said}");
                }
            }
            // What it dies of may be no entry at all; the lines that follow are the program's innards.
            "" if explained || said.is_empty() => tracing::debug!(target: "meshd::etcd", "{said}"),
            _ => {
                tracing::warn!(target: "meshd::etcd", "{said}");
                lock(diary).last_words = Some(said);
                explained = true;
            }
        }
    }
}

/// Warnings by their kind, of which etcd has a few dozen: when one was passed on, and how many were not since.
#[derive(Debug, Default)]
struct Warnings(BTreeMap<String, (Instant, u64)>);

impl Warnings {
    /// How many of the kind were left out before this one, if this one is to be passed on.
    fn pass(&mut self, kind: &str, now: Instant) -> Option<u64> {
        let Some((said, more)) = self.0.get_mut(kind) else {
            self.0.insert(kind.to_owned(), (now, 0));
            return Some(0);
        };
        if now.duration_since(*said) < PAUSE {
            *more += 1;
            return None;
        }
        *said = now;
        Some(std::mem::take(more))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_of_one_kind_are_passed_on_now_and_then() {
        let (mut warnings, start) = (Warnings::default(), Instant::now());
        assert_eq!(warnings.pass("rejected", start), Some(0));
        assert!((0..1000).all(|_| warnings.pass("rejected", start).is_none()));
        assert_eq!(warnings.pass("slow", start), Some(0));
        assert_eq!(warnings.pass("rejected", start + PAUSE), Some(1000));
        assert_eq!(warnings.pass("rejected", start + PAUSE * 2), Some(0));
    }

    #[test]
    fn an_error_in_the_log_is_remembered() {
        let last = |log: &str| {
            let diary = Mutex::<Diary>::default();
            follow_log(log.as_bytes(), &diary);
            let words = lock(&diary).last_words.clone();
            words.unwrap_or_default()
        };
        let log = concat!(
            "{\"level\":\"info\",\"msg\":\"starting\"}\n",
            "{\"level\":\"fatal\",\"msg\":\"discovery failed\",\"error\":\"bind: address already in use\"}\n",
            "{\"level\":\"warn\",\"msg\":\"slow\"}\n",
        );
        assert_eq!(last(log), "discovery failed: bind: address already in use");
        let log = concat!(
            "{\"level\":\"panic\",\"msg\":\"failed to create WAL\",\"error\":\"no space left on device\"}\n",
            "panic: failed to create WAL\n\ngoroutine 1 [running]:\ngo.etcd.io/etcd/main.go:28 +0x17\n",
        );
        assert_eq!(last(log), "failed to create WAL: no space left on device");
        assert_eq!(
            last("\nflag provided but not defined: -x\nUsage:\n"),
            "flag provided but not defined: -x"
        );
    }

    #[tokio::test]
    async fn a_process_that_dies_is_started_again_until_it_is_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let count = dir.path().join("count");
        let script = format!("echo x >> {}; exit 1", count.display());
        let arguments = vec!["-c".to_owned(), script];
        let child = Child::start(Invocation {
            program: "/bin/sh".into(),
            arguments,
            directory: dir.path().to_owned(),
        })
        .unwrap();
        let starts = || std::fs::read_to_string(&count).unwrap_or_default().lines().count();
        while starts() < 3 {
            tokio::time::sleep(LOOK).await;
        }
        child.stop().await;
        let stopped = starts();
        tokio::time::sleep(BACKOFF.0 * 10).await;
        assert_eq!(starts(), stopped);
    }
}
