//! What the checks make of evidence.

use super::{
    super::{
        evidence::{Duplicate, Evidence, Ingress, Link, Network, Peer, Resolver},
        prober::{Heard, Reply},
        underlay::Port,
    },
    *,
};
use mesh_model::{MacAddr, NodeStatus, Role};
use mesh_net::{
    Missing,
    nft::{ForwardChain, Passage},
    survey::{HostAddress, Losses, Survey, Usage},
};
use proptest::prelude::*;

const ALL: Heard = Heard {
    plain: Reply::Answered,
    summed_there: Reply::Answered,
    summed: Reply::Answered,
    full_there: Reply::Answered,
    full: Reply::Answered,
    refused: false,
    clock: Some((0, 0)),
    longest: None,
    unsent: None,
};

fn silent() -> Heard {
    let reply = Reply::Silent;
    Heard {
        plain: reply,
        summed_there: reply,
        summed: reply,
        full_there: reply,
        full: reply,
        clock: None,
        ..ALL
    }
}

fn peer(name: &str, last: u8, role: Role) -> Peer {
    let address = ([10, 0, 0, last], 7443).into();
    let tcp = if role == Role::Manager { Port::Open } else { Port::Refused };
    Peer { name: name.to_owned(), role, address, status: NodeStatus::Ready, tcp, udp: None }
}

fn link(peer: &str, network: &str, heard: Heard) -> Link {
    Link { peer: peer.to_owned(), network: network.to_owned(), ipv6: false, mtu: Some(1450), heard }
}

fn resolver(network: Option<&str>) -> Resolver {
    let network = network.map(str::to_owned);
    Resolver { address: ([10, 0, 0, 53], 53).into(), network, loops: false, mute: None }
}

/// The worker vm2 with the manager vm1 and the worker vm3, all on two networks; nothing is wrong.
fn well() -> Evidence {
    let network = |name: &str, subnet: &str| Network {
        name: name.to_owned(),
        subnets: vec![subnet.parse().unwrap()],
        mtu: None,
        mute: Vec::new(),
        conntrack: Some(Usage { used: 10, max: 1000, most: None, losses: Losses::default() }),
    };
    let address = HostAddress { link: "eth0".to_owned(), mtu: 1500, address: "10.0.0.2/24".parse().unwrap() };
    let survey =
        Survey { addresses: vec![address], forwards_ipv4: true, forwards_ipv6: true, ..Survey::default() };
    let mut evidence = Evidence {
        me: "vm2".to_owned(),
        address: Some([10, 0, 0, 2].into()),
        vxlan_port: 4789,
        survey: Some(Ok(survey)),
        peers: vec![peer("vm1", 1, Role::Manager), peer("vm3", 3, Role::Worker)],
        networks: vec![network("blue", "10.50.0.0/24"), network("red", "10.51.0.0/24")],
        resolvers: vec![resolver(None), resolver(Some("blue"))],
        front: Some(true),
        published: 1,
        ..Evidence::default()
    };
    evidence.managers.connected = true;
    evidence.state.overlay_mtu = Some(1450);
    for name in ["vm1", "vm3"] {
        evidence.links.extend(["blue", "red"].map(|network| link(name, network, ALL)));
        let service = "web".to_owned();
        evidence.ingress.push(Ingress { peer: name.to_owned(), port: 80, service, answer: Port::Open });
    }
    evidence
}

/// `OUTCOME CHECK WHERE` of what is not well.
fn bad(evidence: &Evidence) -> Vec<String> {
    let diagnosis = diagnose(evidence);
    let bad = diagnosis.findings.iter().filter(|f| matches!(f.outcome, Outcome::Failed | Outcome::Warning));
    bad.map(|f| {
        assert!(!f.remedy.is_empty(), "{f:?}");
        format!("{} {} {}", f.outcome, f.check, f.place)
    })
    .collect()
}

fn hear(evidence: &mut Evidence, peer: &str, network: &str, change: impl Fn(&mut Heard)) {
    let links = evidence.links.iter_mut().filter(|link| link.peer == peer);
    links
        .filter(|link| network.is_empty() || link.network == network)
        .for_each(|link| change(&mut link.heard));
}

#[test]
fn every_check_of_a_node_that_is_well_says_so_once() {
    let diagnosis = diagnose(&well());
    assert!(diagnosis.healthy);
    let names: Vec<&str> = diagnosis.findings.iter().map(|finding| finding.check.as_str()).collect();
    assert_eq!(names, CHECKS.map(|check| check.name));
    let skipped = diagnosis.findings.iter().filter(|finding| finding.outcome != Outcome::Ok);
    let skipped: Vec<&str> = skipped.map(|finding| finding.check.as_str()).collect();
    // A worker keeps no state.
    assert_eq!(skipped, ["store"]);
    assert!(diagnosis.findings.is_sorted_by_key(|finding| finding.group));
}

