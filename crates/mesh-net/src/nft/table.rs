//! What a table holds: chains of rules, and sets and maps of elements.

use std::collections::BTreeMap;

use super::batch::can_be_patched;
use super::datum::{Data, Datum, Type};
use super::rule::{Rule, Verdict};

/// The protocol family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Frames on a bridge.
    Bridge,
}

impl Family {
    /// The family's name in nft's syntax.
    pub fn name(self) -> &'static str {
        match self {
            Family::Ip => "ip",
            Family::Ip6 => "ip6",
            Family::Bridge => "bridge",
        }
    }

    /// `NFPROTO_*`.
    pub(super) fn number(self) -> u8 {
        match self {
            Family::Ip => 2,
            Family::Bridge => 7,
            Family::Ip6 => 10,
        }
    }
}

/// A whole table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Table {
    /// Its family; a table is known by family and name.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Its chains by name.
    pub chains: BTreeMap<String, Chain>,
    /// Its named sets and maps by name.
    pub sets: BTreeMap<String, Set>,
}

impl Table {
    /// An empty table.
    pub fn new(family: Family, name: &str) -> Self {
        Table { family, name: name.to_owned(), chains: BTreeMap::new(), sets: BTreeMap::new() }
    }

    /// What this table has of what some records make of it: of `before`, as they were, and `after`, as they are. Both are
    /// all of its base chains and sets, but of the other chains and of the elements only some. None if it takes more than
    /// a change of these to get there.
    ///
    /// A shared chain that is not in `after` is left out, as other records may lead to it.
    pub fn part(&self, before: &Table, after: &Table) -> Option<Table> {
        let going = before.chains.iter().filter(|(_, chain)| !chain.shared).map(|(name, _)| name);
        let chains = after.chains.keys().chain(going).filter_map(|name| self.chains.get_key_value(name));
        let chains = chains.map(|(name, chain)| (name.clone(), chain.clone())).collect();
        let elements = |name: &String, set: &Set| {
            let keys = [before, after].into_iter().filter_map(|part| part.sets.get(name));
            let found =
                keys.flat_map(|set| set.elements.keys()).filter_map(|key| set.elements.get_key_value(key));
            found.map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        let sets = self
            .sets
            .iter()
            .map(|(name, set)| (name.clone(), Set { elements: elements(name, set), ..set.clone_empty() }));
        let part = Table { family: self.family, name: self.name.clone(), chains, sets: sets.collect() };
        (part.sets.keys().eq(after.sets.keys()) && can_be_patched(&part, after)).then_some(part)
    }

    /// Adds a chain that a hook enters.
    pub fn hook(&mut self, name: &str, base: Base, rules: Vec<Rule>) {
        self.chains.insert(name.to_owned(), Chain { base: Some(base), rules, shared: false });
    }

    /// Adds a chain that is entered by `jump` or `goto` only.
    pub fn chain(&mut self, name: &str, rules: Vec<Rule>) {
        self.chains.insert(name.to_owned(), Chain { base: None, rules, shared: false });
    }

    /// Adds one that several records lead to.
    pub fn shared_chain(&mut self, name: &str, rules: Vec<Rule>) {
        self.chains.insert(name.to_owned(), Chain { base: None, rules, shared: true });
    }

    /// Adds a named set or map.
    pub fn set(&mut self, name: &str, set: Set) {
        self.sets.insert(name.to_owned(), set);
    }
}

/// A chain and its rules in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Chain {
    /// Where the kernel enters it, if it does.
    pub base: Option<Base>,
    /// Its rules.
    pub rules: Vec<Rule>,
    /// Whether elements that are made of different records may lead here: it does not go with one of them.
    pub shared: bool,
}

/// How a base chain is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Base {
    /// The chain's type.
    pub kind: ChainKind,
    /// The hook.
    pub hook: Hook,
    /// Order among chains at the hook: lower goes first.
    pub priority: i32,
    /// What happens to packets that reach its end.
    pub policy: Policy,
}

impl Base {
    /// A chain that accepts what reaches its end.
    pub fn new(kind: ChainKind, hook: Hook, priority: i32) -> Self {
        Base { kind, hook, priority, policy: Policy::Accept }
    }
}

/// The type of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChainKind {
    /// Every packet.
    Filter,
    /// The first packet of a connection.
    Nat,
}

impl ChainKind {
    /// The type's name, as the kernel and nft have it.
    pub fn name(self) -> &'static str {
        match self {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
        }
    }
}

