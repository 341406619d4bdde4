//! The kernel data plane of one node: overlay namespaces, VXLAN, VIPs and L4 ingress.
//!
//! ```text
//! Snapshot ─► desired ─┐
//!                      ├─► plan ─► apply ─► kernel (netlink, sysctls, bind mounts)
//! kernel ───► actual ──┘
//! Snapshot ─► rules ───► firewall ────────► kernel (nftables)
//! ```
//!
//! [`DataPlane::reconcile`] is one pass over both. [`desired`], [`plan`] and [`rules`] are pure; [`object`] holds the
//! words they share. Everything is synchronous: meshd runs it on a thread of its own in the host's namespace.
//! [`netns`] and [`ports`] serve the rest of meshd: sockets inside a network's namespace, targets, ports that are held.
//!
//! Kernel objects are meshd's own by what follows from the cluster's state: the namespaces below the run directory with
//! all that is in them; in the host, links named `up<vni>` with their MAC address, and routes with protocol 109;
//! in a target, the endpoint's interface with its MAC address; in Docker's chain `DOCKER-USER`, rules with the comment
//! `meshd`. Nothing else is touched.

pub mod nft;

mod actual;
mod apply;
mod conntrack;
mod crowds;
mod dataplane;
pub mod desired;
mod docker_user;
mod error;
mod firewall;
mod host;
mod kernel;
mod netlink;
pub mod netns;
pub mod object;
mod partings;
pub mod plan;
pub mod ports;
mod probe;
pub mod resolution;
pub mod rules;
pub mod scope;
mod source_rules;
pub mod survey;
mod sysctl;
mod targets;

pub use dataplane::{Config, DataPlane, Difference, Failure, Inspection, Led, Pass, Report, Traffic};
pub use error::{Error, Result};
pub use probe::{Missing, probe_kernel};
pub use rules::PROBE_PORT;
pub use scope::Scope;
pub use targets::has_vanished;
