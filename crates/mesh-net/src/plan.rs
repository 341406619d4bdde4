//! The steps that lead from what the kernel holds to what it should hold. Pure.

use crate::{
    desired::{Desired, Owner, PairEnd, Part},
    object::{Ifname, Key, Link, Name, Object, Objects, Space},
};
use std::collections::{BTreeMap, BTreeSet};

/// One change to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make what is not there.
    Make(Space, Object),
    /// Make a veth pair, the second end from the first.
    MakePair([(Space, Ifname, Link); 2]),
    /// Give what is there its new content.
    Change(Space, Object),
    /// Delete what is there. A link takes along what lives on it, a namespace everything in it.
    Delete(Space, Object),
}

/// The steps of one owner, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// Who they are for.
    pub owner: Owner,
    /// The steps.
    pub steps: Vec<Step>,
}

impl Work {
    /// Whether something is made or changed in a target.
    pub fn needs_target(&self) -> bool {
        self.steps.iter().any(|step| match step {
            Step::MakePair(ends) => ends.iter().any(|(space, ..)| matches!(space, Space::Target(_))),
            Step::Make(space, _) | Step::Change(space, _) => matches!(space, Space::Target(_)),
            Step::Delete(..) => false,
        })
    }
}

/// Compares what the kernel holds with what it should hold. Work comes in the order in which it can be done: what is
/// in nobody's way any more is deleted first, then networks, then endpoints. Nothing to do gives nothing.
pub fn plan(actual: &Objects, desired: &Desired) -> Vec<Work> {
    let wanted: BTreeMap<&Key, &Object> = desired.parts.iter().flat_map(|part| part.objects.iter()).collect();
    let gone = Gone::new(actual, desired, &wanted);
    let stranded = stranded(actual, desired);
    let mut steps = deletions(actual, &wanted, &gone, &stranded);
    for part in &desired.parts {
        // What is in an owner's own way is cleared before it is made whole.
        steps.entry(part.owner).or_default().extend(make(part, actual, &gone));
    }
    let works = steps.into_iter().map(|(owner, steps)| Work { owner, steps });
    let mut works: Vec<Work> = works.filter(|work| !work.steps.is_empty()).collect();
    let built: BTreeSet<Owner> = desired.parts.iter().map(|part| part.owner).collect();
    works.sort_by_key(|work| (built.contains(&work.owner), work.owner));
    works
}

/// The same for what some records make: from what they made earlier. What else the kernel holds is left alone, but in spaces
/// that these records make all of.
pub fn plan_part(
    actual: &Objects,
    earlier: &Desired,
    desired: &Desired,
    is_whole: impl Fn(Space) -> bool,
) -> Vec<Work> {
    let parts = earlier.parts.iter().chain(&desired.parts);
    let mut held = actual.at(parts.map(|part| &part.objects));
    let whole = actual.iter().filter(|((space, _), _)| is_whole(*space));
    whole.for_each(|((space, _), object)| held.put(*space, object.clone()));
    plan(&held, desired)
}

/// Spaces and links that are deleted, and all that lives on them with them.
struct Gone {
    spaces: BTreeSet<Space>,
    links: BTreeSet<PairEnd>,
}

impl Gone {
    fn new(actual: &Objects, desired: &Desired, wanted: &BTreeMap<&Key, &Object>) -> Self {
        let (mut spaces, mut links) = (BTreeSet::new(), BTreeSet::new());
        for (key, object) in actual.iter() {
            match (object, wanted.get(key)) {
                (Object::Namespace, None) => drop(spaces.insert(key.0)),
                (Object::Link(name, link), wish) => {
                    let fits = matches!(wish, Some(Object::Link(_, wish)) if wish.kind == link.kind);
                    if !fits {
                        links.insert((key.0, *name));
                    }
                }
                _ => {}
            }
        }
        // Half a pair is no pair: what is left of it goes, and both ends are made anew. So do ends with other MAC
        // addresses, which are of two pairs.
        for part in &desired.parts {
            let whole = part.pair.iter().all(|(space, name)| {
                let key = (*space, Name::Link(*name));
                let mac = |objects: &Objects| match objects.get(&key) {
                    Some(Object::Link(_, link)) => Some(link.mac),
                    _ => None,
                };
                mac(actual).is_some()
                    && mac(actual) == mac(&part.objects)
                    && !links.contains(&(*space, *name))
            });
            if !whole {
                links.extend(part.pair);
            }
        }
        Self { spaces, links }
    }

    /// Whether an object vanishes with its link or its namespace, or loses the bridge it is a port of.
    fn takes(&self, space: Space, object: &Object) -> bool {
        let gone = |link: Ifname| self.links.contains(&(space, link));
        self.spaces.contains(&space) || object.link().is_some_and(gone) || object.bridge().is_some_and(gone)
    }
}

