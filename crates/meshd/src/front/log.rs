//! The log of a front process: lines that wait for a daemon to take them.
//!
//! Its standard error would be the daemon's, which may be a pipe that somebody reads until its end.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::sync::{Mutex, mpsc};
use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait; more are dropped, and counted.
const LINES: usize = 1024;

/// Where lines are written.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    lines: mpsc::Sender<String>,
    dropped: Arc<AtomicU64>,
}

/// Where they are taken from; one at a time does.
#[derive(Debug)]
pub(super) struct Lines {
    lines: Mutex<mpsc::Receiver<String>>,
    room: mpsc::WeakSender<String>,
    dropped: Arc<AtomicU64>,
}

pub(super) fn lines() -> (Writer, Lines) {
    let (to_lines, lines) = mpsc::channel(LINES);
    let dropped = Arc::<AtomicU64>::default();
    let taken = Lines { lines: Mutex::new(lines), room: to_lines.downgrade(), dropped: Arc::clone(&dropped) };
    (Writer { lines: to_lines, dropped }, taken)
}

impl Lines {
    /// The next line, or several.
    pub(super) async fn next(&self) -> String {
        // The logger has a sender for as long as the process lives.
        let line = self.lines.lock().await.recv().await.unwrap_or_default();
        match self.dropped.swap(0, Relaxed) {
            0 => line,
            dropped => format!("{line}meshd front: {dropped} lines of the log were dropped\n"),
        }
    }

    /// Whether none waits.
    pub(super) fn is_empty(&self) -> bool {
        self.room.upgrade().is_none_or(|room| room.capacity() == LINES)
    }
}

impl Write for Writer {
    /// One call writes one line: the formatter sees to that.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.lines.try_send(String::from_utf8_lossy(line).into_owned()).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Writer {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
