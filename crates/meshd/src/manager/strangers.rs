//! Connections that have not shown a certificate, bounded: whoever holds many of them open keeps no agent out.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio_util::sync::CancellationToken;

/// So many at once. One more ends the oldest: an agent is a stranger for milliseconds, so it is hardly ever that.
const STRANGERS: usize = 2000;

/// The strangers at a port.
#[derive(Debug, Default)]
pub(super) struct Strangers(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    /// What ends each of them, the oldest first.
    present: BTreeMap<u64, CancellationToken>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Stranger {
    among: Arc<Strangers>,
    number: u64,
    end: CancellationToken,
}

impl Strangers {
    /// Takes one in; the oldest has to go if there are too many.
    pub(super) fn admit(self: &Arc<Self>) -> Stranger {
        let end = CancellationToken::new();
        let mut table = self.lock();
        let number = table.next;
        table.next += 1;
        table.present.insert(number, end.clone());
        if table.present.len() > STRANGERS
            && let Some((_, oldest)) = table.present.pop_first()
        {
            oldest.cancel();
        }
        Stranger { among: Arc::clone(self), number, end }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stranger {
    /// Does something for as long as the stranger may stay; `None` if that was not long enough.
    pub(super) async fn while_present<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.end.run_until_cancelled(work).await
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.among.lock().present.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_go_and_who_has_left_makes_room() {
        let strangers = Arc::<Strangers>::default();
        let mut present: Vec<_> = (0..STRANGERS).map(|_| strangers.admit()).collect();
        let known = present.remove(0);
        drop(known);
        let _one_more = strangers.admit();
        assert!(present.iter().all(|stranger| !stranger.end.is_cancelled()));
        let _too_many = strangers.admit();
        assert_eq!(present[0].while_present(std::future::pending::<()>()).await, None);
        assert!(!present[1].end.is_cancelled());
    }
}
