//! Somebody meddles with what a node holds in the kernel: the next full pass repairs it, within five seconds on a machine
//! that has nothing else to do.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Host, Replica, ReplicaSpec, scenario, shares, within};

const IN_TURN: [(&str, usize); 3] = [("web1", 4), ("web2", 4), ("web3", 4)];

fn replica(host: &Host, name: &str) -> Result<Replica> {
    Replica::start(host, ReplicaSpec { name, network: Some("blue"), service: Some("web"), port: 80 })
}

/// What is done to a host; `$overlay` is the place of the network's namespace, `$inside` enters it.
const DAMAGES: [&str; 14] = [
    "nft flush ruleset",
    // As when the firewall's service is restarted: its file begins so.
    "printf 'flush ruleset\ntable inet site { chain in { type filter hook input priority 0; policy accept; }\n}' | nft -f -",
    "ip link delete $(ip -brief link show type veth | grep -o '^up[0-9]*')",
    "ip link set $(ip -brief link show type veth | grep -o '^up[0-9]*') netns lan",
    "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0",
    "$inside nft flush ruleset",
    "$inside nft delete table bridge mesh",
    "$inside ip link delete $($inside ip -brief link show type vxlan | cut -d@ -f1)",
    "$inside ip link delete br0",
    "$inside ip address flush dev br0",
    "$inside ip neighbour flush nud permanent dev br0",
    "$inside ip link set $($inside ip -brief link show type veth | grep -o '^p[0-9a-f]*' | head -1) netns lan",
    "umount --lazy $overlay",
    "umount --lazy $overlay; rm $overlay",
];

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
        let before = without_indices(&vm3.kernel_objects()?);
        for damage in DAMAGES {
            let kept = "findmnt --noheadings --raw --output TARGET --types nsfs | grep \"^$0/\"";
            let overlay = vm3.output(&["bash", "-c", kept, &vm3.run_dir()]).ok()?;
            let overlay = overlay.lines().next().context("the network has a namespace")?.to_owned();
            let script = format!("overlay={overlay}; inside=\"nsenter --net={overlay}\"; {damage}");
            vm3.shell(&script).ok()?;
            let began = Instant::now();
            within(2 * CONVERGES, &format!("repaired: {damage}"), || {
                whole()?;
                let now = without_indices(&vm3.kernel_objects()?.replace(&site(), ""));
                ensure!(now == before, "before:\n{before}\nnow:\n{now}");
                Ok(())
            })?;
            eprintln!("{:.1?}: {damage}", began.elapsed());
        }
        // What is not the mesh's stays as whoever made it has it.
        ensure!(vm3.shell("nft list table inet site").ok()?.contains("hook input"));
        Ok(())
    });
}

/// Without the numbers of interfaces' other ends (`up4096@if4`): an interface that is made again gets another.
fn without_indices(objects: &str) -> String {
    let mut parts = objects.split("@if");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

/// The table of the firewall that was restarted, as it is listed.
fn site() -> String {
    "table inet site {\n\tchain in {\n\t\ttype filter hook input priority filter; policy accept;\n\t}\n}\n"
        .to_owned()
}
