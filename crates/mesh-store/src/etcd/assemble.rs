//! Makes whole transactions of what a watch stream brings.

use crate::{Change, Event, Revision};

/// etcd groups changes as it likes: many transactions in one response, or one transaction over several
/// *fragments*. Sorts them into one [`Event`] a revision, and drops what was seen before.
#[derive(Debug)]
pub(super) struct Assembler {
    /// All up to this revision has been returned.
    position: Revision,
    /// The transaction whose fragments are still coming.
    partial: Option<Event>,
}

impl Assembler {
    pub(super) fn new(position: Revision) -> Self {
        Self { position, partial: None }
    }

    pub(super) fn position(&self) -> Revision {
        self.position
    }

    /// Begins anew after [`position`](Self::position): the stream is another one.
    pub(super) fn restart(&mut self) {
        self.partial = None;
    }

    /// etcd says that nothing up to `revision` is outstanding.
    pub(super) fn advance(&mut self, revision: Revision) {
        if self.partial.is_none() {
            self.position = self.position.max(revision);
        }
    }

    /// Takes the changes of one response, each with its revision, in order; `more`: its next fragment follows.
    /// Returns the transactions that are complete.
    pub(super) fn add(&mut self, changes: Vec<(Revision, Change)>, more: bool) -> Vec<Event> {
        let mut complete = Vec::new();
        for (revision, change) in changes {
            if revision <= self.position {
                continue;
            }
            match &mut self.partial {
                Some(event) if event.revision == revision => event.changes.push(change),
                partial => {
                    complete.extend(partial.replace(Event { revision, changes: vec![change] }));
                }
            }
        }
        if !more {
            complete.extend(self.partial.take());
        }
        self.position = complete.last().map_or(self.position, |event| event.revision);
        complete
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn deleted(key: String) -> Change {
        Change::Delete { key }
    }

    /// Transactions of one to four changes at growing revisions.
    fn events() -> impl Strategy<Value = Vec<Event>> {
        prop::collection::vec((1..3u64, 1..5usize), 0..12).prop_map(|sizes| {
            let mut revision = 10;
            let event = |(gap, count): (u64, usize)| {
                revision += gap;
                let changes = (0..count).map(|index| deleted(format!("{revision}/{index}"))).collect();
                Event { revision, changes }
            };
            sizes.into_iter().map(event).collect()
        })
    }

    proptest! {
        /// However the changes are cut into responses, and wherever the stream breaks and begins anew, each
        /// transaction comes whole, once and in order.
        #[test]
        fn each_transaction_comes_whole_and_once(
            events in events(),
            cuts in prop::collection::vec((1..6usize, prop::bool::weighted(0.2)), 1..40),
        ) {
            let mut cuts = cuts.into_iter().cycle();
            let mut assembler = Assembler::new(10);
            let mut seen = Vec::new();
            let mut broken = 0;
            'stream: loop {
                // As the driver does, from the position itself.
                let position = assembler.position();
                let rest = events.iter().filter(|event| event.revision >= position);
                let flat: Vec<_> =
                    rest.flat_map(|event| event.changes.iter().map(|change| (event.revision, change.clone()))).collect();
                let mut from = 0;
                while from < flat.len() {
                    let (size, breaks) = cuts.next().expect("cycles");
                    if breaks && broken < 20 {
                        broken += 1;
                        assembler.restart();
                        continue 'stream;
                    }
                    let to = (from + size).min(flat.len());
                    let more = flat.get(to).is_some_and(|(next, _)| *next == flat[to - 1].0);
                    seen.extend(assembler.add(flat[from..to].to_vec(), more));
                    from = to;
                }
                break;
            }
            prop_assert_eq!(seen, events);
        }
    }

    #[test]
    fn progress_inside_a_transaction_skips_nothing() {
        let mut assembler = Assembler::new(1);
        assert_eq!(assembler.add(vec![(5, deleted("a".to_owned()))], true), []);
        assembler.advance(5);
        assert_eq!(assembler.position(), 1);
        let whole = assembler.add(vec![(5, deleted("b".to_owned()))], false);
        assert_eq!((whole.len(), whole[0].changes.len(), assembler.position()), (1, 2, 5));
        assembler.advance(9);
        assert_eq!(assembler.position(), 9);
    }
}
