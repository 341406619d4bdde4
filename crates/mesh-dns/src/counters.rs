//! What name servers count.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counted since the start, of one network or of the host.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub(crate) $name: AtomicU64,)*
        }

        /// [`Counters`] at one moment.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// What was counted so far.
            pub fn counts(&self) -> Counts {
                Counts { $($name: self.$name.load(Relaxed),)* }
            }

            pub(crate) fn add(&self, counts: &Counts) {
                $(if counts.$name > 0 {
                    self.$name.fetch_add(counts.$name, Relaxed);
                })*
            }
        }
    };
}

counters! {
    /// Messages that came over UDP.
    udp,
    /// Messages that came over TCP.
    tcp,
    /// Answered from the names of the mesh.
    answered,
    /// Not answered but told why: malformed, of a kind that is not known here, or about names that nobody may be asked for.
    refused,
    /// Answered from what upstream resolvers said before.
    cached,
    /// Asked of upstream resolvers.
    forwarded,
    /// Answered with SERVFAIL as no upstream resolver had an answer.
    failed,
    /// Answered with SERVFAIL as too many were under way, of all clients or of this one; or not read, likewise.
    limited,
    /// Not answered: no DNS query.
    dropped,
}
