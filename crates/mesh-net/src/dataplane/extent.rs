//! How much of the kernel a pass reads: what nobody touched is as it was.

use super::{DataPlane, Pass, Remembered};
use crate::{desired::Facts, error::Result, object::Space, scope::Scope};
use mesh_model::{NetworkId, NodeId, Snapshot};
use std::collections::BTreeSet;

/// Every so many full passes everything is read, in case that the kernel did not tell of something.
const THOROUGH: u32 = 20;

/// What a pass reads.
pub(super) enum Extent {
    /// Nothing but interfaces that engines have fetched.
    Arrivals,
    /// The host, targets, settings, and the overlays in which something has changed.
    Changed(BTreeSet<NetworkId>),
    /// Everything.
    All,
}

impl Extent {
    /// Whether all that a space holds was read, and is made of the records that are looked at.
    pub(super) fn has_read_all(&self, space: Space) -> bool {
        match (self, space) {
            (Self::All, _) | (Self::Changed(_), Space::Host | Space::Target(_)) => true,
            (Self::Changed(overlays), Space::Overlay(network)) => overlays.contains(&network),
            (Self::Arrivals, _) => false,
        }
    }

    /// The records that changed, if it is only those and the ones of what is read that have to be looked at.
    pub(super) fn changed(&self, me: NodeId, before: &Remembered, now: (&Snapshot, &Facts)) -> Scope {
        match self {
            Self::All => Scope::All,
            Self::Arrivals | Self::Changed(_) => Scope::of_pass(me, (&before.snapshot, &before.facts), now),
        }
    }

    /// The records to look at: those that changed, and those of what is read.
    pub(super) fn scope(&self, me: NodeId, changed: Scope, states: [&Snapshot; 2]) -> Scope {
        match self {
            Self::All | Self::Arrivals => changed,
            Self::Changed(overlays) => changed.with_overlays(me, states, overlays),
        }
    }
}

impl DataPlane {
    /// What a pass has to read.
    pub(super) fn extent(&mut self, pass: Pass, before: Option<&Remembered>) -> Result<Extent> {
        let Some(before) = before else { return Ok(Extent::All) };
        if pass == Pass::Changed {
            return Ok(Extent::Arrivals);
        }
        self.full_passes = self.full_passes.wrapping_add(1);
        let kept = self.kernel.open_overlays()?;
        let changed = self.kernel.changed_overlays();
        let is_all = changed == kept || kept != before.snapshot.networks_on(self.config.me);
        Ok(if is_all || self.full_passes.is_multiple_of(THOROUGH) {
            Extent::All
        } else {
            Extent::Changed(changed)
        })
    }
}
