//! What is tried again and again: that it fails is said once in the log, and kept for `meshctl status`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One thing that may fail for a while.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    what: &'static str,
    why: Arc<Mutex<Option<String>>>,
}

impl Problem {
    /// `what` says what is wrong as long as it fails.
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, why: Arc::default() }
    }

    /// Takes the outcome of one try; returns whether it failed.
    pub(super) fn note<T>(&self, tried: anyhow::Result<T>) -> bool {
        let why = tried.err().map(|err| format!("{err:#}"));
        let failed = why.is_some();
        let mut known = self.lock();
        match &why {
            Some(err) if *known != why => tracing::error!(err, "{}", self.what),
            None if known.is_some() => tracing::info!("no more: {}", self.what),
            _ => {}
        }
        *known = why;
        failed
    }

    /// What is wrong, in one line.
    pub(super) fn line(&self) -> Option<String> {
        self.lock().as_ref().map(|why| format!("{}: {why}", self.what))
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
