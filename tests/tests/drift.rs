//! Somebody meddles with what a node holds in the kernel: the next full pass repairs it, within five seconds on a machine
//! that has nothing else to do.

use std::env;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    CONVERGES, Cluster, Host, Namespace, Objects, Replica, ReplicaSpec, scenario, shares, unchanged, within,
};

const IN_TURN: [(&str, usize); 3] = [("web1", 4), ("web2", 4), ("web3", 4)];

fn replica(host: &Host, name: &str) -> Result<Replica> {
    Replica::start(host, ReplicaSpec { name, network: Some("blue"), service: Some("web"), port: 80 })
}

/// What a firewall's service has loaded, and what `iptables-restore` makes of a ruleset without rules. Neither is the mesh's.
const OF_OTHERS: &str = r"
site() { echo 'table inet site { chain in { type filter hook input priority 0; policy accept; }; }'; }
empty() { printf '%s\n' '*filter' ':INPUT ACCEPT' ':FORWARD ACCEPT' ':OUTPUT ACCEPT' COMMIT; }
others() { site | nft -f - && empty | iptables-restore; }
";

const RULES_OF_OTHERS: &str = "empty | iptables-restore";

/// What is done to a host; `$overlay` is the place of the network's namespace, `$inside` enters it.
const DAMAGES: [&str; 19] = [
    "nft flush ruleset; others",
    // As when the firewall's service is restarted: its file begins so.
    "(echo 'flush ruleset'; site) | nft -f -; empty | iptables-restore",
    RULES_OF_OTHERS,
    "ip link delete $(ip -brief link show type veth | grep -o '^up[0-9]*')",
    "ip link set $(ip -brief link show type veth | grep -o '^up[0-9]*') netns lan",
    "ip route flush proto 109; ip -6 route flush proto 109",
    "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0",
    "$inside nft flush ruleset",
    "$inside nft delete table bridge mesh",
    "$inside ip link delete $($inside ip -brief link show type vxlan | cut -d@ -f1)",
    "$inside ip link delete br0",
    "$inside ip address flush dev br0",
    "$inside ip route flush dev br0",
    "$inside ip neighbour flush nud permanent dev br0",
    // One replica on another node is out of reach.
    "vx=$($inside ip -brief link show type vxlan | cut -d@ -f1 | cut -d' ' -f1);
     read -r mac _ node _ <<<$($inside bridge fdb show dev $vx | grep dst | head -1);
     $inside bridge fdb delete $mac dev $vx dst $node self",
    // With the rules of the mesh go those of the kernel, which are not the mesh's to bring back.
    "for family in -4 -6; do
       $inside ip $family rule flush; $inside ip $family rule add pref 32766 lookup main protocol kernel
     done; $inside ip rule add pref 32767 lookup default protocol kernel",
    "$inside ip link set $($inside ip -brief link show type veth | grep -o '^p[0-9a-f]*' | head -1) netns lan",
    "umount --lazy $overlay",
    "umount --lazy $overlay; rm $overlay",
];

/// What is done inside a container.
const INSIDE: [&str; 5] = [
    "ip address flush dev eth0 scope global",
    "ip route flush dev eth0; ip -6 route flush dev eth0 proto 109",
    "ip route delete default; ip -6 route delete default",
    "ip link set eth0 down",
    "ip link delete eth0",
];

/// What is to be in a container.
const CONTAINER: &str = "(ip -brief link; ip -brief address; ip rule; ip -6 rule; ip route; ip -6 route) | sed -E 's/@if[0-9]+ */ /'";

/// How long a repair may take: passes are three seconds apart, and on a machine with nothing else to do five are enough.
/// `MESH_REPAIR_SECONDS` says otherwise (`scripts/soak drift`).
const MENDED: Duration = Duration::from_secs(10);

#[test]
fn drift_is_repaired() {
    scenario("drift", |lab| {
        let cluster = Cluster::three(lab)?;
        let subnets = ["--subnet", "192.168.100.0/24", "--subnet", "fd00:100::/64"];
        cluster.vm1().meshctl(&[&["network", "create"], &subnets[..], &["blue"]].concat()).ok()?;
        let service = ["service", "create", "--name", "web", "--network", "blue", "--publish", "80:80"];
        cluster.vm1().meshctl(&service).ok()?;
        let places = [(cluster.vm1(), "web1"), (cluster.vm2(), "web2"), (cluster.vm3(), "web3")];
        let replicas = places.map(|(host, name)| replica(host, name));
        let replicas = replicas.into_iter().collect::<Result<Vec<_>>>()?;
        cluster.endpoints("web", "3/3")?;
        let (client, vm3, inside) = (lab.client("client")?, cluster.vm3(), replicas[2].namespace()?);
        let vip = cluster.vip("web")?;
        // From outside by the damaged node, and from its own container by the VIP, its name and to the others.
        let whole = || -> Result<()> {
            shares(&client.answers(&cluster.urls(80)[2], 12)?, &IN_TURN)?;
            shares(&client.answers(&format!("http://[{}]/", vm3.ip6()), 12)?, &IN_TURN)?;
            ensure!(inside.dig(&["@192.168.100.1", "web"])? == std::slice::from_ref(&vip));
            shares(&inside.answers(&format!("http://{vip}/"), 12)?, &IN_TURN)
        };
        within(CONVERGES, "everything works", whole)?;
        let site = format!("{OF_OTHERS} others");
        vm3.shell(&site).ok()?;
        let held = || -> Result<Objects> {
            let mut held = vm3.all_objects()?;
            let container = inside.shell(CONTAINER).ok()?;
            held.insert("container".to_owned(), container.lines().map(str::to_owned).collect());
            let forwarding = vm3.output(&["sysctl", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"]);
            held.insert("forwarding".to_owned(), vec![forwarding.ok()?]);
            Ok(held)
        };
        let before = held()?;
        let deadline = env::var("MESH_REPAIR_SECONDS").ok().map(|text| text.parse()).transpose()?;
        let deadline = deadline.map_or(MENDED, Duration::from_secs);
        let (host, daemon): (&Namespace, _) = (vm3, &cluster.daemons[2]);
        let on_host = DAMAGES.map(|damage| (host, damage));
        for (place, damage) in on_host.into_iter().chain(INSIDE.map(|damage| (&inside, damage))) {
            let kept = "findmnt --noheadings --raw --output TARGET --types nsfs | grep \"^$0/\"";
            let overlay = vm3.output(&["bash", "-c", kept, &vm3.run_dir()]).ok()?;
            let overlay = overlay.lines().next().context("the network has a namespace")?.to_owned();
            let entered = format!("overlay={overlay}; inside=\"nsenter --net={overlay}\"");
            // Nothing is mended before it was seen to be damage. What is done to others' rules alone is none.
            daemon.pause()?;
            place.shell(&format!("{OF_OTHERS} {entered}; {damage}")).ok()?;
            let harmless = held().and_then(|held| unchanged(&before, &held)).is_ok();
            daemon.resume()?;
            ensure!(harmless == (damage == RULES_OF_OTHERS), "{damage}: harmless is {harmless}");
            let began = Instant::now();
            within(deadline, &format!("repaired: {damage}"), || unchanged(&before, &held()?))?;
            eprintln!("{:.1?}: {damage}", began.elapsed());
            within(CONVERGES, &format!("everything works after: {damage}"), whole)?;
        }
        // What is not the mesh's stays as whoever made it has it.
        ensure!(vm3.shell("nft list table inet site").ok()?.contains("hook input"));
        Ok(())
    });
}
