//! What a pass finds: what there is, and what should be.

use super::{DataPlane, Earlier, Extent, Pass, Remembered, Report};
use crate::{
    actual::{self, Unread},
    desired::{Attachment, Desired, Facts, desired, staged},
    error::Result,
    host::{self, MTU_MIN},
    object::{Name, Objects, Space},
    scope::Scope,
    targets,
};
use mesh_model::{Endpoint, EndpointId, Node, Snapshot};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What a pass finds.
pub(super) struct Sight {
    pub(super) extent: Extent,
    pub(super) room: u32,
    pub(super) targets: BTreeMap<EndpointId, targets::Attached>,
    /// Those of the pass before, if they still count.
    pub(super) known: BTreeMap<EndpointId, targets::Attached>,
    pub(super) facts: Facts,
    /// The records that changed.
    pub(super) changed: Scope,
    /// Those, and the ones of what was read.
    pub(super) scope: Scope,
    pub(super) desired: Desired,
    pub(super) objects: Objects,
    pub(super) earlier: Option<Earlier>,
    pub(super) unread: Unread,
    pub(super) overlays_read: usize,
}

impl DataPlane {
    /// Finds out what there is and what should be.
    pub(super) fn look(
        &mut self,
        snapshot: &Arc<Snapshot>,
        me: &Node,
        pass: Pass,
        report: &mut Report,
    ) -> Result<Sight> {
        let remembered = self.remembered.take();
        let extent = self.extent(pass, remembered.as_ref())?;
        let kept = remembered.as_ref().filter(|_| pass == Pass::Changed);
        let room = match kept {
            Some(remembered) => remembered.room,
            None => self.room_for_overlays(snapshot, me)?,
        };
        self.patience.renew(snapshot);
        // What others made of the routes in a target meanwhile is seen on full passes.
        let known = kept.map(|remembered| remembered.targets.clone()).unwrap_or_default();
        let (targets, mut unread) = self.find_targets(snapshot, &known, report);
        let facts = Facts {
            mtu: room.max(MTU_MIN),
            attachments: attachments(&targets, &unread, remembered.as_ref().map(|before| &before.facts)),
            staged: self.staged(snapshot),
            routes_by_source: self.source_rules.look(&mut self.kernel, pass == Pass::Full)?,
        };
        let changed = match &remembered {
            Some(before) if unread.is_empty() => extent.changed(me.id, before, (snapshot, &facts)),
            _ => Scope::All,
        };
        let states = [remembered.as_ref().map_or(snapshot, |before| &before.snapshot), snapshot];
        let scope = extent.scope(me.id, changed.clone(), states.map(|state| &**state));
        let desired = desired(snapshot, me, &facts, &scope);
        let (mut objects, earlier) = match remembered {
            Some(before) if scope != Scope::All => before.of(me, &scope),
            Some(before) if pass == Pass::Changed => {
                (self.arrivals(snapshot, &desired, before, &mut unread)?, None)
            }
            _ => (actual::read(&mut self.kernel, snapshot, &desired, &mut unread)?, None),
        };
        let mut overlays_read = if pass == Pass::Full { self.kernel.overlays() } else { 0 };
        if let (Some(_), Extent::Changed(overlays)) = (&earlier, &extent) {
            actual::reread(&mut self.kernel, snapshot, &desired, overlays, &mut objects, &mut unread)?;
            overlays_read = overlays.len();
        }
        Ok(Sight {
            changed,
            extent,
            room,
            targets,
            known,
            facts,
            scope,
            desired,
            objects,
            earlier,
            unread,
            overlays_read,
        })
    }

    /// This node's endpoints that wait for their containers.
    pub(super) fn staged(&self, snapshot: &Snapshot) -> BTreeSet<EndpointId> {
        let own = snapshot.endpoints.values().filter(|endpoint| endpoint.node == self.config.me);
        own.filter(|endpoint| endpoint.is_staged()).map(|endpoint| endpoint.id).collect()
    }

    /// What the kernel holds, with the interfaces that containers' engines have fetched since the last pass: those are
    /// where nobody here has put them.
    fn arrivals(
        &mut self,
        snapshot: &Snapshot,
        desired: &Desired,
        before: Remembered,
        unread: &mut Unread,
    ) -> Result<Objects> {
        let mut objects = before.objects;
        for part in &desired.parts {
            let [(overlay, port), (Space::Target(id), _)] = part.pair else { continue };
            if before.facts.staged.contains(&id) {
                objects.remove(&(Space::Host, Name::Link(staged(id))));
                actual::attached(&mut self.kernel, snapshot, part, id, &mut objects, unread);
                let kernel = &mut self.kernel;
                self.patience.wait(part.owner, || kernel.is_operational(overlay, port))?;
            }
        }
        actual::leave_unread(desired, unread, &mut objects);
        Ok(objects)
    }

    pub(super) fn room_for_overlays(&mut self, snapshot: &Snapshot, me: &Node) -> Result<u32> {
        let others = snapshot.nodes.values().filter(|node| node.id != me.id);
        host::room_for_overlays(&mut self.kernel, me.advertise.ip(), others.map(|node| node.advertise.ip()))
    }

    /// This node's endpoints whose targets are there, with the routes decided for each, and those that can't be looked at.
    pub(super) fn find_targets(
        &mut self,
        snapshot: &Snapshot,
        known: &BTreeMap<EndpointId, targets::Attached>,
        report: &mut Report,
    ) -> (BTreeMap<EndpointId, targets::Attached>, Unread) {
        let mut unread = Unread::new();
        let mut by_inode: BTreeMap<u64, Vec<&Arc<Endpoint>>> = BTreeMap::new();
        let own = snapshot.endpoints.values().filter(|endpoint| endpoint.node == self.config.me);
        for endpoint in own.filter(|endpoint| !endpoint.is_staged()) {
            match targets::check(endpoint) {
                Ok(namespace) => by_inode.entry(namespace.inode()).or_default().push(endpoint),
                Err(error) if targets::says_vanished(&error) => report.vanished.push(endpoint.id),
                Err(error) => drop(unread.insert(endpoint.id, error)),
            }
        }
        let mut found = BTreeMap::new();
        for endpoints in by_inode.into_values() {
            match targets::decide_routes(&mut self.kernel, &endpoints, snapshot, known) {
                Ok(group) => found.extend(group.into_iter().map(|attached| (attached.endpoint.id, attached))),
                Err(error) => {
                    let each =
                        endpoints.iter().map(|endpoint| (endpoint.id, targets::unread(endpoint, &error)));
                    unread.extend(each);
                }
            }
        }
        (found, unread)
    }
}

/// What was decided for each endpoint. Those that can't be looked at are left as they are: what was known of them still is.
pub(super) fn attachments(
    targets: &BTreeMap<EndpointId, targets::Attached>,
    unread: &Unread,
    before: Option<&Facts>,
) -> BTreeMap<EndpointId, Attachment> {
    let decided = targets.iter().map(|(id, target)| (*id, target.routes));
    let known = |id| before.and_then(|before| before.attachments.get(id)).copied().unwrap_or_default();
    unread.keys().map(|id| (*id, known(id))).chain(decided).collect()
}
