//! From two tables to the messages that lead from one to the other.

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST};

use super::attr::{Buffer, Header};
use super::datum::{Data, Type, concatenated_id, concatenated_len};
use super::encode::{self, ANONYMOUS_NAME};
use super::rule::Rule;
use super::table::{Base, Chain, Family, PerElement, Policy, Set, SetKind, Table, Value};
use super::uapi::{BATCH_BEGIN, BATCH_END, SUBSYSTEM, VERDICT_TYPE, message, nfta, set_flag};

/// Elements are sent in messages of about this many bytes: a netlink attribute ends at 64 KiB.
const ELEMENTS_BYTES: usize = 32 * 1024;

/// The batch that turns `current` into `desired`; see [`Batch::update`].
pub fn diff(current: Option<&Table>, desired: &Table) -> Batch {
    let mut batch = Batch::default();
    batch.update(current, desired);
    batch
}

/// Messages to be committed as one transaction.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    buffer: Buffer,
    /// What each message is about; message `n` has sequence number `n + 1`.
    objects: Vec<String>,
    last: usize,
    anonymous_sets: u32,
}

impl Batch {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// The number of messages.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Turns `current`, as it was last committed, into `desired`, of the same family and name.
    ///
    /// Elements of sets and maps are added and removed one by one; a chain whose rules changed is
    /// flushed and filled anew. Without `current`, or when a chain is attached elsewhere or a
    /// set has changed its types, the whole table is replaced, whatever it holds.
    pub fn update(&mut self, current: Option<&Table>, desired: &Table) {
        match current {
            Some(current) if can_be_patched(current, desired) => self.patch(current, desired),
            _ => self.replace(desired),
        }
    }

