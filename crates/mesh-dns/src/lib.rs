//! The embedded DNS: what the containers of one network ask at their gateway address.
//!
//! - [`Table`] holds a network's names. It is built from a snapshot, never changed, and swapped whole.
//! - [`answer()`] is the packet path: bytes in, bytes out, no I/O, no clock, no allocation. What the table does not
//!   know it hands back as [`Outcome::Forward`].
//! - [`Forwarder`] asks the host's resolvers ([`parse_resolv_conf`]) and remembers what they said.
//! - [`Server`] runs the three on sockets that the caller bound: a loop over the UDP socket, which answers from
//!   the table itself and starts a task for each forwarded query only, and a task for each TCP connection. Both
//!   are bounded, and both end with the server.

mod answer;
mod error;
mod forward;
mod name;
mod query;
mod resolv_conf;
mod response;
mod server;
mod spread;
mod table;
mod wire;

pub use answer::{Outcome, answer};
pub use error::Error;
pub use forward::{Forwarder, ForwarderOptions};
pub use resolv_conf::parse_resolv_conf;
pub use response::Transport;
pub use server::Server;
pub use table::Table;
