//! Progress of what takes longer than a second.

use indicatif::ProgressBar;
use std::{
    future::Future,
    io::{IsTerminal, stderr},
    pin::pin,
    time::Duration,
};
use tokio::time::{interval, sleep};

/// Until then, nothing is shown.
const PATIENCE: Duration = Duration::from_secs(1);
/// From one frame of the spinner to the next.
const FRAME: Duration = Duration::from_millis(100);

/// Waits, with a spinner on stderr after a second if that is a terminal. It is drawn from this task: indicatif's
/// own ticker would be a second thread.
pub(crate) async fn shown<T>(doing: &str, work: impl Future<Output = T>) -> T {
    if !stderr().is_terminal() {
        return work.await;
    }
    let mut work = pin!(work);
    tokio::select! {
        done = &mut work => return done,
        () = sleep(PATIENCE) => {}
    }
    let spinner = ProgressBar::new_spinner().with_message(doing.to_owned());
    let mut frames = interval(FRAME);
    loop {
        tokio::select! {
            done = &mut work => {
                spinner.finish_and_clear();
                return done;
            }
            _ = frames.tick() => spinner.tick(),
        }
    }
}