    /// Turns a part of `current`, as it was last committed, from what [`Table::part`] has of it into `after`, and notes in
    /// `current` what it is then.
    pub fn amend(&mut self, current: &mut Table, part: &Table, after: &Table) {
        self.patch(part, after);
        current.chains.retain(|name, _| !part.chains.contains_key(name) || after.chains.contains_key(name));
        for (name, chain) in after.chains.iter().filter(|(name, chain)| part.chains.get(*name) != Some(chain))
        {
            current.chains.insert(name.clone(), chain.clone());
        }
        for (name, set) in &after.sets {
            let Some(held) = current.sets.get_mut(name) else { continue };
            part.sets[name].elements.keys().for_each(|key| drop(held.elements.remove(key)));
            held.elements.extend(set.elements.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
    }

    /// Removes a table, if it is there.
    pub fn remove(&mut self, family: Family, name: &str) {
        self.add_table(family, name);
        self.push(message::DELTABLE, 0, family, format!("table {} {name}", family.name()), |b| {
            b.text(nfta::TABLE_NAME, name);
        });
    }

    /// All messages between the marks of a transaction, the last with a request for an answer.
    pub(super) fn sealed(&self) -> Buffer {
        let mark = |kind| Header { kind, flags: NLM_F_REQUEST, sequence: 0, family: 0, resource: SUBSYSTEM };
        let mut sealed = Buffer::default();
        sealed.message(mark(BATCH_BEGIN), |_| {});
        let start = sealed.len();
        sealed.extend(&self.buffer);
        sealed.add_flags(start + self.last, NLM_F_ACK);
        sealed.message(mark(BATCH_END), |_| {});
        sealed
    }

    /// What the message with this sequence number is about.
    pub(super) fn object(&self, sequence: u32) -> &str {
        (sequence as usize)
            .checked_sub(1)
            .and_then(|index| self.objects.get(index))
            .map_or("transaction", String::as_str)
    }

    /// Adding a table that exists changes nothing, so that its deletion cannot fail.
    fn replace(&mut self, table: &Table) {
        self.remove(table.family, &table.name);
        self.add_table(table.family, &table.name);
        let empty = Table::new(table.family, &table.name);
        self.patch(&empty, table);
    }

    /// The order keeps every reference whole: what is referred to is there before, and goes after.
    fn patch(&mut self, current: &Table, desired: &Table) {
        let changed: Vec<(&String, &Chain)> =
            desired.chains.iter().filter(|(name, chain)| current.chains.get(*name) != Some(chain)).collect();
        let gone = |name: &String| !desired.chains.contains_key(name);

        for (name, set) in desired.sets.iter().filter(|(name, _)| !current.sets.contains_key(*name)) {
            self.add_set(desired, name, set);
        }
        for (name, chain) in changed.iter().filter(|(name, _)| !current.chains.contains_key(*name)) {
            self.add_chain(desired, name, chain.base);
        }
        for (name, chain) in &current.chains {
            if !chain.rules.is_empty() && (gone(name) || desired.chains.get(name) != Some(chain)) {
                self.flush_chain(desired, name);
            }
        }
        self.patch_elements(current, desired);
        for (name, chain) in &changed {
            for rule in &chain.rules {
                self.add_rule(desired, name, rule);
            }
        }
        for name in current.sets.keys().filter(|name| !desired.sets.contains_key(*name)) {
            self.delete_set(desired, name);
        }
        for name in current.chains.keys().filter(|name| gone(name)) {
            self.delete_chain(desired, name);
        }
    }

    fn patch_elements(&mut self, current: &Table, desired: &Table) {
        let none = Default::default();
        for (name, set) in &current.sets {
            match desired.sets.get(name) {
                Some(after) => {
                    let removed =
                        set.elements.iter().filter(|(key, value)| after.elements.get(*key) != Some(value));
                    self.elements(message::DELSETELEM, desired, name, removed);
                }
                // A verdict map lets go of its chains here; some kernels would do so too late.
                None if !set.elements.is_empty() => self.flush_set(desired, name),
                None => {}
            }
        }
        for (name, set) in &desired.sets {
            let before = current.sets.get(name).map_or(&none, |set| &set.elements);
            let added = set.elements.iter().filter(|(key, value)| before.get(*key) != Some(value));
            self.elements(message::NEWSETELEM, desired, name, added);
        }
    }
}

/// Whether every chain and set that both tables have can stay.
pub(super) fn can_be_patched(current: &Table, desired: &Table) -> bool {
    current.family == desired.family
        && current.name == desired.name
        && current
            .chains
            .iter()
            .all(|(name, chain)| desired.chains.get(name).is_none_or(|after| after.base == chain.base))
        && current
            .sets
            .iter()
            .all(|(name, set)| desired.sets.get(name).is_none_or(|after| after.same_shape(set)))
}

/// Single messages.
impl Batch {
    fn push(
        &mut self,
        kind: u16,
        flags: u16,
        family: Family,
        object: String,
        fill: impl FnOnce(&mut Buffer),
    ) {
        self.objects.push(object);
        let header = Header {
            kind: SUBSYSTEM << 8 | kind,
            flags: NLM_F_REQUEST | flags,
            sequence: self.objects.len() as u32,
            family: family.number(),
            resource: 0,
        };
        self.last = self.buffer.len();
        self.buffer.message(header, fill);
    }

    fn add_table(&mut self, family: Family, name: &str) {
        self.push(message::NEWTABLE, NLM_F_CREATE, family, format!("table {} {name}", family.name()), |b| {
            b.text(nfta::TABLE_NAME, name);
        });
    }

    fn add_chain(&mut self, table: &Table, name: &str, base: Option<Base>) {
        self.push(message::NEWCHAIN, NLM_F_CREATE, table.family, object("chain", table, name), |b| {
            b.text(nfta::CHAIN_TABLE, &table.name);
            b.text(nfta::CHAIN_NAME, name);
            if let Some(base) = base {
                b.nested(nfta::CHAIN_HOOK, |b| {
                    b.number(nfta::HOOK_NUM, base.hook.number());
                    b.attr(nfta::HOOK_PRIORITY, &base.priority.to_be_bytes());
                });
                b.number(nfta::CHAIN_POLICY, u32::from(base.policy == Policy::Accept));
                b.text(nfta::CHAIN_TYPE, base.kind.name());
            }
        });
    }

    fn delete_chain(&mut self, table: &Table, name: &str) {
        self.push(message::DELCHAIN, 0, table.family, object("chain", table, name), |b| {
            b.text(nfta::CHAIN_TABLE, &table.name);
            b.text(nfta::CHAIN_NAME, name);
        });
    }

    fn flush_chain(&mut self, table: &Table, name: &str) {
        self.push(message::DELRULE, 0, table.family, object("chain", table, name), |b| {
            b.text(nfta::RULE_TABLE, &table.name);
            b.text(nfta::RULE_CHAIN, name);
        });
    }

    fn add_rule(&mut self, table: &Table, chain: &str, rule: &Rule) {
        let inline_ids: Vec<u32> = rule.inline_maps().map(|map| self.add_anonymous_set(table, map)).collect();
        let name = format!("rule '{rule}' in chain {} {} {chain}", table.family.name(), table.name);
        self.push(message::NEWRULE, NLM_F_CREATE | NLM_F_APPEND, table.family, name, |b| {
            b.text(nfta::RULE_TABLE, &table.name);
            b.text(nfta::RULE_CHAIN, chain);
            b.nested(nfta::RULE_EXPRESSIONS, |b| encode::expressions(b, table, rule, &inline_ids));
        });
    }

    fn add_set(&mut self, table: &Table, name: &str, set: &Set) {
        self.push(message::NEWSET, NLM_F_CREATE, table.family, object("set", table, name), |b| {
            b.text(nfta::SET_TABLE, &table.name);
            b.text(nfta::SET_NAME, name);
            set_attributes(b, set, 0);
            // Named sets are found by name; the kernel wants a number all the same.
            b.number(nfta::SET_ID, 0);
        });
    }

    /// Adds a rule's own map with its elements; returns the number by which the rule refers to it.
    fn add_anonymous_set(&mut self, table: &Table, set: &Set) -> u32 {
        self.anonymous_sets += 1;
        let id = self.anonymous_sets;
        self.push(message::NEWSET, NLM_F_CREATE, table.family, object("anonymous map", table, ""), |b| {
            b.text(nfta::SET_TABLE, &table.name);
            b.text(nfta::SET_NAME, ANONYMOUS_NAME);
            set_attributes(b, set, set_flag::ANONYMOUS | set_flag::CONSTANT);
            b.number(nfta::SET_ID, id);
            b.nested(nfta::SET_DESC, |b| b.number(nfta::SET_DESC_SIZE, set.elements.len() as u32));
        });
        self.elements_of(message::NEWSETELEM, table, (ANONYMOUS_NAME, Some(id)), set.elements.iter());
        id
    }

    fn delete_set(&mut self, table: &Table, name: &str) {
        self.push(message::DELSET, 0, table.family, object("set", table, name), |b| {
            b.text(nfta::SET_TABLE, &table.name);
            b.text(nfta::SET_NAME, name);
        });
    }

    fn flush_set(&mut self, table: &Table, name: &str) {
        self.push(message::DELSETELEM, 0, table.family, object("elements of set", table, name), |b| {
            b.text(nfta::SET_ELEM_LIST_TABLE, &table.name);
            b.text(nfta::SET_ELEM_LIST_SET, name);
        });
    }

    fn elements<'a>(
        &mut self,
        kind: u16,
        table: &Table,
        name: &str,
        elements: impl Iterator<Item = (&'a Data, &'a Value)>,
    ) {
        self.elements_of(kind, table, (name, None), elements);
    }

    /// Adds or deletes elements, in as many messages as they need.
    fn elements_of<'a>(
        &mut self,
        kind: u16,
        table: &Table,
        (name, id): (&str, Option<u32>),
        elements: impl Iterator<Item = (&'a Data, &'a Value)>,
    ) {
        let flags = if kind == message::NEWSETELEM { NLM_F_CREATE } else { 0 };
        let mut elements = elements.peekable();
        while let Some((first, _)) = elements.peek() {
            let described =
                format!("{} from {}", object("elements of set", table, name), super::display::data(first));
            self.push(kind, flags, table.family, described, |b| {
                b.text(nfta::SET_ELEM_LIST_TABLE, &table.name);
                b.text(nfta::SET_ELEM_LIST_SET, name);
                if let Some(id) = id {
                    b.number(nfta::SET_ELEM_LIST_SET_ID, id);
                }
                b.nested(nfta::SET_ELEM_LIST_ELEMENTS, |b| {
                    let full = b.len() + ELEMENTS_BYTES;
                    while b.len() < full {
                        let Some((key, value)) = elements.next() else { break };
                        encode::element(b, key, value);
                    }
                });
            });
        }
    }
}

