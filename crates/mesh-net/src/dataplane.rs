//! The data plane as meshd runs it: one pass compares what should be with what is, and applies the difference.

use crate::{
    actual::{self, Unread},
    apply::{Patience, apply},
    crowds::Crowds,
    desired::{Attachment, Desired, Facts, Owner, desired, uplink},
    docker_user::DockerUser,
    error::{Error, Result},
    firewall::Firewall,
    host::{self, Closed},
    kernel::Kernel,
    nft::Table,
    object::{Ifname, Objects, Space},
    partings::Partings,
    plan::{Work, plan, plan_part, record},
    rules::{Local, Rules},
    scope::Scope,
    source_rules::SourceRules,
    targets,
};
use mesh_model::{Endpoint, EndpointId, NetworkId, Node, NodeId, Snapshot};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    num::NonZeroU32,
    path::PathBuf,
    sync::Arc,
};

mod extent;
mod inspect;
mod others;
mod sight;
mod traffic;

use extent::Extent;
pub use inspect::{Difference, Inspection};
use others::Others;
use sight::Sight;
pub use traffic::{Led, Traffic};

/// Where the data plane works.
#[derive(Debug, Clone)]
pub struct Config {
    /// Holds the overlay namespaces (`netns/<network ID>`) and what must outlive the daemon, but not a reboot.
    pub run_dir: PathBuf,
    /// This node.
    pub me: NodeId,
    /// Queries a second that each address may ask a name server here, if they are limited.
    pub queries: Option<NonZeroU32>,
}

/// How far a pass goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Compares with what earlier passes did: for a change of the cluster's state.
    Changed,
    /// Reads the kernel anew: repairs what somebody else changed. The first pass always does.
    Full,
}

/// What a pass came to.
#[derive(Debug, Default)]
pub struct Report {
    /// What could not be done, and for whom. What is left out of one pass is tried again by the next.
    pub failures: Vec<Failure>,
    /// Endpoints on this node whose target is gone, or is another one now: their records should go.
    pub vanished: Vec<EndpointId>,
    /// Which addresses of this node's endpoints datagrams reach with the gateway's address for the sender's, of each whose
    /// target could be looked at.
    pub source_nat: BTreeMap<EndpointId, Vec<IpAddr>>,
    /// Kernel objects made, changed or deleted.
    pub steps: usize,
    /// Spaces whose nftables were written. A daemon's first pass writes all of them, as they are at best.
    pub firewalls: usize,
    /// Networks of which everything was read that the kernel holds.
    pub overlays_read: usize,
    /// The pass ended early, with the last of the failures: what it had not come to is not done, whoever it is for.
    pub ended_early: bool,
}

/// One failure of a pass.
#[derive(Debug)]
pub struct Failure {
    /// Who it concerns.
    pub owner: Owner,
    /// What went wrong.
    pub error: Error,
}

/// The data plane of one node. Kernel state outlives it: nothing is taken down when it is dropped, and another one
/// with the same run directory adopts what is there.
pub struct DataPlane {
    config: Config,
    kernel: Kernel,
    firewall: Firewall,
    docker_user: DockerUser,
    /// The uplinks that it was last asked to let pass.
    docker_uplinks: BTreeSet<Ifname>,
    /// What the kernel holds, unless the last pass left doubts.
    remembered: Option<Remembered>,
    patience: Patience,
    partings: Partings,
    /// Networks that failed in the last pass.
    unready: BTreeSet<NetworkId>,
    crowds: Crowds,
    others: Others,
    source_rules: SourceRules,
    full_passes: u32,
    confirmed: bool,
}

struct Remembered {
    /// What it was brought to.
    snapshot: Arc<Snapshot>,
    /// Whether there are networks on this node.
    has_networks: bool,
    objects: Objects,
    /// What the underlay leaves to overlays.
    room: u32,
    targets: BTreeMap<EndpointId, targets::Attached>,
    facts: Facts,
}

/// The rules of the records that a pass looks at: as they are, and as they were, if those are not all.
struct Views<'a> {
    before: Option<Rules<'a>>,
    now: Rules<'a>,
}

/// What was made of the records that a pass looks at, when it was last brought to them.
struct Earlier {
    snapshot: Arc<Snapshot>,
    /// Whether there were networks on this node, and so still are.
    has_networks: bool,
    /// What was known of targets.
    attachments: BTreeMap<EndpointId, Attachment>,
    desired: Desired,
}

