//! A look at what the kernel holds, without changing it.

use super::{DataPlane, Report, sight::attachments};
use crate::{
    actual,
    apply::text,
    desired::{Desired, Facts, Owner, desired},
    error::{Error, Result},
    host::MTU_MIN,
    object::{Object, Space},
    plan::{Step, plan},
    scope::Scope,
};
use mesh_model::Snapshot;

/// What the kernel holds, compared with what it should hold.
#[derive(Debug, Default)]
pub struct Inspection {
    /// MTU in bytes of overlays that have none of their own: what the underlay leaves, and 1280 at least.
    pub mtu: u32,
    /// What is not as it should be.
    pub differences: Vec<Difference>,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// Whose it is.
    pub owner: Owner,
    /// What it is, and whether it is missing, changed or should not be there.
    pub text: String,
}

impl DataPlane {
    /// Compares the kernel with a snapshot that was applied before. Changes nothing. Blocks, like
    /// [`DataPlane::reconcile`].
    ///
    /// # Errors
    /// The kernel can't be read, or the snapshot lacks this node.
    pub fn inspect(&mut self, snapshot: &Snapshot) -> Result<Inspection> {
        let me = snapshot.nodes.get(&self.config.me);
        let me = me.ok_or_else(|| Error::Incomplete(format!("this node ({})", self.config.me)))?;
        let mtu = self.room_for_overlays(snapshot, me)?.max(MTU_MIN);
        let known = self.remembered.as_ref().map(|remembered| remembered.targets.clone()).unwrap_or_default();
        // Targets that are gone are the next pass's business.
        let (targets, mut unread) = self.find_targets(snapshot, &known, &mut Report::default());
        let attachments =
            attachments(&targets, &unread, self.remembered.as_ref().map(|before| &before.facts));
        let (staged, routes_by_source) = (self.staged(snapshot), self.source_rules.any());
        let facts = Facts { mtu, attachments, staged, routes_by_source };
        let desired = desired(snapshot, me, &facts, &Scope::All);
        let actual = actual::read(&mut self.kernel, snapshot, &desired, &mut unread)?;
        let mut differences: Vec<Difference> = plan(&actual, &desired)
            .iter()
            .flat_map(|work| work.steps.iter().map(|step| Difference { owner: work.owner, text: said(step) }))
            .collect();
        differences.extend(self.changed_firewalls(&desired)?);
        Ok(Inspection { mtu, differences })
    }

    fn changed_firewalls(&mut self, desired: &Desired) -> Result<Vec<Difference>> {
        let networks = desired.networks().map(|network| (Space::Overlay(network), Owner::Network(network)));
        let spaces: Vec<(Space, Owner)> =
            std::iter::once((Space::Host, Owner::Host)).chain(networks).collect();
        let mut found = Vec::new();
        for (space, owner) in spaces {
            // A namespace that is missing is told already.
            if self.kernel.is_open(space) && self.firewall.differs(&mut self.kernel, space)? {
                let text = "the nftables tables of the mesh were changed by somebody else".to_owned();
                found.push(Difference { owner, text });
            }
        }
        Ok(found)
    }
}

/// What a step would mend.
fn said(step: &Step) -> String {
    match step {
        Step::MakePair([(_, near, _), (_, far, _)]) => format!("veth pair {near} - {far} is missing"),
        Step::Make(_, object @ (Object::Sysctl(..) | Object::LinkSysctl(..))) => {
            format!("the setting {} does not hold", text(object))
        }
        Step::Make(_, object) => format!("{} is missing", text(object)),
        Step::Change(_, object) => format!("{} is not as it should be", text(object)),
        Step::Delete(_, object) => format!("{} should not be there", text(object)),
    }
}
