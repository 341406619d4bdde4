//! What can go wrong between meshd and nf_tables.

use std::io;

/// An error of the nftables layer.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The netlink socket could not be opened or used.
    #[error("netfilter netlink socket: {0} (meshd needs CAP_NET_ADMIN and a kernel with nf_tables)")]
    Socket(#[from] io::Error),
    /// The kernel refused an object; nothing of the batch was applied.
    #[error("the kernel refused nft {object}: {source}{hint}")]
    Refused {
        /// The first object that was refused, for example `chain ip meshd port_tcp_80`.
        object: String,
        /// The kernel's error number.
        source: io::Error,
        /// The kernel's own words (extended ACK), with a separator in front, or nothing.
        hint: String,
    },
    /// The kernel sent neither an error nor the acknowledgement asked for.
    #[error("the kernel did not acknowledge an nft batch of {0} messages")]
    Unanswered(usize),
    /// A dump changed while it was read, each time it was tried.
    #[error("nft dump was interrupted by other changes {0} times")]
    Interrupted(u32),
}
