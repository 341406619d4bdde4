//! Networks that fail between hosts: packets that are dropped, the partitions that this makes, and cables that are pulled.

use anyhow::Result;

use crate::host::Host;

/// The nftables table that drops. meshd knows nothing of it.
const TABLE: &str = "inet partition";

/// Hosts that don't hear each other. Whoever is heard by nobody may hear others all the same: real failures are often
/// one-way. Heals when dropped.
#[derive(Debug)]
pub struct Partition {
    deaf: Vec<Host>,
}

impl Partition {
    /// Makes the first of each pair deaf to the second: everything from its addresses is dropped, of any protocol.
    pub fn new<'a>(pairs: impl IntoIterator<Item = (&'a Host, &'a Host)>) -> Result<Self> {
        let mut partition = Self { deaf: Vec::new() };
        for (deaf, silenced) in pairs {
            let (ip, ip6) = (silenced.ip(), silenced.ip6());
            // Before connection tracking, so that what is known already is dropped like what is new.
            let rules = format!(
                "add table {TABLE}
                 add chain {TABLE} input {{ type filter hook prerouting priority -500; }}
                 add rule {TABLE} input ip saddr {ip} drop
                 add rule {TABLE} input ip6 saddr {ip6} drop"
            );
            partition.deaf.push(deaf.clone());
            deaf.output(&["nft", &rules]).ok()?;
        }
        Ok(partition)
    }

    /// Cuts `isolated` off from `others`, both ways.
    pub fn isolate(isolated: &Host, others: &[&Host]) -> Result<Self> {
        Self::new(others.iter().flat_map(|other| [(isolated, *other), (*other, isolated)]))
    }

    /// Everyone hears everyone again.
    pub fn heal(mut self) -> Result<()> {
        self.deaf.drain(..).try_for_each(|host| host.output(&["nft", &removal()]).ok().map(drop))
    }
}

/// Removes the table, whether or not it is there.
fn removal() -> String {
    format!("add table {TABLE}; delete table {TABLE}")
}

impl Drop for Partition {
    fn drop(&mut self) {
        for host in &self.deaf {
            // The lab is gone, or it fails for the same reason that the test does.
            let _ = host.output(&["nft", &removal()]);
        }
    }
}

/// A host whose port at the LAN's switch is down: to all others it is as dead as without power. Returns when dropped.
#[derive(Debug)]
pub struct Cut(Host);

impl Cut {
    pub(crate) fn new(host: &Host) -> Result<Self> {
        let cut = Self(host.clone());
        cut.port("down")?;
        Ok(cut)
    }

    /// It is there again.
    pub fn heal(self) -> Result<()> {
        self.port("up")
    }

    fn port(&self, state: &str) -> Result<()> {
        self.0.switch().output(&["ip", "link", "set", self.0.name(), state]).ok().map(drop)
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        // The lab is gone, or it is up already.
        let _ = self.port("up");
    }
}
