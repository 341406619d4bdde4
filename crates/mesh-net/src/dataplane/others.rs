//! Published ports that somebody else has on this host: they are his, as long as the kernel does not lead them elsewhere
//! already. Who joins a cluster with an SSH server on port 22 keeps it, whatever is published there; what was forwarded
//! before goes on, though somebody may have taken the port while no daemon held it.

use super::DataPlane;
use crate::{error::Result, firewall, kernel::Kernel, ports::HostPort};
use mesh_model::{NodeId, Snapshot};
use std::{collections::BTreeSet, sync::Arc};

/// Ports of others.
#[derive(Default)]
pub(super) struct Others {
    /// Published, but not to be had.
    taken: BTreeSet<HostPort>,
    /// Those of them that are not forwarded.
    left: BTreeSet<HostPort>,
    /// What was published when the last pass was done; the kernel knows what was before the first.
    before: Option<Arc<Snapshot>>,
}

impl DataPlane {
    /// Tells which published ports somebody else has, for the passes to come.
    pub fn leave_to_others(&mut self, taken: BTreeSet<HostPort>) {
        self.others.taken = taken;
    }
}

impl Others {
    /// Decides what is not to be forwarded now; whether that is something else than before.
    pub(super) fn follow(&mut self, kernel: &mut Kernel, me: NodeId) -> Result<bool> {
        let mut left = BTreeSet::new();
        for port in &self.taken {
            let is_forwarded = match &self.before {
                _ if self.left.contains(port) => false,
                Some(before) => is_published(before, me, *port),
                None => firewall::leads_elsewhere(kernel, *port)?,
            };
            if !is_forwarded {
                left.insert(*port);
            }
        }
        let differs = left != self.left;
        self.left = left;
        Ok(differs)
    }

    /// A pass came to its end.
    pub(super) fn done(&mut self, snapshot: &Arc<Snapshot>) {
        self.before = Some(Arc::clone(snapshot));
    }

    pub(super) fn left(&self) -> &BTreeSet<HostPort> {
        &self.left
    }
}

/// Whether a service is published there on this node.
fn is_published(snapshot: &Snapshot, me: NodeId, port: HostPort) -> bool {
    let services = snapshot.services.values();
    services
        .flat_map(|service| snapshot.published_on(service, me))
        .any(|published| HostPort::from(published) == port)
}
