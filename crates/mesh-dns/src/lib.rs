//! The embedded DNS: what the containers of one network ask at their gateway address.
//!
//! ```text
//! state, changes ──► Zone ──► Table ─┐ swapped
//!                                    ▼
//! datagrams, connections ──► Server (View) ──► answer(), from the table
//!                                    └───────► Forwarder: cache ──► upstream resolvers
//! ```
//!
//! - [`Table`] holds a network's names; it is never changed while it is asked, but swapped for the next one. A [`Zone`] makes
//!   them: it follows the state, and a change costs what it touches.
//! - [`answer()`] is the packet path: bytes in, bytes out, no I/O, no clock, no allocation. What the tables do not
//!   know it hands back as [`Outcome::Forward`].
//! - [`Forwarder`] asks other resolvers, the host's ([`parse_resolv_conf`]) or a network's own ([`Routes`]), and remembers what
//!   they said.
//! - [`Question`] asks a server as a container would.
//! - [`Server`] runs these on sockets that the caller bound, from a [`View`]: a loop over the UDP socket, which answers batches
//!   of datagrams from the tables and the cache, and starts a task for each forwarded query only; and a task for each TCP
//!   connection. All are bounded, and end with the server.

mod answer;
mod counters;
mod error;
mod forward;
mod name;
mod neighbours;
mod query;
mod resolv_conf;
mod resolve;
mod response;
mod server;
mod spread;
mod table;
mod view;
mod wire;
mod zone;

pub use answer::{Names, Outcome, answer};
pub use counters::{Counters, Counts};
pub use error::Error;
#[doc(hidden)]
pub use forward::fuzzing;
pub use forward::{
    Condition, Forwarder, ForwarderOptions, HostSockets, Manner, Order, Routes, Sockets, Upstream,
};
pub use neighbours::{Neighbours, OtherNetworks};
pub use resolv_conf::parse_resolv_conf;
pub use resolve::{Question, Reply, ResolveError};
pub use response::Transport;
pub use server::Server;
pub use table::Table;
pub use view::{Published, Source, View};
pub use zone::Zone;