fn set_attributes(buffer: &mut Buffer, set: &Set, flags: u32) {
    let is_map = if set.kind == SetKind::Plain { 0 } else { set_flag::MAP };
    buffer.number(nfta::SET_FLAGS, flags | is_map);
    buffer.number(nfta::SET_KEY_TYPE, concatenated_id(&set.key));
    buffer.number(nfta::SET_KEY_LEN, concatenated_len(&set.key) as u32);
    let mut notes = byte_order_note(0, &set.key);
    match &set.kind {
        SetKind::Plain => {}
        SetKind::Verdicts => buffer.number(nfta::SET_DATA_TYPE, VERDICT_TYPE),
        SetKind::Map(data) => {
            buffer.number(nfta::SET_DATA_TYPE, concatenated_id(data));
            buffer.number(nfta::SET_DATA_LEN, concatenated_len(data) as u32);
            notes.extend(byte_order_note(1, data));
        }
    }
    if !notes.is_empty() {
        buffer.attr(nfta::SET_USERDATA, &notes);
    }
    // Each element gets its own.
    match set.each {
        Some(PerElement::Above(limit)) => buffer.nested(nfta::SET_EXPR, |b| encode::limit_over(b, limit)),
        Some(PerElement::Counter) => buffer.nested(nfta::SET_EXPR, encode::counter),
        None => {}
    }
}

/// Tells the `nft` program, for its listings only, that a key or data is in host order
/// (`NFTNL_UDATA_SET_KEYBYTEORDER`, `NFTNL_UDATA_SET_DATABYTEORDER`: type, length, value).
fn byte_order_note(kind: u8, types: &[Type]) -> Vec<u8> {
    const HOST_ORDER: u32 = 1;
    match types {
        [Type::Number | Type::Slot | Type::Ifname] => [&[kind, 4][..], &HOST_ORDER.to_ne_bytes()].concat(),
        _ => Vec::new(),
    }
}

fn object(kind: &str, table: &Table, name: &str) -> String {
    format!("{kind} {} {} {name}", table.family.name(), table.name)
}