impl Remembered {
    /// All that is held, and what of it was made of the records in a scope.
    fn of(self, me: &Node, scope: &Scope) -> (Objects, Option<Earlier>) {
        let desired = desired(&self.snapshot, me, &self.facts, scope);
        let Self { snapshot, has_networks, objects, facts, .. } = self;
        (objects, Some(Earlier { snapshot, has_networks, attachments: facts.attachments, desired }))
    }
}

impl DataPlane {
    /// Opens the data plane of the calling thread's network namespace, which counts as the host's.
    ///
    /// # Errors
    /// The run directory can't be made, or netlink is out of reach.
    pub fn new(config: Config) -> Result<Self> {
        fs::create_dir_all(&config.run_dir)
            .map_err(|source| Error::File { path: config.run_dir.clone(), source })?;
        let kernel = Kernel::open(config.run_dir.clone())?;
        Ok(Self {
            config,
            kernel,
            firewall: Firewall::default(),
            docker_user: DockerUser::default(),
            docker_uplinks: BTreeSet::new(),
            remembered: None,
            patience: Patience::default(),
            partings: Partings::default(),
            confirmed: true,
            unready: BTreeSet::new(),
            crowds: Crowds::default(),
            others: Others::default(),
            source_rules: SourceRules::default(),
            full_passes: 0,
        })
    }

    /// Tells whether a manager stands by the snapshots to come, as it does unless told otherwise. One of the disk may lack the
    /// last moment before a daemon ended: connections are not forgotten for that.
    pub fn confirm(&mut self, confirmed: bool) {
        self.confirmed = confirmed;
    }

    /// Brings the kernel to what the snapshot says. Blocks: run it on a thread of its own, in the host's namespace.
    pub fn reconcile(&mut self, snapshot: &Arc<Snapshot>, pass: Pass) -> Report {
        let mut report = Report::default();
        if let Err(error) = self.pass(snapshot, pass, &mut report) {
            report.fail(Owner::Host, error);
            report.ended_early = true;
        }
        // What was half done is read, not guessed. What is wrong with the underlay is nothing half done.
        if report.failures.iter().any(|failure| !matches!(failure.error, Error::NarrowUnderlay { .. })) {
            self.remembered = None;
        }
        report
    }

    /// Does what follows a pass and nobody waits for: new connections no longer go to backends that left, and what is left of
    /// old ones can go. Blocks, like [`DataPlane::reconcile`].
    pub fn settle(&mut self) {
        self.partings.settle(&mut self.kernel, &self.unready);
    }

    /// Takes everything of the mesh out of the kernel: for a node that leaves its cluster.
    pub fn clear(&mut self) -> Report {
        let mut report = Report::default();
        self.remembered = None;
        let nothing = Desired::default();
        match actual::read(&mut self.kernel, &Snapshot::default(), &nothing, &mut Unread::new()) {
            Ok(mut objects) => {
                drop(self.build_networks(&plan(&objects.clone(), &nothing), &mut objects, &mut report))
            }
            Err(error) => report.fail(Owner::Host, error),
        }
        let run_dir = &self.config.run_dir;
        // The doors are opened again only when the host no longer forwards.
        let stopped =
            self.kernel.within(Space::Host, || Closed::load(run_dir, false)?.stop_forwarding(run_dir));
        let outcome = stopped.and_then(|stopped| stopped.unwrap_or(Ok(())));
        report.note(Owner::Host, self.docker_user.ensure(&mut self.kernel, &BTreeSet::new()));
        report.note(Owner::Host, outcome.and_then(|()| self.firewall.clear(&mut self.kernel)));
        report
    }

