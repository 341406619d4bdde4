//! Whether frames with addresses of overlays are on the LAN, outside VXLAN.

use anyhow::{Result, ensure};

use crate::lab::Lab;

/// A look at every frame that comes to the LAN's switch. What VXLAN carries has the hosts' addresses on the outside.
#[derive(Debug)]
pub struct Leaks<'a> {
    lab: &'a Lab,
}

impl<'a> Leaks<'a> {
    /// Watches for these prefixes of either family from now on. Once a lab.
    ///
    /// # Errors
    /// nftables can't be changed where the switch is.
    pub fn watch(lab: &'a Lab, overlays: &[&str]) -> Result<Self> {
        let (v6, v4): (Vec<&str>, Vec<&str>) = overlays.iter().partition(|prefix| prefix.contains(':'));
        let found = |set: &str, of: &str, from: &str, to: &str, overlays: Vec<&str>| {
            let overlays = overlays.join(", ");
            let of_either = [from, to].map(|end| format!("{end} {{ {overlays} }} add @{set} {{ {of} }};"));
            if overlays.is_empty() { String::new() } else { of_either.concat() }
        };
        let rules = [
            found("packets", PACKETS, "ip saddr", "ip daddr", v4.clone()),
            found("questions", QUESTIONS, "arp saddr ip", "arp daddr ip", v4),
            found("packets6", PACKETS6, "ip6 saddr", "ip6 daddr", v6),
        ];
        let sets = [("packets", PACKETS), ("questions", QUESTIONS), ("packets6", PACKETS6)];
        let sets = sets.map(|(set, of)| format!("set {set} {{ typeof {of}; flags dynamic; size 256; }};"));
        let chain = format!(
            "chain frames {{ type filter hook prerouting priority 0; policy accept; {} }};",
            rules.concat()
        );
        lab.switch(&format!("nft 'table bridge leaks {{ {} {chain} }}'", sets.concat()))?;
        Ok(Self { lab })
    }

    /// Fails if there were any, and says which.
    ///
    /// # Errors
    /// There were some, or nftables can't be read.
    pub fn none(&self) -> Result<()> {
        let found = self.lab.on_switch("nft list table bridge leaks | grep -A 9 elements || true")?;
        ensure!(found.is_empty(), "on the LAN outside VXLAN:\n{found}");
        Ok(())
    }
}

const PACKETS: &str = "ip saddr . ip daddr . meta l4proto";
const PACKETS6: &str = "ip6 saddr . ip6 daddr . meta l4proto";
const QUESTIONS: &str = "arp saddr ip . arp daddr ip";
