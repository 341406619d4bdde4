//! Carries steps out: one netlink batch for each run of steps in one space, and nothing half made left behind.

use crate::{
    desired::{MAIN_TABLE, Owner},
    error::{Error, Result},
    kernel::Kernel,
    netlink::{Place, Refused, Request, add_pair, change_link, delete, make, turn_switches},
    object::{Ifname, LinkKind, NextHop, Object, Space},
    plan::{Step, Work},
    sysctl,
};
use mesh_model::Snapshot;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

/// The kernel's link watch gathers events for up to a second. A pass waits no longer for all that it did.
const SETTLE: Duration = Duration::from_secs(1);
/// How often it is asked again; both take less than a millisecond on an idle machine.
const SETTLE_POLL: Duration = Duration::from_millis(1);

/// The time that a pass has for what the kernel completes by itself. A container can keep its link or its IPv6 down: it is
/// waited for once, not in each pass that mends it.
#[derive(Default)]
pub(crate) struct Patience {
    left: Duration,
    in_vain: BTreeSet<Owner>,
}

impl Patience {
    /// For a new pass.
    pub(crate) fn renew(&mut self, snapshot: &Snapshot) {
        self.left = SETTLE;
        self.in_vain
            .retain(|owner| matches!(owner, Owner::Endpoint(id) if snapshot.endpoints.contains_key(id)));
    }

    /// Waits until something holds for an owner, or there is no time left.
    pub(crate) fn wait(&mut self, owner: Owner, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        if self.in_vain.contains(&owner) {
            return Ok(());
        }
        let started = Instant::now();
        while !holds()? {
            if started.elapsed() >= self.left {
                self.in_vain.insert(owner);
                break;
            }
            thread::sleep(SETTLE_POLL);
        }
        self.left = self.left.saturating_sub(started.elapsed());
        Ok(())
    }
}

/// Carries out the steps of one owner, up to the first run of steps that fails. What was made anew for that owner is
/// taken away again then; what was there before is left as it is.
pub(crate) fn apply(kernel: &mut Kernel, work: &Work, patience: &mut Patience) -> Result<()> {
    let mut pass = Pass { kernel, indexes: BTreeMap::new() };
    let mut done = Vec::new();
    let outcome = pass.run(&work.steps, &mut done);
    if outcome.is_err() && is_new(work.owner, &done) {
        let undo: Vec<Step> = done.iter().rev().filter_map(|step| opposite(step)).collect();
        // One at a time: what can't be undone must not keep the rest from it.
        for step in undo {
            let _ = pass.run(&[step], &mut Vec::new());
        }
    }
    if outcome.is_ok() {
        settle(pass.kernel, work.owner, &done, patience)?;
    }
    outcome
}

