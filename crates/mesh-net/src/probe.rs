//! Whether this kernel, and this process in it, can do what the data plane needs: found by trying, in a scratch
//! namespace that ends with its thread.

use crate::{
    desired::{bridge, uplink, vxlan},
    netlink::{Netlink, Place, make},
    netns::on_a_thread,
    nft::{
        Base, Batch, ChainKind, CtDirection, Datum, Family, Field, Hook, Limit, Nft, NftError, Rule, Set,
        Source, Table, Type,
    },
    object::{Ifname, Link, LinkKind, Object},
    sysctl,
};
use mesh_model::MacAddr;
use nix::sched::{CloneFlags, unshare};
use std::{
    borrow::Cow,
    fmt, fs,
    net::{Ipv4Addr, Ipv6Addr},
};

/// Something that the data plane can't do without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// What is missing.
    pub what: Cow<'static, str>,
    /// How that showed.
    pub because: String,
    /// What to do.
    pub remedy: &'static str,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is missing ({}): {}", self.what, self.because, self.remedy)
    }
}

/// What this kernel and this process lack; nothing, if the data plane can run. Takes a few milliseconds and changes
/// nothing: all that is tried is tried in a network namespace of its own.
pub fn probe_kernel() -> Vec<Missing> {
    let lacking = capabilities();
    if !lacking.is_empty() {
        // Everything else would fail for this reason, and say so at length.
        return lacking;
    }
    on_a_thread(|| {
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
            return vec![Missing {
                what: "the right to make network namespaces".into(),
                because: errno.to_string(),
                remedy: "run meshd as root (CAP_SYS_ADMIN and CAP_NET_ADMIN)",
            }];
        }
        [links(), settings(), firewall()].concat()
    })
}

/// What meshd needs (capabilities(7)), by the bits of `/proc/self/status`.
const CAPABILITIES: [(&str, u32); 4] = [
    // Name servers at port 53, published ports below 1024.
    ("CAP_NET_BIND_SERVICE", 10),
    // Links, routes, nftables.
    ("CAP_NET_ADMIN", 12),
    // The namespaces of processes that other users run, or that `meshctl run` is about to start.
    ("CAP_SYS_PTRACE", 19),
    // Namespaces are made, entered and kept by mounts.
    ("CAP_SYS_ADMIN", 21),
];

/// The capabilities that this process lacks.
fn capabilities() -> Vec<Missing> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(bits) = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()) else {
        // Without /proc there is nothing to read it from: trying will tell.
        return Vec::new();
    };
    lacking(bits).into_iter().collect()
}

/// The same, of a process that has those of a bit mask: one line, however many there are.
fn lacking(effective: u64) -> Option<Missing> {
    let lacking = CAPABILITIES.into_iter().filter(|(_, number)| effective & (1 << number) == 0);
    let names: Vec<&str> = lacking.map(|(name, _)| name).collect();
    (!names.is_empty()).then(|| Missing {
        what: names.join(", ").into(),
        because: "this process does not have the capability".to_owned(),
        remedy: "run meshd as root, with CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_SYS_PTRACE and CAP_NET_BIND_SERVICE left to it",
    })
}

fn links() -> Vec<Missing> {
    let missing = |what: &'static str, because: String| Missing {
        what: what.into(),
        because,
        remedy: "load the modules with 'modprobe -a vxlan bridge veth', or use a kernel that has them",
    };
    let mut netlink = match Netlink::open() {
        Ok(netlink) => netlink,
        Err(error) => return vec![missing("rtnetlink", error.to_string())],
    };
    let local = Ipv4Addr::LOCALHOST.into();
    let kinds = [
        ("the VXLAN driver", vxlan(1), LinkKind::Vxlan { vni: 1, local, port: 4789 }),
        ("the bridge driver", bridge(), LinkKind::Bridge),
        ("the veth driver", uplink(1), LinkKind::Veth),
    ];
    let lacks = |(what, name, kind): (&'static str, Ifname, LinkKind)| {
        let link = Object::Link(name, Link::new(kind, MacAddr::endpoint(1), 1400));
        let request = make(&link, 0, None, false, Place::Here)?;
        match netlink.batch(&[request]).map(|answers| answers.into_iter().next()) {
            Ok(Some(Err(refused))) => Some(missing(what, refused.source.to_string())),
            Ok(_) => None,
            Err(error) => Some(missing(what, error.to_string())),
        }
    };
    kinds.into_iter().filter_map(lacks).collect()
}

fn settings() -> Vec<Missing> {
    if sysctl::get("ipv6/conf/default/disable_ipv6").is_some() {
        return Vec::new();
    }
    vec![Missing {
        what: "IPv6 in the kernel".into(),
        because: "no net.ipv6.conf.default.disable_ipv6".into(),
        remedy: "remove ipv6.disable=1 from the kernel's command line: next hops are link-local, also of IPv4",
    }]
}

