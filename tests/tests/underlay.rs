//! What is below the overlays and beside them: the underlay's MTU changes under connections, networks go while a daemon is
//! away, and what others have on the host stays as it is.

use anyhow::{Result, ensure};
use mesh_tests::{
    Background, CONVERGES, Cluster, Host, Lab, Namespace, Replica, ReplicaSpec, scenario, unchanged, within,
};
use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

/// How long a change may take until it is followed: passes are three seconds apart.
const FOLLOWED: Duration = Duration::from_secs(10);

/// What a host may well have: a bridge, a VXLAN on the same port with another VNI, a namespace, a table, a route and a rule.
const OF_OTHERS: &str = r"
ip link add br-site type bridge; ip address add 10.90.0.1/24 dev br-site; ip link set br-site up
ip link add vx99 type vxlan id 99 dstport 4789 local 10.77.0.13 remote 10.77.0.101; ip link set vx99 master br-site up
ip netns add site; ip link add site0 type veth peer name eth0 netns site; ip link set site0 master br-site up
ip route add 10.91.0.0/24 via 10.90.0.9; ip rule add from 10.90.0.0/24 lookup 90
nft 'add table inet site; add chain inet site in { type filter hook input priority 0; }; add rule inet site in ip saddr 10.90.0.9 accept'
";

/// Without what the kernel finds out by itself, like states and link-local addresses.
const LOOK_AT_OTHERS: &str = r"
ip -brief address show dev br-site scope global | sed 's/ .* 10/ 10/'
ip -d link show dev vx99 | grep -o 'vxlan id .*'; bridge link show | grep -o '^[^<]*' | sort
ip netns exec site ip -brief link | cut -d' ' -f1
ip route show dev br-site | cut -d' ' -f1-4; ip rule show table 90; nft --stateless list table inet site
";

/// Sends to whoever connects, as much as is taken.
const SOURCE: &str = "import socket
listener = socket.create_server(('', 9000))
while True:
    peer, _ = listener.accept()
    while True: peer.sendall(bytes(65536))";

/// Takes it on one connection, and writes down how much that was.
const SINK: &str = "import socket, sys
peer = socket.create_connection((sys.argv[1], 9000))
with open(sys.argv[2], 'w') as file:
    total = 0
    while True:
        read = peer.recv(1 << 20)
        assert read
        total += len(read)
        print(total, file=file, flush=True)";

/// A connection on which data flows all the time.
struct Stream {
    _ends: [Background; 2],
    file: std::path::PathBuf,
}

impl Stream {
    fn start(source: &Namespace, sink: &Namespace, address: &str) -> Result<Self> {
        let path = format!("/run/lab/stream-{}", sink.name());
        let sending = source.spawn(&["python3", "-c", SOURCE])?;
        within(CONVERGES, "the source listens", || source.shell("ss -tlnH sport 9000 | grep -q .").ok())?;
        let taking = sink.spawn(&["python3", "-c", SINK, address, &path])?;
        let stream = Self { _ends: [sending, taking], file: sink.file(path) };
        stream.goes_on()?;
        Ok(stream)
    }

    fn total(&self) -> Result<u64> {
        let written = fs::read_to_string(&self.file)?;
        let whole = written.rsplit_once('\n').map(|(lines, _)| lines);
        Ok(whole.and_then(|lines| lines.lines().last()?.parse().ok()).unwrap_or(0))
    }

    fn goes_on(&self) -> Result<()> {
        let from = self.total().unwrap_or(0);
        within(CONVERGES, "data flows on the same connection", || {
            let more = self.total()? - from;
            ensure!(more > 1 << 20, "{more} bytes");
            Ok(())
        })
    }
}

/// The MTUs of everything that a packet of the network passes on a host.
fn mtus(host: &Host, container: &Namespace) -> Result<BTreeSet<String>> {
    let links = "ip -o link show type veth; ip -o link show type bridge; ip -o link show type vxlan";
    let inside =
        format!("for net in {}/netns/*; do nsenter --net=$net bash -c '{links}'; done", host.run_dir());
    let own = "ip -o link show dev up4096";
    let all = host.shell(&format!("{inside}; {own}")).ok()?
        + "\n"
        + &container.shell("ip -o link show eth0").ok()?;
    let mtu = |line: &str| Some(line.split(" mtu ").nth(1)?.split(' ').next()?.to_owned());
    Ok(all.lines().filter_map(mtu).collect())
}

/// What a client outside may send in one piece on a connection to a published port.
fn segment(client: &Namespace, to: &str) -> Result<u32> {
    let script = format!("exec 3<>/dev/tcp/{to}/80; ss -tinH dst {to}");
    let shown = client.shell(&script).ok()?;
    let mss = shown.split_whitespace().find_map(|word| word.strip_prefix("mss:")?.parse().ok());
    mss.ok_or_else(|| anyhow::anyhow!("no mss in {shown}"))
}