    fn pass(&mut self, snapshot: &Arc<Snapshot>, pass: Pass, report: &mut Report) -> Result<()> {
        let me = snapshot.nodes.get(&self.config.me);
        let me = me.ok_or_else(|| Error::Incomplete(format!("this node ({})", self.config.me)))?;
        let Sight {
            extent,
            room,
            targets,
            known,
            facts,
            changed,
            scope,
            desired,
            mut objects,
            earlier,
            unread,
            overlays_read,
        } = self.look(snapshot, me, pass, report)?;
        report.overlays_read = overlays_read;
        let unread = unread.into_iter().map(|(id, error)| {
            report.fail(Owner::Endpoint(id), error);
            id
        });
        let unread: BTreeSet<EndpointId> = unread.collect();
        let has_networks = earlier.as_ref().map_or(!desired.parts.is_empty(), |earlier| earlier.has_networks);
        if room < facts.mtu && has_networks {
            report.fail(Owner::Host, Error::NarrowUnderlay { room, least: facts.mtu });
        }
        let mut all_differ = pass == Pass::Full && self.crowds.look(&mut self.kernel, snapshot, me.id);
        all_differ |= self.others.follow(&mut self.kernel, me.id)?;
        all_differ |= self.source_rules.changed();
        // Rules are made of what changed. What others did to them, nftables' generation tells.
        let of_rules = if all_differ { &Scope::All } else { &changed };
        let local = Local {
            limited: self.crowds.limited(),
            queries: self.config.queries,
            others: self.others.left().clone(),
            routes_by_source: self.source_rules.any(),
            attachments: BTreeMap::new(),
        };
        let rules = |snapshot, attachments: &BTreeMap<_, _>| {
            let local = Local { attachments: attachments.clone(), ..local.clone() };
            Rules::of(snapshot, me, of_rules).with(local)
        };
        let before = earlier.as_ref().filter(|_| !all_differ);
        let before = before.map(|earlier| rules(&earlier.snapshot, &earlier.attachments));
        let rules = Views { before, now: rules(snapshot, &facts.attachments) };
        report.firewalls += usize::from(self.host_firewall(&rules, has_networks, pass)?);
        if earlier.is_none() || pass == Pass::Full {
            self.pass_docker(snapshot, &desired, pass, report);
        }
        let mut works = match &earlier {
            Some(earlier) => {
                plan_part(&objects, &earlier.desired, &desired, |space| extent.has_read_all(space))
            }
            None => plan(&objects, &desired),
        };
        works.retain(|work| {
            !unread.iter().any(|id| work.owner == Owner::Endpoint(*id) && work.needs_target())
        });
        let (endpoints, networks): (Vec<Work>, Vec<Work>) =
            works.into_iter().partition(|work| matches!(work.owner, Owner::Endpoint(_)));
        let mut failed = self.build_networks(&networks, &mut objects, report);
        self.overlay_firewalls(&rules, snapshot, &desired, pass, &mut failed, report);
        self.partings.follow(&mut self.kernel, me.id, (snapshot, self.confirmed), &scope);
        self.unready = failed.keys().copied().collect();
        // Endpoints that are no longer wanted may leave a rule behind in a target that goes on.
        let endpoint =
            |id| snapshot.endpoints.get(&id).or_else(|| known.get(&id).map(|target| &target.endpoint));
        self.attach_endpoints(&endpoints, endpoint, &failed, &mut objects, report);
        if known.keys().any(|id| !targets.contains_key(id)) || earlier.is_none() {
            objects.retain(|(space, _), _| match space {
                Space::Target(endpoint) => targets.contains_key(endpoint),
                Space::Host | Space::Overlay(_) => true,
            });
        }
        self.others.done(snapshot);
        report.source_nat = targets.values().map(targets::Attached::source_nat).collect();
        let snapshot = Arc::clone(snapshot);
        self.remembered = Some(Remembered { snapshot, has_networks, objects, room, targets, facts });
        Ok(())
    }

    /// Closes the host to what forwarding would open it for, and only then turns that on.
    fn host_firewall(&mut self, rules: &Views, forwards: bool, pass: Pass) -> Result<bool> {
        let run_dir = &self.config.run_dir;
        let in_host = |kernel: &Kernel| kernel.within(Space::Host, || Closed::load(run_dir, forwards));
        let closed = in_host(&self.kernel)?.unwrap_or_else(|| Ok(Closed::default()))?;
        let tables = |rules: &Rules| {
            let [ipv4, ipv6] = rules.host(&closed.ipv4);
            let [_, ipv6] =
                if closed.ipv4 == closed.ipv6 { [ipv4.clone(), ipv6] } else { rules.host(&closed.ipv6) };
            vec![ipv4, ipv6]
        };
        let wrote = self.write_tables(Space::Host, rules, tables, pass)?;
        if forwards {
            self.kernel.within(Space::Host, host::forward)?.unwrap_or(Ok(()))?;
        }
        Ok(wrote)
    }

    /// Whether anything had to be written.
    fn write_tables(
        &mut self,
        space: Space,
        rules: &Views,
        tables: impl Fn(&Rules) -> Vec<Table>,
        pass: Pass,
    ) -> Result<bool> {
        let Views { before: Some(before), now } = rules else {
            return self.firewall.ensure(&mut self.kernel, space, tables(&rules.now), pass);
        };
        if pass == Pass::Full && !self.firewall.holds(&mut self.kernel, space)? {
            return self.firewall.ensure(&mut self.kernel, space, tables(&now.whole()), pass);
        }
        match self.firewall.amend(&mut self.kernel, space, [&tables(before), &tables(now)])? {
            Some(wrote) => Ok(wrote),
            None => self.firewall.ensure(&mut self.kernel, space, tables(&now.whole()), pass),
        }
    }