/// Each feature is tried in a table of its own, so that what is missing can be told.
fn firewall() -> Vec<Missing> {
    let missing = |what: &'static str, error: NftError| Missing {
        what: what.into(),
        because: error.to_string(),
        remedy: "use a kernel with nf_tables, of Linux 5.15 or later (modules nf_tables, nft_chain_nat, nft_numgen, nft_fib, nft_limit)",
    };
    let mut nft = match Nft::open() {
        Ok(nft) => nft,
        Err(error) => return vec![missing("nf_tables", error)],
    };
    let to = |host| Source::Constant(vec![Datum::Ipv4(Ipv4Addr::new(192, 0, 2, host))]);
    let in_turn = Source::Inline {
        key: Field::NumgenInc(2),
        map: Set::slots([1, 2].map(|host| vec![Datum::Ipv4(Ipv4Addr::new(192, 0, 2, host))])),
    };
    let ipv6 = Source::Constant(vec![Datum::Ipv6(Ipv6Addr::LOCALHOST)]);
    let prerouting = |kind| Base::new(kind, Hook::Prerouting, -100);
    let features = [
        ("nftables NAT", Family::Ip, prerouting(ChainKind::Nat), Rule::new().dnat(to(1))),
        ("nftables NAT for IPv6", Family::Ip6, prerouting(ChainKind::Nat), Rule::new().dnat(ipv6)),
        ("nftables numgen", Family::Ip, prerouting(ChainKind::Nat), Rule::new().dnat(in_turn)),
        ("nftables fib", Family::Ip, prerouting(ChainKind::Filter), Rule::new().daddr_is_local().accept()),
        (
            "connection tracking in nftables",
            Family::Ip,
            prerouting(ChainKind::Filter),
            Rule::new().direction(CtDirection::Reply).set_mark(Source::Field(Field::CtMark)),
        ),
        (
            "nftables reject",
            Family::Ip,
            Base::new(ChainKind::Filter, Hook::Input, 0),
            Rule::new().reject_port_unreachable(),
        ),
    ];
    let mut found = Vec::new();
    for (what, family, base, rule) in features {
        let mut table = Table::new(family, "probe");
        table.hook("probe", base, vec![rule]);
        found.extend(attempt(&mut nft, &table).err().map(|error| missing(what, error)));
    }
    for (what, table) in
        [("nftables for bridges", marks_by_sender()), ("nftables limits by element", limits_by_element())]
    {
        found.extend(attempt(&mut nft, &table).err().map(|error| missing(what, error)));
    }
    found
}

fn limits_by_element() -> Table {
    let mut table = Table::new(Family::Ip, "probe");
    let mut above = Set::above(&[Type::Ipv4], Limit { rate: 1, burst: 1 });
    above.add(vec![Datum::Ipv4(Ipv4Addr::new(192, 0, 2, 1))]);
    table.set("above", above);
    let limited = Rule::new().is_in(&[Field::IpSaddr], "above").drop();
    table.hook("probe", Base::new(ChainKind::Filter, Hook::Prerouting, -300), vec![limited]);
    table
}

fn marks_by_sender() -> Table {
    let mut table = Table::new(Family::Bridge, "probe");
    let mut nodes = Set::map(&[Type::Ether], &[Type::Number]);
    nodes.insert(vec![Datum::Ether(MacAddr::bridge(1).0)], vec![Datum::Number(1)]);
    table.set("nodes", nodes);
    let mark = Source::Map { key: vec![Field::EtherSaddr], map: "nodes".into() };
    table.hook(
        "probe",
        Base::new(ChainKind::Filter, Hook::Prerouting, -300),
        vec![
            Rule::new().begins(Field::Iifname, "vx").set_mark(mark),
            Rule::new().hand_up(MacAddr::bridge(1).0),
        ],
    );
    table
}

fn attempt(nft: &mut Nft, table: &Table) -> Result<(), NftError> {
    let mut batch = Batch::default();
    batch.update(None, table);
    nft.commit(&batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_can_do_all_of_it() {
        assert_eq!(probe_kernel(), [], "root and a kernel with vxlan, bridge, veth and nf_tables are needed");
    }

    #[test]
    fn what_is_missing_says_what_to_do() {
        let missing = Missing { what: "numgen".into(), because: "ENOENT".into(), remedy: "load it" };
        assert_eq!(missing.to_string(), "numgen is missing (ENOENT): load it");
    }

    #[test]
    fn capabilities_are_named_in_one_line() {
        assert_eq!(lacking(u64::MAX), None);
        let said = lacking(!(1 << 12 | 1 << 19)).map(|missing| missing.to_string()).unwrap_or_default();
        assert!(
            said.starts_with("CAP_NET_ADMIN, CAP_SYS_PTRACE is missing (") && !said.contains('\n'),
            "{said}"
        );
    }
}