/// Waits for what the kernel completes by itself a moment later. Until a new carrier is noticed by the link watch, a
/// bridge port is closed; until an IPv6 address has passed the address worker, packets to it are not delivered. Either
/// loses the first packet, and what is lost first (ARP, neighbour discovery) is repeated after a second only.
fn settle(kernel: &mut Kernel, owner: Owner, done: &[&Step], patience: &mut Patience) -> Result<()> {
    for step in done {
        match step {
            // Nobody has brought the other end up yet.
            Step::MakePair([_, (Space::Host, ..)]) => {}
            Step::MakePair(ends) => {
                for (space, name, _) in ends {
                    patience.wait(owner, || kernel.is_operational(*space, *name))?;
                }
            }
            Step::Make(space, Object::Address(_, address)) if address.is_ipv6() => {
                patience.wait(owner, || kernel.is_local(*space, address.ip()))?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether the owner's own principal object was made in this pass.
fn is_new(owner: Owner, done: &[&Step]) -> bool {
    done.iter().any(|step| match owner {
        Owner::Host => false,
        Owner::Network(_) => matches!(step, Step::Make(_, Object::Namespace)),
        Owner::Endpoint(_) => matches!(step, Step::MakePair(_)),
    })
}

fn opposite(step: &Step) -> Option<Step> {
    match step {
        Step::MakePair([(space, name, link), _]) => Some(Step::Delete(*space, Object::Link(*name, *link))),
        Step::Make(space, object @ (Object::Namespace | Object::Link(..) | Object::Rule(..))) => {
            Some(Step::Delete(*space, object.clone()))
        }
        // The rest goes with its link.
        _ => None,
    }
}

/// How a step is carried out. Steps in a row that are alike go together.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Means {
    /// The namespace is made or removed.
    Namespace,
    /// Sysctls are written inside a space.
    Sysctl(Space),
    /// Links are made, by the socket of a space.
    Birth(Space),
    /// All else, by the socket of a space.
    Netlink(Space),
}

fn means(step: &Step) -> Means {
    match step {
        Step::MakePair([(space, ..), _]) => Means::Birth(*space),
        Step::Make(_, Object::Namespace)
        | Step::Change(_, Object::Namespace)
        | Step::Delete(_, Object::Namespace) => Means::Namespace,
        Step::Make(space, object) | Step::Change(space, object) if sysctl::path(object).is_some() => {
            Means::Sysctl(*space)
        }
        // Born from the host's namespace, where its UDP socket is to stay.
        Step::Make(_, Object::Link(_, link)) if matches!(link.kind, LinkKind::Vxlan { .. }) => {
            Means::Birth(Space::Host)
        }
        Step::Make(space, Object::Link(..)) => Means::Birth(*space),
        Step::Make(space, _) | Step::Change(space, _) | Step::Delete(space, _) => Means::Netlink(*space),
    }
}

struct Pass<'k> {
    kernel: &'k mut Kernel,
    /// Link indexes found in this pass.
    indexes: BTreeMap<(Space, Ifname), Option<u32>>,
}

impl Pass<'_> {
    fn run<'s>(&mut self, steps: &'s [Step], done: &mut Vec<&'s Step>) -> Result<()> {
        for run in steps.chunk_by(|a, b| means(a) == means(b)) {
            match means(&run[0]) {
                Means::Namespace => self.namespaces(run, done)?,
                Means::Sysctl(space) => self.sysctls(space, run, done)?,
                Means::Birth(socket) | Means::Netlink(socket) => self.netlink(socket, run, done)?,
            }
        }
        Ok(())
    }

    fn namespaces<'s>(&mut self, run: &'s [Step], done: &mut Vec<&'s Step>) -> Result<()> {
        for step in run {
            match step {
                Step::Make(Space::Overlay(network), _) => self.kernel.create_overlay(*network)?,
                Step::Delete(Space::Overlay(network), _) => self.kernel.remove_overlay(*network)?,
                _ => {}
            }
            done.push(step);
        }
        Ok(())
    }

    fn sysctls<'s>(&mut self, space: Space, run: &'s [Step], done: &mut Vec<&'s Step>) -> Result<()> {
        let set_all = || {
            for step in run {
                if let Step::Make(_, object) | Step::Change(_, object) = step {
                    sysctl::set(object)?;
                }
            }
            Ok(())
        };
        self.kernel.within(space, set_all)?.unwrap_or(Ok(()))?;
        done.extend(run);
        Ok(())
    }

    fn netlink<'s>(&mut self, socket: Space, run: &'s [Step], done: &mut Vec<&'s Step>) -> Result<()> {
        let mut requests = Vec::new();
        let mut asked = Vec::new();
        for step in run {
            match self.request(step)? {
                Some(request) => {
                    requests.push(request);
                    asked.push(step);
                }
                None => done.push(step),
            }
        }
        if requests.is_empty() {
            return Ok(());
        }
        let answers = self.kernel.netlink(socket)?.batch(&requests)?;
        let mut outcome = Ok(());
        for (step, answer) in asked.into_iter().zip(answers) {
            match answer {
                Ok(()) => done.push(step),
                Err(refused) if matches!(step, Step::Delete(..)) && refused.is_absent() => done.push(step),
                Err(refused) if is_served(step, &refused) => done.push(step),
                Err(refused) if outcome.is_ok() => outcome = Err(explain(step, refused)),
                Err(_) => {}
            }
        }
        self.indexes.clear();
        outcome
    }

    /// The request for a step; nothing if there is nothing (left) to ask for.
    fn request(&mut self, step: &Step) -> Result<Option<Request>> {
        Ok(match step {
            Step::MakePair([near, far]) => {
                let far_in = self.kernel.namespace(far.0)?;
                Some(add_pair((near.1, &near.2), (far.1, &far.2), far_in))
            }
            Step::Make(space, object @ Object::Link(_, link))
                if matches!(link.kind, LinkKind::Vxlan { .. }) =>
            {
                let place = Place::In(self.kernel.namespace(*space)?);
                make(object, 0, None, false, place)
            }
            Step::Make(_, object @ Object::Link(..)) => make(object, 0, None, false, Place::Here),
            Step::Change(space, Object::Link(name, link)) => {
                let known = self.kernel.link(*space, *name)?;
                if let Some((index, _)) = known.as_ref().filter(|(_, known)| !known.link.switches) {
                    // What else has changed is the next full pass's.
                    return Ok(Some(turn_switches(*index, link)));
                }
                let same_mac = known.is_some_and(|(_, known)| known.link.mac == link.mac);
                Some(change_link(self.existing_index(*space, *name)?, link, !same_mac))
            }
            Step::Make(space, object) => self.make(*space, object, false)?,
            Step::Change(space, object) => self.make(*space, object, true)?,
            Step::Delete(space, object) => self.delete(*space, object)?,
        })
    }

    fn make(&mut self, space: Space, object: &Object, replace: bool) -> Result<Option<Request>> {
        let index = match object.link() {
            Some(link) => self.existing_index(space, link)?,
            None => 0,
        };
        let bridge = match object {
            Object::Up(_, Some(bridge)) => Some(self.existing_index(space, *bridge)?),
            _ => None,
        };
        Ok(make(object, index, bridge, replace, Place::Here))
    }

    fn delete(&mut self, space: Space, object: &Object) -> Result<Option<Request>> {
        if !self.kernel.is_open(space) {
            return Ok(None);
        }
        Ok(match object.link() {
            Some(link) => self.index(space, link)?.and_then(|index| delete(object, index)),
            None => delete(object, 0),
        })
    }

    fn existing_index(&mut self, space: Space, link: Ifname) -> Result<u32> {
        self.index(space, link)?.ok_or_else(|| Error::Netlink {
            doing: format!("finding interface {link}"),
            source: std::io::Error::from_raw_os_error(libc::ENODEV),
            detail: String::new(),
            hint: ": it vanished while it was being set up, the next pass makes it anew",
        })
    }

    fn index(&mut self, space: Space, link: Ifname) -> Result<Option<u32>> {
        if let Some(known) = self.indexes.get(&(space, link)) {
            return Ok(*known);
        }
        let index = self.kernel.index(space, link)?;
        self.indexes.insert((space, link), index);
        Ok(index)
    }
}

