//! What can go wrong in the data plane, in words that say what to do.

use std::{io, net::IpAddr, path::PathBuf};

/// A failure of the data plane. Each names the object concerned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A target's namespace does not exist (any more).
    #[error("target {target} is gone: there is no network namespace at {path}")]
    TargetGone {
        /// The target, as the user writes it.
        target: String,
        /// Where its namespace should be.
        path: PathBuf,
    },
    /// A path that is there but is no network namespace.
    #[error("{path} is no network namespace: give the path of one (see 'ip netns', 'lsns -t net')")]
    NotANamespace {
        /// The path.
        path: PathBuf,
    },
    /// A target that is the host itself.
    #[error(
        "target {target} is the host's own network namespace: start the container or process with a network namespace of its own"
    )]
    HostNamespace {
        /// The target, as the user writes it.
        target: String,
    },
    /// A target that is there could not be looked at.
    #[error("target {target} can't be looked at now and is left as it is: {why}")]
    TargetUnread {
        /// The target, as the user writes it.
        target: String,
        /// What went wrong.
        why: String,
    },
    /// The interface name is used by something else in the target.
    #[error("interface {ifname} exists already in {target}: choose another name with --ifname")]
    IfnameTaken {
        /// The interface.
        ifname: String,
        /// The target, as the user writes it.
        target: String,
    },
    /// An interface name that the kernel would refuse.
    #[error("'{0}' is no interface name: 1 to 15 characters without '/', ':' or white space are expected")]
    BadIfname(String),
    /// An endpoint on a network that this node failed to build.
    #[error("its network failed on this node: {0}")]
    NetworkNotReady(String),
    /// The snapshot does not hold what it refers to.
    #[error("the cluster state lacks {0}: the agent is out of date, wait for the next snapshot")]
    Incomplete(String),
    /// The kernel refused a netlink request.
    #[error("{doing}: {source}{detail}{hint}")]
    Netlink {
        /// What was asked, with the object's name.
        doing: String,
        /// The error number.
        source: io::Error,
        /// What the kernel added (NLMSGERR_ATTR_MSG), in parentheses, or nothing.
        detail: String,
        /// What to do, or nothing.
        hint: &'static str,
    },
    /// A netlink socket failed.
    #[error("netlink: {0}")]
    Socket(#[source] io::Error),
    /// A sysctl could not be read or written.
    #[error("setting {name}={value}: {source}{hint}")]
    Sysctl {
        /// Its name, as `sysctl` writes it.
        name: String,
        /// The value wanted.
        value: String,
        /// What the kernel said.
        source: io::Error,
        /// What to do, or nothing.
        hint: &'static str,
    },
    /// Making, entering or removing a network namespace failed.
    #[error("{doing} {path}: {source}")]
    Namespace {
        /// What was tried.
        doing: &'static str,
        /// The namespace's file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file of the run directory failed.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The node's underlay address is on none of the host's interfaces.
    #[error(
        "no interface of this host has the advertise address {0}: is the interface down? (see 'ip address')"
    )]
    NoUnderlay(IpAddr),
    /// The underlay takes less than overlays need.
    #[error(
        "the underlay leaves {room} bytes to a packet, and networks need {least}: longer ones are cut in two or lost, raise the MTU of the interfaces and routes between the nodes by {}",
        least - room
    )]
    NarrowUnderlay {
        /// What it leaves, in bytes.
        room: u32,
        /// What is needed, in bytes.
        least: u32,
    },
    /// Changing the firewall failed.
    #[error("firewall of {place}: {source}")]
    Firewall {
        /// Which namespace.
        place: String,
        /// What nftables said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The host's own program for Docker's chain failed.
    #[error("'{command}', which lets Docker's firewall pass networks, failed: {why}")]
    Iptables {
        /// The command.
        command: String,
        /// What it said.
        why: String,
    },
}

/// What this crate's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;
