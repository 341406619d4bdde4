//! The test harness: hosts as network namespaces, with real `meshd` processes, real nginx, `dig`, `curl` and `ping`.
//!
//! A [`Lab`] is a small network of its own: hosts and clients joined by an underlay bridge, and containers as bare
//! namespaces. Each lab lives in its own PID and mount namespace (`scripts/lib/lab.sh`), so the kernel removes all of
//! it when the test ends, also by SIGKILL, and labs run side by side. A test is a [`scenario`]; when it fails, what
//! each host looks like is printed.
//!
//! ```no_run
//! use mesh_tests::{Cluster, scenario};
//!
//! scenario("two networks", |lab| {
//!     let cluster = Cluster::three(lab)?;
//!     cluster.vm1().meshctl(&["network", "create", "blue"]).ok()?;
//!     Ok(())
//! });
//! ```
//!
//! Labs need root (CAP_SYS_ADMIN, CAP_NET_ADMIN); without it a test fails, saying so. `meshd` and `meshctl` are taken
//! from the target directory of the running test: `cargo build --bins` first, as `scripts/test` does.

pub mod backend;
pub mod clock;
pub mod cluster;
pub mod cni;
pub mod conversation;
pub mod crowd;
pub mod docker;
pub mod echo;
pub mod flows;
pub mod host;
pub mod lab;
pub mod leaks;
pub mod member;
pub mod namespace;
pub mod nginx;
pub mod partition;
pub mod podman;
pub mod probe;
pub mod process;
pub mod queries;
pub mod resolved;
pub mod site_etcd;
pub mod syns;
pub mod visits;
pub mod wrk;

pub use backend::Backend;
pub use clock::Clock;
pub use cluster::{CONVERGES, Cluster, field};
pub use cni::{Plugin, Said};
pub use conversation::{Conversations, Kind};
pub use crowd::{Crowd, CrowdCount};
pub use docker::Docker;
pub use echo::{Echo, comes_back};
pub use flows::{FlowCount, Flows};
pub use host::{Host, Meshd, Objects, unchanged};
pub use lab::{Container, Lab, scenario};
pub use leaks::Leaks;
pub use member::{MemberConnection, credentials};
pub use namespace::Namespace;
pub use nginx::{Nginx, Replica, ReplicaSpec};
pub use partition::{Cut, Partition};
pub use podman::Podman;
pub use probe::{Load, Ping, only, shares, within};
pub use process::{Background, Outcome};
pub use queries::{Asked, Queries, Tally};
pub use resolved::{STUB_CONF, resolved};
pub use site_etcd::{SiteEtcd, SiteTls};
pub use syns::Syns;
pub use visits::{Killed, Visit, VisitCount, Visits};
pub use wrk::{Reuse, Wrk, WrkCount, Wrks};
