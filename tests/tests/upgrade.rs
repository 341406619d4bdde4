//! The daemon ends, is killed, is upgraded: names, the L7 ingress and every connection go on.

use std::fs;

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::Machine;
use mesh_tests::{
    Background, CONVERGES, Cluster, Container, Conversations, Echo, Host, Kind, Lab, Load, Meshd, Namespace,
    scenario, within,
};

/// Ports of one service: through the kernel and through the proxy.
const KERNEL: u16 = 90;
const PROXY: u16 = 91;

/// A service of echo servers on vm1 and vm2, a container on vm3 that asks for names, and a client outside.
struct Traffic {
    _replicas: Vec<Container>,
    _waiting: Background,
    container: Namespace,
    client: Machine,
    vip: String,
}

impl Traffic {
    fn new(lab: &Lab, cluster: &Cluster) -> Result<Self> {
        let (vm1, vm3) = (cluster.vm1(), cluster.vm3());
        vm1.meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;
        let kernel = format!("published={KERNEL},target=7");
        let proxy = format!("published={PROXY},target=7,protocol=http");
        let service = ["service", "create", "--name", "echo", "--network", "blue"];
        vm1.meshctl(&[&service[..], &["--publish", &kernel, "--publish", &proxy]].concat()).ok()?;
        let mut replicas = Vec::new();
        for (host, name) in [(vm1, "echo1"), (cluster.vm2(), "echo2")] {
            let container = lab.container(name)?;
            Echo::start(&container, 7)?;
            let connect = ["network", "connect", "--name", name, "--service", "echo", "blue"];
            host.meshctl(&[&connect[..], &[&container.target()]].concat()).ok()?;
            replicas.push(container);
        }
        let waiting = vm3.run(&["--network", "blue", "--name", "c"], &["sleep", "infinity"])?;
        let container = vm3.of_process("c", waiting.child()?);
        let client = lab.client("client")?;
        let vip = cluster.vip("echo")?;
        let traffic = Self { _replicas: replicas, _waiting: waiting, container, client, vip };
        for host in [vm1, cluster.vm2(), vm3] {
            traffic.is_served(host)?;
        }
        Ok(traffic)
    }

    fn is_served(&self, host: &Host) -> Result<()> {
        within(CONVERGES, "the port of the proxy answers", || {
            ensure!(self.client.curl(&format!("http://{}:{PROXY}/here", host.ip()))? == "/here");
            Ok(())
        })?;
        within(CONVERGES, "the name is answered", || {
            ensure!(self.container.dig(&["echo"])? == [self.vip.as_str()]);
            Ok(())
        })
    }

    fn converse(&self, kinds: &[Kind], hosts: &[&Host], count: usize) -> Result<Conversations> {
        let place = |n: usize| {
            let (kind, host) = (kinds[n % kinds.len()], hosts[n / kinds.len() % hosts.len()]);
            (kind, host.ip(), if kind == Kind::Kernel { KERNEL } else { PROXY })
        };
        Conversations::start(&self.client, &(0..count).map(place).collect::<Vec<_>>())
    }
}

/// What asks again and again, and must always be answered.
fn constant(traffic: &Traffic, hosts: &[&Host]) -> Result<Vec<Load>> {
    let url = |host: &&Host| Load::start(&traffic.client, &format!("http://{}:{PROXY}/same", host.ip()));
    let mut loads = hosts.iter().map(url).collect::<Result<Vec<_>>>()?;
    let dig = "dig +short +time=5 +tries=1 echo";
    loads.push(Load::repeat(&traffic.container, "dig", dig)?);
    loads.push(Load::repeat(&traffic.container, "dig-tcp", &format!("{dig} +tcp"))?);
    Ok(loads)
}

fn none_failed(traffic: &Traffic, loads: Vec<Load>) -> Result<()> {
    for load in loads {
        let answers = load.stop()?;
        let right = |answer: &String| *answer == "/same" || *answer == traffic.vip;
        ensure!(answers.keys().all(right), "{answers:?}");
    }
    Ok(())
}