/// A netfilter hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Packets that came in, before routing.
    Prerouting,
    /// Packets for this host.
    Input,
    /// Packets passing through.
    Forward,
    /// Packets made by this host.
    Output,
    /// Packets about to leave.
    Postrouting,
}

impl Hook {
    /// The hook's name in nft's syntax.
    pub fn name(self) -> &'static str {
        match self {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        }
    }

    /// `NF_INET_*`, the same as `NF_BR_*`.
    pub(super) fn number(self) -> u32 {
        match self {
            Hook::Prerouting => 0,
            Hook::Input => 1,
            Hook::Forward => 2,
            Hook::Output => 3,
            Hook::Postrouting => 4,
        }
    }
}

/// The policy of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Let pass.
    Accept,
    /// Drop.
    Drop,
}

/// A set, a map or a verdict map.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Set {
    /// The type of its keys, part by part.
    pub key: Vec<Type>,
    /// What an element holds beside its key.
    pub kind: SetKind,
    /// What each element has of its own, if anything.
    pub each: Option<PerElement>,
    /// Its elements.
    pub elements: BTreeMap<Data, Value>,
}

/// What each element of a set has for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PerElement {
    /// A limit: a look-up finds only those that are above it (`limit rate over`).
    Above(Limit),
    /// A counter of the look-ups that found it.
    Counter,
}

/// A limit of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limit {
    /// Packets a second.
    pub rate: u64,
    /// Packets that may come at once after a pause.
    pub burst: u32,
}

/// What the elements of a [`Set`] hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SetKind {
    /// Nothing: a plain set.
    Plain,
    /// Data of this type: a map.
    Map(Vec<Type>),
    /// A verdict: a verdict map.
    Verdicts,
}

/// What one element holds; it has to match the [`SetKind`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// Nothing beside the key.
    Member,
    /// Data.
    Data(Data),
    /// A verdict.
    Verdict(Verdict),
}

impl Set {
    fn new(key: &[Type], kind: SetKind) -> Self {
        Set { key: key.to_vec(), kind, each: None, elements: BTreeMap::new() }
    }

    /// The same without elements.
    fn clone_empty(&self) -> Self {
        Set { each: self.each, ..Self::new(&self.key, self.kind.clone()) }
    }

    /// An empty set that has only those of its elements that are above a limit, each its own.
    pub fn above(key: &[Type], limit: Limit) -> Self {
        Set { each: Some(PerElement::Above(limit)), ..Self::new(key, SetKind::Plain) }
    }

    /// An empty set that counts, element by element, what is found in it ([`Nft::counts`](super::Nft::counts)).
    pub fn counted(key: &[Type]) -> Self {
        Set { each: Some(PerElement::Counter), ..Self::new(key, SetKind::Plain) }
    }

    /// An empty set.
    pub fn plain(key: &[Type]) -> Self {
        Self::new(key, SetKind::Plain)
    }

    /// An empty map.
    pub fn map(key: &[Type], data: &[Type]) -> Self {
        Self::new(key, SetKind::Map(data.to_vec()))
    }

    /// An empty verdict map.
    pub fn verdicts(key: &[Type]) -> Self {
        Self::new(key, SetKind::Verdicts)
    }

    /// A map from 0, 1, 2… to `slots`, all of one type: what follows `numgen … mod N map`.
    pub fn slots(slots: impl IntoIterator<Item = Data>) -> Self {
        let elements: BTreeMap<Data, Value> =
            (0u32..).zip(slots).map(|(slot, data)| (vec![Datum::Number(slot)], Value::Data(data))).collect();
        let data = match elements.values().next() {
            Some(Value::Data(data)) => data.iter().map(Datum::kind).collect(),
            _ => Vec::new(),
        };
        Set { elements, ..Self::new(&[Type::Slot], SetKind::Map(data)) }
    }

    /// Adds a key to a plain set.
    pub fn add(&mut self, key: Data) {
        self.elements.insert(key, Value::Member);
    }

    /// Adds an element to a map.
    pub fn insert(&mut self, key: Data, data: Data) {
        self.elements.insert(key, Value::Data(data));
    }

    /// Adds an element to a verdict map.
    pub fn insert_verdict(&mut self, key: Data, verdict: Verdict) {
        self.elements.insert(key, Value::Verdict(verdict));
    }

    /// Whether both have the same key and data types, so that one can become the other by its
    /// elements alone.
    pub fn same_shape(&self, other: &Set) -> bool {
        self.key == other.key && self.kind == other.kind && self.each == other.each
    }
}