    /// Where Docker drops what the host forwards, networks are let pass. That may change at any time, and is looked at on
    /// full passes only.
    fn pass_docker(&mut self, snapshot: &Snapshot, desired: &Desired, pass: Pass, report: &mut Report) {
        let on_node = desired.networks().filter_map(|id| snapshot.networks.get(&id));
        let uplinks: BTreeSet<Ifname> = on_node.map(|network| uplink(network.vni)).collect();
        if pass == Pass::Full || uplinks != self.docker_uplinks {
            report.note(Owner::Host, self.docker_user.ensure(&mut self.kernel, &uplinks));
            self.docker_uplinks = uplinks;
        }
    }

    /// Clears what is in the way and builds networks; those that failed, and why.
    fn build_networks(&mut self, works: &[Work], objects: &mut Objects, report: &mut Report) -> Failed {
        let mut failed = Failed::new();
        for work in works {
            let outcome = self.carry_out(work, objects, report);
            if let (Err(error), Owner::Network(network)) = (&outcome, work.owner) {
                failed.insert(network, error.to_string());
            }
            report.note(work.owner, outcome);
        }
        failed
    }

    fn overlay_firewalls(
        &mut self,
        rules: &Views,
        snapshot: &Snapshot,
        desired: &Desired,
        pass: Pass,
        failed: &mut Failed,
        report: &mut Report,
    ) {
        let on_node = desired.networks().filter_map(|id| snapshot.networks.get(&id));
        for network in on_node {
            if failed.contains_key(&network.id) {
                continue;
            }
            let tables = |rules: &Rules| rules.overlay(network).into();
            let outcome = self.write_tables(Space::Overlay(network.id), rules, tables, pass);
            match &outcome {
                Ok(wrote) => report.firewalls += usize::from(*wrote),
                Err(error) => drop(failed.insert(network.id, error.to_string())),
            }
            report.note(Owner::Network(network.id), outcome.map(drop));
        }
        let kernel = &self.kernel;
        self.firewall.retain(|space| kernel.is_open(space));
    }

    fn attach_endpoints<'a>(
        &mut self,
        works: &[Work],
        endpoint: impl Fn(EndpointId) -> Option<&'a Arc<Endpoint>>,
        failed: &Failed,
        objects: &mut Objects,
        report: &mut Report,
    ) {
        for work in works {
            let Owner::Endpoint(id) = work.owner else { continue };
            let outcome = match endpoint(id) {
                Some(endpoint) => self.attach(work, endpoint, failed, objects, report),
                None => self.carry_out(work, objects, report),
            };
            report.note(work.owner, outcome);
        }
    }

    fn attach(
        &mut self,
        work: &Work,
        endpoint: &Endpoint,
        failed: &Failed,
        objects: &mut Objects,
        report: &mut Report,
    ) -> Result<()> {
        if let Some(why) = failed.get(&endpoint.network) {
            return Err(Error::NetworkNotReady(why.clone()));
        }
        if endpoint.is_staged() {
            return self.carry_out(work, objects, report);
        }
        let opened = targets::open(&mut self.kernel, endpoint);
        if work.needs_target() {
            opened?;
        } // Else a target that is gone holds nothing that would have to be deleted.
        let outcome = self.carry_out(work, objects, report);
        self.kernel.close_target(endpoint.id);
        outcome.map_err(|error| match error {
            // The kernel knows no targets: what it says of one is said with the user's word for it.
            Error::IfnameTaken { ifname, .. } => {
                Error::IfnameTaken { ifname, target: endpoint.target.to_string() }
            }
            other => other,
        })
    }

    fn carry_out(&mut self, work: &Work, objects: &mut Objects, report: &mut Report) -> Result<()> {
        report.steps += work.steps.len();
        apply(&mut self.kernel, work, &mut self.patience)?;
        work.steps.iter().for_each(|step| record(step, objects));
        Ok(())
    }
}

/// Networks that failed in a pass, and why.
type Failed = BTreeMap<NetworkId, String>;

impl Report {
    fn note(&mut self, owner: Owner, outcome: Result<()>) {
        if let Err(error) = outcome {
            self.fail(owner, error);
        }
    }

    fn fail(&mut self, owner: Owner, error: Error) {
        self.failures.push(Failure { owner, error });
    }
}