/// A container that has a route of its own to its subnet needs none of ours, and is no failure.
fn is_served(step: &Step, refused: &Refused) -> bool {
    let is_connected = |table: u32, hop: &NextHop| table == MAIN_TABLE && hop.via.is_none();
    refused.source.raw_os_error() == Some(libc::EEXIST)
        && matches!(step, Step::Make(Space::Target(_), Object::Route(table, _, hop)) if is_connected(*table, hop))
}

fn explain(step: &Step, refused: Refused) -> Error {
    let errno = refused.source.raw_os_error();
    if let (Step::MakePair([_, (Space::Target(_), name, _)]), Some(libc::EEXIST)) = (step, errno) {
        return Error::IfnameTaken { ifname: name.to_string(), target: "the target".into() };
    }
    let hint = match (errno, step) {
        (Some(libc::EPERM), _) => ": run meshd as root (CAP_NET_ADMIN and CAP_SYS_ADMIN)",
        (Some(libc::EOPNOTSUPP), Step::Make(_, Object::Link(..)) | Step::MakePair(_)) => {
            ": the kernel lacks this kind of link (modules vxlan, bridge, veth)"
        }
        (Some(libc::EEXIST), Step::Make(_, Object::Link(..))) => {
            ": another VXLAN device of this host has this VNI and UDP port: remove it, or give the network another VNI"
        }
        (Some(libc::EEXIST), Step::Make(Space::Host, Object::Route(..))) => {
            ": this host has a route to that subnet already: remove it, or give the network another subnet"
        }
        // The socket of a VXLAN device is opened when the device goes up.
        (Some(libc::EADDRINUSE), Step::Make(_, Object::Up(..))) => {
            ": something on this host has the UDP port of VXLAN: stop it ('ss -ulnp' shows it), or form the cluster with another --data-path-port"
        }
        (Some(libc::EEXIST), Step::MakePair(_)) => ": the host has an interface of that name: rename it",
        _ => "",
    };
    let detail = refused.text.map(|text| format!(" ({text})")).unwrap_or_default();
    Error::Netlink { doing: describe(step), source: refused.source, detail, hint }
}