#[test]
fn silence_over_networks_is_a_blocked_port_only_if_the_host_answers() {
    let mut evidence = well();
    hear(&mut evidence, "vm3", "", |heard| *heard = silent());
    assert_eq!(bad(&evidence), ["FAILED vxlan-port vm2 <-> vm3"]);
    // One network of two: not the port.
    hear(&mut evidence, "vm3", "red", |heard| *heard = ALL);
    assert_eq!(bad(&evidence), ["FAILED vxlan-port vm2 <-> vm3, network 'blue'"]);
    // The host is gone.
    hear(&mut evidence, "vm3", "", |heard| *heard = silent());
    evidence.peers[1].status = NodeStatus::Down;
    evidence.peers[1].tcp = Port::Silent;
    evidence.peers[1].udp = Some(Port::Unreachable("no route".to_owned()));
    evidence.ingress[1].answer = Port::Silent;
    assert_eq!(bad(&evidence), ["FAILED nodes vm3"]);
    // Its daemon is off: its kernel says so over the overlay, or past it.
    for refused in [true, false] {
        evidence.peers[1].tcp = Port::Refused;
        evidence.peers[1].udp = Some(if refused { Port::Silent } else { Port::Refused });
        hear(&mut evidence, "vm3", "", |heard| *heard = Heard { refused, ..silent() });
        evidence.ingress[1].answer = Port::Open;
        assert_eq!(bad(&evidence), ["FAILED nodes vm3"]);
    }
}

#[test]
fn a_family_that_is_lost_is_told_from_its_network() {
    let with = |heard| {
        let mut evidence = well();
        evidence.links.push(Link { ipv6: true, ..link("vm3", "blue", heard) });
        evidence
    };
    assert_eq!(bad(&with(ALL)), [""; 0]);
    let lost = with(silent());
    assert_eq!(bad(&lost), ["FAILED vxlan-port vm2 <-> vm3, network 'blue'"]);
    let findings = diagnose(&lost).findings;
    assert!(findings.iter().any(|f| f.result == "nothing passes over 'blue' by IPv6, though IPv4 does"));
    let long = with(Heard { full: Reply::Silent, ..ALL });
    assert_eq!(bad(&long), ["FAILED mtu vm3 -> vm2, network 'blue' (IPv6)"]);
    // Both families of a network are one finding.
    let mut both = with(silent());
    hear(&mut both, "vm3", "blue", |heard| *heard = silent());
    assert_eq!(bad(&both), ["FAILED vxlan-port vm2 <-> vm3, network 'blue'"]);
    hear(&mut both, "vm3", "blue", |heard| *heard = Heard { summed: Reply::Silent, ..ALL });
    assert_eq!(bad(&both), ["FAILED checksums vm3 -> vm2, network 'blue'"]);
}

#[test]
fn addresses_with_a_wrong_owner_are_told_with_it() {
    let mut evidence = well();
    let duplicate = |network: Option<&str>, peer: Option<&str>| Duplicate {
        address: "10.50.0.7".parse().unwrap(),
        network: network.map(str::to_owned),
        owner: "endpoint 'web1'".to_owned(),
        peer: peer.map(str::to_owned),
        others: vec![MacAddr([2, 0, 0, 0, 0, 9])],
        known: vec!["endpoint 'web2'".to_owned()],
    };
    evidence.duplicates.found = vec![duplicate(Some("blue"), None)];
    assert_eq!(bad(&evidence), ["FAILED addresses vm2, network 'blue'"]);
    let findings = diagnose(&evidence).findings;
    let told = "duplicate address: 10.50.0.7 is that of endpoint 'web1', but 02:00:00:00:00:09 (endpoint 'web2') answers for it";
    assert!(findings.iter().any(|f| f.result == told), "{findings:#?}");
    evidence.duplicates.found = vec![duplicate(None, Some("vm3"))];
    assert_eq!(bad(&evidence), ["FAILED underlay-address vm2 <-> vm3"]);
    evidence.duplicates.found = vec![duplicate(None, None)];
    assert_eq!(bad(&evidence), ["FAILED underlay-address vm2"]);
}