fn set_mtu(lab: &Lab, cluster: &Cluster, mtu: u32) -> Result<()> {
    let hosts = cluster.daemons.iter().map(|daemon| daemon.host());
    for host in hosts {
        let change = format!("ip link set {} mtu {mtu}", host.name());
        // A switch takes what its hosts send.
        lab.switch(&change)?;
        host.shell(&format!("ip link set eth0 mtu {mtu}")).ok()?;
    }
    Ok(())
}

#[test]
fn the_underlay_changes_and_networks_go_while_nobody_looks() {
    scenario("underlay", |lab| {
        let mut cluster = Cluster::three(lab)?;
        let (vm1, vm3) = (cluster.vm1().clone(), cluster.vm3().clone());
        vm3.shell(OF_OTHERS).ok()?;
        let of_others = vm3.shell(LOOK_AT_OTHERS).ok()?;
        let subnets = ["--subnet", "10.50.0.0/24", "--subnet", "fd00:50::/64", "blue"];
        vm1.meshctl(&[&["network", "create"], &subnets[..]].concat()).ok()?;
        vm1.meshctl(&["service", "create", "--name", "web", "--network", "blue", "--publish", "80:80"])
            .ok()?;
        let spec = |name| ReplicaSpec { name, network: Some("blue"), service: Some("web"), port: 80 };
        let (web1, web3) = (Replica::start(&vm1, spec("web1"))?, Replica::start(&vm3, spec("web3"))?);
        let (there, here) = (web1.namespace()?, web3.namespace()?);
        let client = lab.client("client")?;
        cluster.answer_in_turn(&client, 80, &["web1", "web3"])?;

        let stream = Stream::start(&there, &here, &cluster.address("web1")?)?;
        for mtu in [1400, 9000, 1500] {
            set_mtu(lab, &cluster, mtu)?;
            within(FOLLOWED, &format!("everything follows the underlay's {mtu}"), || {
                let found = mtus(&vm3, &here)?;
                ensure!(found == BTreeSet::from([(mtu - 50).to_string()]), "{found:?}");
                // Less IP, TCP and its time stamps; the client's own interface takes 1500.
                let (found, expected) = (segment(&client, &vm3.ip().to_string())?, (mtu - 50).min(1500) - 52);
                ensure!(found == expected, "segments of {found}, not {expected}");
                Ok(())
            })?;
            stream.goes_on()?;
        }
        // What a route says counts as well.
        vm3.shell("ip route add 10.77.0.11/32 dev eth0 mtu 1450").ok()?;
        within(FOLLOWED, "the route is followed", || {
            let found = mtus(&vm3, &here)?;
            ensure!(found == BTreeSet::from(["1400".to_owned()]), "{found:?}");
            Ok(())
        })?;
        stream.goes_on()?;
        vm3.shell("ip route del 10.77.0.11/32").ok()?;
        within(FOLLOWED, "and is no more", || {
            ensure!(mtus(&vm3, &here)?.contains("1450"));
            Ok(())
        })?;

        // A network with a container and a port, which go while the daemon is away.
        let before = vm3.all_objects()?;
        vm1.meshctl(&["network", "create", "--subnet", "10.51.0.0/24", "red"]).ok()?;
        vm1.meshctl(&["service", "create", "--name", "stray", "--network", "red", "--publish", "81:80"])
            .ok()?;
        let stray = ReplicaSpec { name: "stray1", network: Some("red"), service: Some("stray"), port: 80 };
        let stray = Replica::start(&vm3, stray)?;
        cluster.answer_in_turn(&client, 81, &["stray1"])?;
        ensure!(unchanged(&before, &vm3.all_objects()?).is_err());
        cluster.daemons[2].kill()?;
        drop(stray);
        vm1.meshctl(&["endpoint", "rm", "stray1"]).ok()?;
        vm1.meshctl(&["service", "rm", "stray"]).ok()?;
        vm1.meshctl(&["network", "rm", "red"]).ok()?;
        stream.goes_on()?;
        cluster.daemons[2].start()?;
        within(CONVERGES, "nothing is left of it", || unchanged(&before, &vm3.all_objects()?))?;
        cluster.answer_in_turn(&client, 80, &["web1", "web3"])?;
        stream.goes_on()?;

        let left_alone = || -> Result<()> {
            let now = vm3.shell(LOOK_AT_OTHERS).ok()?;
            ensure!(now == of_others, "of others: {of_others}\nnow: {now}");
            Ok(())
        };
        left_alone()?;
        cluster.daemons[2].terminate()?;
        cluster.daemons[2].start()?;
        within(CONVERGES, "the node is back", || vm3.meshctl(&["status"]).ok())?;
        vm3.meshctl(&["cluster", "leave", "--force"]).ok()?;
        left_alone()
    });
}