fn describe(step: &Step) -> String {
    match step {
        Step::MakePair([(_, near, _), (_, far, _)]) => format!("creating the veth pair {near} - {far}"),
        Step::Make(_, object) => format!("creating {}", text(object)),
        Step::Change(_, object) => format!("changing {}", text(object)),
        Step::Delete(_, object) => format!("deleting {}", text(object)),
    }
}

/// An object in words.
pub(crate) fn text(object: &Object) -> String {
    match object {
        Object::Namespace => "the namespace".into(),
        Object::Sysctl(path, value) => format!("{path}={value}"),
        Object::LinkSysctl(directory, link, name, value) => format!("{directory}/{link}/{name}={value}"),
        Object::Link(name, link) => match link.kind {
            LinkKind::Vxlan { vni, port, .. } => format!("VXLAN device {name} (VNI {vni}, UDP port {port})"),
            _ => format!("interface {name}"),
        },
        Object::Up(link, None) => format!("interface {link} in state up"),
        Object::Up(link, Some(bridge)) => format!("port {link} of bridge {bridge}"),
        Object::Port(port, ..) => format!("the mode of bridge port {port}"),
        Object::Station(port, _, mac) => format!("entry {mac} behind bridge port {port}"),
        Object::Address(link, address) => format!("address {address} on {link}"),
        Object::Fdb(link, mac, vtep) => format!("forwarding entry {mac} via {vtep} on {link}"),
        Object::Neighbour(link, address, mac) => format!("neighbour {address} at {mac} on {link}"),
        Object::Route(table, to, hop) => {
            let via = hop.via.map(|via: IpAddr| format!(" via {via}")).unwrap_or_default();
            format!("route {to}{via} dev {} table {table}", hop.link)
        }
        Object::Rule(selector, table) => format!("rule {selector:?} table {table}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_model::{EndpointId, NetworkId};

    #[test]
    fn a_pass_waits_a_second_in_all_and_for_nobody_twice_in_vain() {
        let [one, two] = [1, 2].map(|id| Owner::Endpoint(EndpointId::from_bits(id)));
        let mut patience = Patience { left: SETTLE_POLL * 20, ..Patience::default() };
        let looks = |patience: &mut Patience, owner, holds_at: u32| {
            let mut looks = 0;
            let holds = || {
                looks += 1;
                Ok(looks >= holds_at)
            };
            patience.wait(owner, holds).expect("it can be looked at");
            looks
        };
        assert_eq!(looks(&mut patience, two, 3), 3);
        assert!(looks(&mut patience, one, u32::MAX) > 1);
        assert_eq!(patience.left, Duration::ZERO);
        assert_eq!(looks(&mut patience, Owner::Network(NetworkId::from_bits(1)), u32::MAX), 1);
        patience.left = SETTLE;
        assert_eq!(looks(&mut patience, one, 3), 0);
        assert_eq!(looks(&mut patience, two, 3), 3);
        // Who is gone is forgotten.
        patience.renew(&Snapshot::default());
        assert_eq!(looks(&mut patience, one, 3), 3);
    }
}