#[test]
fn blocked_ports_of_the_nodes_are_told_apart() {
    let mut evidence = well();
    evidence.peers[1].status = NodeStatus::Suspect;
    evidence.peers[1].udp = Some(Port::Silent);
    assert_eq!(bad(&evidence), ["FAILED membership-port vm2 <-> vm3"]);
    let mut evidence = well();
    evidence.peers[0].tcp = Port::Silent;
    assert_eq!(bad(&evidence), ["FAILED managers vm2 -> vm1"]);
    evidence.peers[0].tcp = Port::Refused;
    assert_eq!(bad(&evidence), ["FAILED managers vm2 -> vm1"]);
    evidence.managers.connected = false;
    evidence.managers.refusals = vec!["manager 10.0.0.1:7443: set the clocks".to_owned()];
    assert_eq!(bad(&evidence), ["FAILED managers vm2", "FAILED managers vm2 -> vm1"]);
    let mut evidence = well();
    for (answer, expected) in [
        (Port::Silent, "FAILED reach vm2 -> vm1"),
        (Port::Unreachable("no route to host".to_owned()), "FAILED reach vm2 -> vm1"),
        (Port::Refused, "warning reach vm2 -> vm1"),
    ] {
        evidence.ingress[0].answer = answer;
        assert_eq!(bad(&evidence), [expected]);
    }
}

#[test]
fn what_is_lost_on_a_link_tells_why_and_which_way() {
    let lose = |lose: fn(&mut Heard)| {
        let mut evidence = well();
        hear(&mut evidence, "vm3", "", lose);
        bad(&evidence)
    };
    let long = lose(|heard| (heard.full_there, heard.full) = (Reply::Silent, Reply::Silent));
    assert_eq!(long, ["FAILED mtu vm2 -> vm3, 2 networks"]);
    let long = lose(|heard| heard.full = Reply::Silent);
    assert_eq!(long, ["FAILED mtu vm3 -> vm2, 2 networks"]);
    let long = lose(|heard| heard.full = Reply::TooLong);
    assert_eq!(long, ["FAILED mtu vm2 <-> vm3, 2 networks"]);
    let summed = lose(|heard| (heard.summed_there, heard.summed) = (Reply::Silent, Reply::Silent));
    assert_eq!(summed, ["FAILED checksums vm2 -> vm3, 2 networks"]);
    let summed = lose(|heard| heard.summed = Reply::Silent);
    assert_eq!(summed, ["FAILED checksums vm3 -> vm2, 2 networks"]);
}

#[test]
fn clocks_are_as_good_as_the_answer_was_fast() {
    for (clock, expected) in [
        ((1_500, 0), &[][..]),
        ((-2_500, 0), &["warning clocks vm2 <-> vm3"]),
        ((31_000, 0), &["FAILED clocks vm2 <-> vm3"]),
        ((-86_400_000, 5), &["FAILED clocks vm2 <-> vm3"]),
        // The answer took six seconds: the clocks may as well agree.
        ((2_500, 3_000), &[]),
    ] {
        let mut evidence = well();
        hear(&mut evidence, "vm3", "", |heard| heard.clock = Some(clock));
        assert_eq!(bad(&evidence), expected, "{clock:?}");
    }
}

#[test]
fn the_host_is_looked_at() {
    let with = |change: fn(&mut Survey)| {
        let mut evidence = well();
        if let Some(Ok(survey)) = &mut evidence.survey {
            change(survey);
        }
        bad(&evidence)
    };
    let shut = with(|survey| {
        survey.forward_chains =
            vec![ForwardChain { name: "ip filter FORWARD".to_owned(), passage: Passage::Shut }];
    });
    assert_eq!(shut, ["FAILED firewall vm2, chain 'ip filter FORWARD'"]);
    let unclear = with(|survey| {
        survey.forward_chains = vec![ForwardChain { name: "inet f w".to_owned(), passage: Passage::Unclear }];
    });
    assert_eq!(unclear, ["warning firewall vm2, chain 'inet f w'"]);
    assert_eq!(with(|survey| survey.forwards_ipv4 = false), ["FAILED forwarding vm2"]);
    assert_eq!(
        with(|survey| survey.strict_uplinks = vec!["up4096".to_owned()]),
        ["FAILED forwarding vm2, up4096"]
    );
    for (used, expected) in [(79, &[][..]), (80, &["warning conntrack vm2"]), (95, &["FAILED conntrack vm2"])]
    {
        let mut evidence = well();
        if let Some(Ok(survey)) = &mut evidence.survey {
            survey.conntrack = Some(Usage { used, max: 100, most: None, losses: Losses::default() });
        }
        assert_eq!(bad(&evidence), expected);
    }
    let mut evidence = well();
    evidence.missing = vec![Missing {
        what: "VXLAN".into(),
        because: "the kernel knows no such link".to_owned(),
        remedy: "modprobe vxlan",
    }];
    assert_eq!(bad(&evidence), ["FAILED kernel vm2"]);
    let finding = &diagnose(&evidence).findings[0];
    assert_eq!(finding.result, "VXLAN is missing (the kernel knows no such link)");
    assert_eq!(finding.remedy, "modprobe vxlan");
    let overlap = with(|survey| {
        let address = "10.50.3.4/16".parse().unwrap();
        survey.addresses.push(HostAddress { link: "eth1".to_owned(), mtu: 1500, address });
    });
    assert_eq!(overlap, ["FAILED subnets vm2, network 'blue'"]);
}

