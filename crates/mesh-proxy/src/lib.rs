//! L7 ingress, userspace relay and health checks.
//!
//! - [`Routes`] is pure: for every published port, the services on it and their backends.
//! - [`Datagrams`] relays those of published UDP ports that the kernel can't lead.
//! - [`Ingress`] (HTTP) and [`Relay`] (TCP) own every connection of their listeners: one accepting task a listener, one
//!   task a client connection, one a pooled upstream connection. Listeners and routes come in through `watch` channels
//!   and are compared with what runs, so that a lost update costs nothing.
//! - [`HealthChecks`] runs one task for each endpoint of this node that has a check, and reports verdicts.
//!
//! All reach backends through [`Connect`] only: the caller knows which network namespace a socket starts in.
//! What speaks HTTP is in `engine`, apart from routing, balancing and listeners, which know nothing of it.

mod balance;
mod connect;
mod engine;
mod error;
mod health;
mod ingress;
mod listening;
mod proxy_protocol;
mod relay;
mod routes;
mod settings;

pub use connect::{Connect, Connecting};
pub use error::Error;
pub use health::{Check, HealthChecks, Probe, Report, Verdict, plan_checks};
pub use ingress::Ingress;
pub use listening::Listeners;
pub use relay::{Datagrams, OpenDatagrams, Relay, Tally, Target, UdpSockets, Volume};
pub use routes::{Backend, ListenAddr, Route, Routes};
pub use settings::Settings;