fn up_to_date(daemon: &Meshd) -> Result<()> {
    within(CONVERGES, "the node is up to date", || daemon.host().meshctl(&["status"]).ok().map(drop))
}

/// Whether so many processes were told by now that another one serves.
fn handed_over(host: &Host, count: usize) -> Result<()> {
    within(CONVERGES, "another process serves", || {
        let log = fs::read_to_string(host.file(host.log_path()))?;
        let told = log.matches("another process serves from now on").count();
        ensure!(told == count, "{told} of {count}");
        Ok(())
    })
}

#[test]
fn a_hundred_connections_live_through_stops_kills_and_upgrades_of_every_daemon() {
    scenario("upgrades", |lab| upgraded(lab, Cluster::three(lab)?));
}

#[test]
fn a_hundred_connections_live_through_stops_kills_and_upgrades_of_managers_with_etcd() {
    scenario("upgraded managers", |lab| upgraded(lab, Cluster::managers(lab)?));
}

fn upgraded(lab: &Lab, mut cluster: Cluster) -> Result<()> {
    let traffic = Traffic::new(lab, &cluster)?;
    let hosts = [cluster.vm1().clone(), cluster.vm2().clone(), cluster.vm3().clone()];
    let hosts: Vec<&Host> = hosts.iter().collect();
    let kinds = [Kind::Kernel, Kind::Tunnel, Kind::KeepAlive];
    let connections = traffic.converse(&kinds, &hosts, 100)?;
    let inside = Conversations::start(&traffic.container, &[(Kind::Kernel, traffic.vip.parse()?, 7); 10])?;
    let loads = constant(&traffic, &hosts)?;

    type Event = fn(&mut Meshd) -> Result<()>;
    let events: [(&str, Event); 3] = [
        ("stop", |daemon| daemon.terminate().and_then(|_| daemon.start())),
        ("kill", Meshd::restart),
        ("upgrade", Meshd::upgrade),
    ];
    for (event, happen) in events {
        for daemon in &mut cluster.daemons {
            let before = daemon.fronts()?;
            happen(daemon)?;
            up_to_date(daemon)?;
            connections.go_on(3)?;
            loads.iter().try_for_each(|load| load.go_on(3))?;
            let count = if event == "upgrade" { 2 } else { 1 };
            within(CONVERGES, "one serves, one more finishes after an upgrade", || {
                let after = daemon.fronts()?;
                ensure!(
                    before.len() == 1 && after.contains(&before[0]),
                    "{event}: {before:?}, then {after:?}"
                );
                ensure!(after.len() == count, "{event}: {after:?}");
                Ok(())
            })?;
            connections.go_on(3)?;
            loads.iter().try_for_each(|load| load.go_on(3))?;
        }
    }
    connections.stop()?;
    inside.stop().context("from a container to the VIP")?;
    none_failed(&traffic, loads)?;
    // With their last connections the old ones end.
    for daemon in &cluster.daemons {
        within(CONVERGES, "only the new one is left", || {
            let fronts = daemon.fronts()?;
            ensure!(fronts.len() == 1, "{fronts:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// For as long as no daemon runs, too: and what comes afterwards is followed again.
#[test]
fn without_a_daemon_names_and_the_proxy_go_on() {
    scenario("away", |lab| {
        let mut cluster = Cluster::three(lab)?;
        let traffic = Traffic::new(lab, &cluster)?;
        let vm3 = cluster.vm3().clone();
        let kinds = [Kind::Kernel, Kind::Tunnel, Kind::KeepAlive];
        let connections = traffic.converse(&kinds, &[&vm3], 9)?;
        let loads = constant(&traffic, &[&vm3])?;
        cluster.daemons[2].kill()?;
        connections.go_on(20)?;
        loads.iter().try_for_each(|load| load.go_on(20))?;
        // Meanwhile something changes.
        let other = ["service", "create", "--name", "other", "--network", "blue"];
        cluster.vm1().meshctl(&other).ok()?;
        cluster.daemons[2].start()?;
        up_to_date(&cluster.daemons[2])?;
        let vip = cluster.vip("other")?;
        within(CONVERGES, "the new name is answered", || {
            ensure!(traffic.container.dig(&["other"])? == [vip.as_str()]);
            Ok(())
        })?;
        connections.stop()?;
        none_failed(&traffic, loads)
    });
}

/// `status` says what runs: one process serves, the others finish what they began.
fn is_shown(daemon: &Meshd) -> Result<()> {
    within(CONVERGES, "status shows the front processes", || {
        let status = daemon.host().meshctl(&["-o", "json", "status"]).json()?;
        let shown = status["fronts"].as_array().context("no fronts")?;
        let mut pids: Vec<u32> =
            shown.iter().filter_map(|front| front["pid"].as_u64()?.try_into().ok()).collect();
        let serving: Vec<_> = shown.iter().filter(|front| front["state"] == "serving").collect();
        let mut fronts = daemon.fronts()?;
        pids.sort_unstable();
        fronts.sort_unstable();
        ensure!(pids == fronts && serving.len() == 1, "{shown:?}, there are {fronts:?}");
        ensure!(serving[0]["version"] == status["version"], "{status}");
        let line = format!("process {} serves", serving[0]["pid"]);
        ensure!(daemon.host().meshctl(&["status"]).ok()?.contains(&line), "not in the table: {line}");
        Ok(())
    })
}

/// Each generation keeps its tunnels until they close, and ends then.
#[test]
fn upgrades_in_a_row_keep_the_tunnels_of_each() {
    scenario("generations", |lab| {
        let mut cluster = Cluster::three(lab)?;
        let traffic = Traffic::new(lab, &cluster)?;
        let vm3 = cluster.vm3().clone();
        let first = traffic.converse(&[Kind::Tunnel], &[&vm3], 2)?;
        cluster.daemons[2].upgrade()?;
        handed_over(&vm3, 1)?;
        let second = traffic.converse(&[Kind::Tunnel], &[&vm3], 2)?;
        cluster.daemons[2].upgrade()?;
        handed_over(&vm3, 2)?;
        traffic.is_served(&vm3)?;
        let daemon = &mut cluster.daemons[2];
        within(CONVERGES, "there are three", || {
            ensure!(daemon.fronts()?.len() == 3, "{:?}", daemon.fronts());
            Ok(())
        })?;
        is_shown(daemon)?;
        // Found again, also those that only finish.
        daemon.restart()?;
        up_to_date(daemon)?;
        first.go_on(3)?;
        second.go_on(3)?;
        let left = |count| {
            within(CONVERGES, "one less is left", || {
                ensure!(daemon.fronts()?.len() == count, "{:?}", daemon.fronts());
                Ok(())
            })
        };
        first.stop()?;
        left(2)?;
        second.go_on(3)?;
        is_shown(daemon)?;
        second.stop()?;
        left(1)?;
        is_shown(daemon)?;
        traffic.is_served(&vm3)
    });
}

#[test]
fn a_killed_front_is_followed_by_another_on_the_same_sockets() {
    scenario("killed front", |lab| {
        let cluster = Cluster::three(lab)?;
        let traffic = Traffic::new(lab, &cluster)?;
        let vm3 = cluster.vm3();
        let kernel = traffic.converse(&[Kind::Kernel], &[vm3], 3)?;
        let url = format!("http://{}:{PROXY}/same", vm3.ip());
        let proxy = Load::start(&traffic.client, &url)?;
        for _ in 0..3 {
            let [front] = cluster.daemons[2].fronts()?[..] else { anyhow::bail!("not one front") };
            vm3.output(&["kill", "-KILL", &front.to_string()]).ok()?;
            within(CONVERGES, "another serves", || {
                let fronts = cluster.daemons[2].fronts()?;
                ensure!(fronts.len() == 1 && fronts != [front], "{fronts:?}");
                Ok(())
            })?;
            proxy.go_on(5)?;
            traffic.is_served(vm3)?;
        }
        kernel.stop()?;
        // The one request that was under way each time: nothing was refused.
        let failed: Vec<_> = proxy.stop()?.into_keys().filter(|answer| answer != "/same").collect();
        ensure!(failed.len() <= 6 && failed.iter().all(|line| !line.contains("(7)")), "{failed:?}");
        within(CONVERGES, "nothing is degraded any more", || {
            let status = vm3.meshctl(&["status"]).ok()?;
            ensure!(!status.contains("L7 ingress"), "{status}");
            Ok(())
        })
    });
}

/// What talks to strangers can't do what the daemon can.
#[test]
fn a_front_has_one_capability_and_gets_no_more() {
    scenario("confined", |lab| {
        let cluster = Cluster::three(lab)?;
        let _traffic = Traffic::new(lab, &cluster)?;
        let vm3 = cluster.vm3();
        let [front] = cluster.daemons[2].fronts()?[..] else { anyhow::bail!("not one front") };
        let status = vm3.output(&["cat", &format!("/proc/{front}/status")]).ok()?;
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_whitespace().last().unwrap_or_default().to_owned()
        };
        // CAP_SYS_ADMIN is number 21.
        for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
            ensure!(field(set) == "0000000000200000", "{set} {}", field(set));
        }
        ensure!(field("CapInh:") == "0000000000000000" && field("NoNewPrivs:") == "1", "{status}");
        // Nobody who waits for the end of the daemon's output waits for it.
        for stream in 0..3 {
            let open = vm3.output(&["readlink", &format!("/proc/{front}/fd/{stream}")]).ok()?;
            ensure!(open == "/dev/null", "{stream}: {open}");
        }
        let socket = vm3.file(format!("{}/front.{front}.sock", vm3.run_dir()));
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(socket)?.permissions());
        ensure!(mode & 0o777 == 0o600, "{mode:o}");
        Ok(())
    });
}

#[test]
fn it_ends_with_the_membership_on_an_interrupt_and_without_its_directory() {
    scenario("ends", |lab| {
        let mut cluster = Cluster::three(lab)?;
        let traffic = Traffic::new(lab, &cluster)?;
        let [vm1, vm2, vm3] = [cluster.vm1().clone(), cluster.vm2().clone(), cluster.vm3().clone()];
        let runs = |host: &Host, front: u32| host.output(&["kill", "-0", &front.to_string()]).code == Some(0);
        let only = |daemon: &Meshd| -> Result<u32> {
            let fronts = daemon.fronts()?;
            ensure!(fronts.len() == 1, "{fronts:?}");
            Ok(fronts[0])
        };
        let [first, second, third] =
            [only(&cluster.daemons[0])?, only(&cluster.daemons[1])?, only(&cluster.daemons[2])?];
        drop(traffic);

        vm3.meshctl(&["cluster", "leave", "--force"]).ok()?;
        ensure!(!runs(&vm3, third) && cluster.daemons[2].fronts()?.is_empty(), "left by the membership");

        cluster.daemons[1].interrupt()?;
        ensure!(!runs(&vm2, second) && cluster.daemons[1].fronts()?.is_empty(), "left by an interrupt");

        cluster.daemons[0].kill()?;
        ensure!(runs(&vm1, first), "ended with a killed daemon");
        fs::remove_file(vm1.file(format!("{}/front.{first}.sock", vm1.run_dir())))?;
        within(CONVERGES, "it ends without its socket", || {
            ensure!(!runs(&vm1, first), "runs");
            Ok(())
        })
    });
}