/// What is there and should not be, owner by owner.
fn deletions(
    actual: &Objects,
    wanted: &BTreeMap<&Key, &Object>,
    gone: &Gone,
    stranded: &BTreeSet<PairEnd>,
) -> BTreeMap<Owner, Vec<Step>> {
    let mut by_owner: BTreeMap<Owner, Vec<Step>> = BTreeMap::new();
    for (key, object) in actual.iter() {
        let space = key.0;
        let delete = match object {
            Object::Link(name, _) => gone.links.contains(&(space, *name)),
            Object::Namespace => gone.spaces.contains(&space),
            _ => !wanted.contains_key(key) && !gone.takes(space, object),
        };
        let is_stranded = matches!(object, Object::Link(name, _) if stranded.contains(&(space, *name)));
        if delete && (is_stranded || is_deletable(space, object)) {
            by_owner.entry(owner_of(space)).or_default().push(Step::Delete(space, object.clone()));
        }
    }
    for steps in by_owner.values_mut() {
        // Rules before the routes that they lead to, links before their namespace.
        steps.reverse();
    }
    by_owner
}

/// Ends of pairs in targets whose port is not where it was made: somebody moved it, and it would not take them along.
fn stranded(actual: &Objects, desired: &Desired) -> BTreeSet<PairEnd> {
    let is_there = |(space, name): &PairEnd| actual.contains(&(*space, Name::Link(*name)));
    let pairs = desired.parts.iter().map(|part| part.pair);
    let half =
        pairs.filter(|[port, end]| matches!(end.0, Space::Target(_)) && !is_there(port) && is_there(end));
    half.map(|[_, end]| end).collect()
}

/// Settings have no absence. The end of a pair in a target goes with its port: by then the name may be somebody else's.
fn is_deletable(space: Space, object: &Object) -> bool {
    match object {
        Object::Sysctl(..) | Object::LinkSysctl(..) | Object::Up(..) | Object::Port(..) => false,
        Object::Link(..) => !matches!(space, Space::Target(_)),
        _ => true,
    }
}

fn owner_of(space: Space) -> Owner {
    match space {
        Space::Host => Owner::Host,
        Space::Overlay(network) => Owner::Network(network),
        Space::Target(endpoint) => Owner::Endpoint(endpoint),
    }
}

/// What a part lacks.
fn make(part: &Part, actual: &Objects, gone: &Gone) -> Vec<Step> {
    let mut steps = Vec::new();
    for (key, object) in part.objects.iter() {
        let space = key.0;
        let found = actual.get(key).filter(|found| !gone.takes(space, found));
        match (object, found) {
            (wish, Some(found)) if wish == found => {}
            (Object::Link(name, _), None) if (space, *name) == part.pair[0] => {
                steps.extend(make_pair(part));
            }
            // Made with its peer.
            (Object::Link(name, _), None) if (space, *name) == part.pair[1] => {}
            (wish, None) => steps.push(Step::Make(space, wish.clone())),
            (wish, Some(_)) => steps.push(Step::Change(space, wish.clone())),
        }
    }
    steps.sort_by_key(stage);
    steps
}

fn make_pair(part: &Part) -> Option<Step> {
    let end = |(space, name): PairEnd| match part.objects.get(&(space, Name::Link(name))) {
        Some(Object::Link(_, link)) => Some((space, name, *link)),
        _ => None,
    };
    Some(Step::MakePair([end(part.pair[0])?, end(part.pair[1])?]))
}

/// Across spaces: namespaces first, then links, then what needs both; in each, the routes to routers after those that
/// routers are reached by.
fn stage(step: &Step) -> (u8, Space, u8) {
    let (space, object) = match step {
        Step::MakePair(ends) => return (3, ends[0].0, 0),
        Step::Make(space, object) | Step::Change(space, object) | Step::Delete(space, object) => {
            (*space, object)
        }
    };
    let stage = match object {
        Object::Namespace => 0,
        Object::Sysctl(..) => 1,
        Object::Link(..) => 2,
        Object::LinkSysctl(..) => 4,
        _ => 5,
    };
    let turn = match object {
        Object::Route(_, _, hop) if hop.via.is_some() => 1,
        Object::Rule(..) => 2,
        _ => 0,
    };
    (stage, space, turn)
}

/// What the kernel holds after a step, if it succeeds: how the data plane keeps track of what it did.
pub fn record(step: &Step, objects: &mut Objects) {
    match step {
        Step::Make(space, object) | Step::Change(space, object) => objects.put(*space, object.clone()),
        Step::MakePair(ends) => {
            for (space, name, link) in ends {
                // An end that went with its peer took along what lived on it.
                objects.remove(&(*space, Name::Link(*name)));
                objects.put(*space, Object::Link(*name, *link));
            }
        }
        Step::Delete(space, object) => objects.remove(&(*space, object.name())),
    }
}

#[cfg(test)]
mod tests;
