//! What strangers send, counted. Anybody who reaches a port could otherwise write this node's log full.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// At most one line in this time.
const PAUSE: Duration = Duration::from_secs(30);

/// The count of one port.
#[derive(Debug)]
pub(crate) struct Noise {
    port: &'static str,
    heard: Mutex<Heard>,
}

#[derive(Debug, Default)]
struct Heard {
    /// Since it was last said, by what it was.
    counts: BTreeMap<&'static str, u64>,
    said: Option<Instant>,
}

impl Noise {
    /// `port` is what people call it.
    pub(crate) fn new(port: &'static str) -> Self {
        Self { port, heard: Mutex::default() }
    }

    /// Counts one of a kind. The first is said in the log, the others with the next one that comes after the pause.
    pub(crate) fn count(&self, what: &'static str) {
        if let Some(counts) =
            self.heard.lock().unwrap_or_else(PoisonError::into_inner).count(what, Instant::now())
        {
            tracing::warn!(port = self.port, counts, "refused what strangers sent");
        }
    }
}

impl Heard {
    /// What is to be said, if it is time.
    fn count(&mut self, what: &'static str, now: Instant) -> Option<String> {
        *self.counts.entry(what).or_default() += 1;
        if self.said.is_some_and(|said| now.duration_since(said) < PAUSE) {
            return None;
        }
        self.said = Some(now);
        let counts = std::mem::take(&mut self.counts);
        Some(counts.iter().map(|(what, count)| format!("{what}: {count}")).collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_are_one_line() {
        let (mut heard, start) = (Heard::default(), Instant::now());
        assert_eq!(heard.count("no TLS", start).unwrap(), "no TLS: 1");
        assert!((0..1000).all(|_| heard.count("no TLS", start).is_none()));
        assert_eq!(heard.count("too slow", start), None);
        let later = start + PAUSE;
        assert_eq!(heard.count("no TLS", later).unwrap(), "no TLS: 1001, too slow: 1");
        assert_eq!(heard.count("no TLS", later), None);
    }
}