#[test]
fn what_was_repaired_is_a_warning_and_what_comes_back_is_none() {
    let mut evidence = well();
    let difference = |number: usize| ("network 'blue'".to_owned(), format!("thing {number} is missing"));
    evidence.state.repaired = vec![difference(1)];
    assert_eq!(bad(&evidence), ["warning kernel-state vm2, network 'blue'"]);
    assert!(diagnose(&evidence).healthy, "warnings alone are no failure");
    evidence.state.stays = (0..20).map(difference).collect();
    let diagnosis = diagnose(&evidence);
    let failed: Vec<_> = diagnosis.findings.iter().filter(|f| f.outcome == Outcome::Failed).collect();
    assert_eq!(failed.len(), 8, "no page of one kind");
    assert!(failed[7].result.contains("(and 12 more like this)"), "{failed:?}");
    assert!(!diagnosis.healthy);
}

#[test]
fn resolvers_that_do_not_answer_are_a_warning_each() {
    let mut evidence = well();
    evidence.resolvers[0].mute = Some("no answer within 1s".to_owned());
    assert_eq!(bad(&evidence), ["warning resolvers vm2"]);
    evidence.resolvers[1].loops = true;
    assert_eq!(bad(&evidence), ["warning resolvers vm2", "warning resolvers vm2, network 'blue'"]);
    assert!(diagnose(&evidence).healthy, "the mesh's own names are found");
    evidence.resolvers.clear();
    assert!(bad(&evidence).is_empty(), "nobody is to be asked");
}

#[test]
fn only_links_are_told_of_another_node() {
    let evidence = Evidence { only_peers: true, ..well() };
    let diagnosis = diagnose(&evidence);
    assert!(diagnosis.findings.iter().all(|finding| finding.group != Group::Host && finding.check != "dns"));
    assert!(diagnosis.findings.iter().any(|finding| finding.check == "vxlan-port"));
}

fn reply() -> impl Strategy<Value = Reply> {
    prop::sample::select(vec![Reply::Unasked, Reply::Silent, Reply::Answered, Reply::TooLong])
}

fn heard() -> impl Strategy<Value = Heard> {
    let clock = prop::option::of((any::<i64>(), any::<u64>()));
    let replies = (reply(), reply(), reply(), reply(), reply());
    (replies, any::<bool>(), clock, prop::option::of("[a-z]{3}")).prop_map(
        |(replies, refused, clock, unsent)| {
            let (plain, summed_there, summed, full_there, full) = replies;
            Heard { plain, summed_there, summed, full_there, full, refused, clock, longest: None, unsent }
        },
    )
}

fn port() -> impl Strategy<Value = Port> {
    prop_oneof![
        Just(Port::Open),
        Just(Port::Refused),
        Just(Port::Silent),
        Just(Port::Strange("odd".to_owned())),
        Just(Port::Unreachable("none".to_owned())),
    ]
}

fn status() -> impl Strategy<Value = NodeStatus> {
    prop::sample::select(vec![NodeStatus::Ready, NodeStatus::Suspect, NodeStatus::Down])
}

proptest! {
    /// Whatever was heard: every check says something, what fails says what to do, and a host that answers nothing is
    /// told of once.
    #[test]
    fn whatever_was_heard_is_told(
        heard in prop::collection::vec(heard(), 4),
        seen in prop::collection::vec((port(), prop::option::of(port()), status()), 2),
        connected: bool,
    ) {
        let mut evidence = well();
        evidence.managers.connected = connected;
        for (link, heard) in evidence.links.iter_mut().zip(heard) {
            link.heard = heard;
        }
        for (peer, (tcp, udp, status)) in evidence.peers.iter_mut().zip(seen) {
            (peer.tcp, peer.udp, peer.status) = (tcp, udp, status);
        }
        let diagnosis = diagnose(&evidence);
        for check in &CHECKS {
            prop_assert!(diagnosis.findings.iter().any(|finding| finding.check == check.name));
        }
        for finding in &diagnosis.findings {
            let is_bad = matches!(finding.outcome, Outcome::Failed | Outcome::Warning);
            prop_assert_eq!(is_bad, !finding.remedy.is_empty(), "{:?}", finding);
        }
        prop_assert_eq!(diagnosis.healthy, !diagnosis.findings.iter().any(|f| f.outcome == Outcome::Failed));
        for peer in evidence.peers.iter().filter(|peer| !peer.host_answers(&evidence.links)) {
            let about: Vec<_> = diagnosis.findings.iter()
                .filter(|finding| finding.peer.as_deref() == Some(&*peer.name))
                .map(|finding| finding.check.as_str())
                .collect();
            prop_assert_eq!(about, ["nodes"]);
        }
    }
}
