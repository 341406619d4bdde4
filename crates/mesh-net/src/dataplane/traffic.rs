//! What went through this node's published ports.

use super::DataPlane;
use crate::{
    error::Result,
    firewall::failed,
    nft::{Count, Family},
    object::Space,
    rules::{COUNTED, HOST_TABLE, key_of},
};
use mesh_model::Transport;
use std::{collections::BTreeMap, net::IpAddr};

/// A replica, as published ports lead to it.
pub type Led = (Transport, u16, IpAddr);

/// What went to one replica by the published ports of one of its own, and came back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Connections and flows that were led there.
    pub connections: u64,
    /// What clients sent.
    pub sent: Count,
    /// What they were sent.
    pub received: Count,
}

impl DataPlane {
    /// What was counted by transport, port and address of the replicas, since each became one or the rules were written as a
    /// whole: that is so when a daemon starts. Blocks, like [`DataPlane::reconcile`].
    ///
    /// # Errors
    /// Netlink is out of reach.
    pub fn traffic(&mut self) -> Result<BTreeMap<Led, Traffic>> {
        let mut traffic: BTreeMap<Led, Traffic> = BTreeMap::new();
        let nft = self.kernel.nft(Space::Host)?;
        for family in [Family::Ip, Family::Ip6] {
            let [connections, sent, received] =
                COUNTED.map(|set| nft.counts(family, HOST_TABLE, set).map_err(|e| failed(Space::Host, e)));
            let keyed = |counts: Vec<(Vec<u8>, Count)>| {
                counts.into_iter().filter_map(|(key, count)| Some((key_of(&key)?, count)))
            };
            for (led, count) in keyed(connections?) {
                traffic.entry(led).or_default().connections += count.packets;
            }
            for (led, count) in keyed(sent?) {
                traffic.entry(led).or_default().sent += count;
            }
            for (led, count) in keyed(received?) {
                traffic.entry(led).or_default().received += count;
            }
        }
        Ok(traffic)
    }
}
