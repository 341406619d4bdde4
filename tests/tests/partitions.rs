//! Partitions between hosts: changes are attempted on every side, and once healed all nodes agree again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use std::{env, thread};

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::Machine;
use mesh_tests::{
    Background, Cluster, Container, Host, Lab, Namespace, Outcome, Partition, Replica, ReplicaSpec,
};
use mesh_tests::{field, scenario, shares, within};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;

/// How long after a partition everything may take to be whole again.
const HEALS: Duration = Duration::from_secs(5);
/// How many partitions there are, and how long they last, unless told.
const SHORT: (u32, u64) = (3, 3);
const REPLICAS: [&str; 3] = ["web1", "web2", "web3"];

/// Which host is deaf to which, by their numbers.
struct Plan {
    what: String,
    deaf: Vec<(usize, usize)>,
}

impl Plan {
    /// What each run begins with, whatever chance brings after it: a worker is cut off, then the first manager.
    fn first(round: u32) -> Option<Self> {
        let isolated = |name: &str, deaf: [(usize, usize); 4]| {
            Some(Self { what: format!("{name} is isolated"), deaf: deaf.to_vec() })
        };
        match round {
            1 => isolated("vm2", [(1, 0), (0, 1), (1, 2), (2, 1)]),
            2 => isolated("vm1", [(0, 1), (1, 0), (0, 2), (2, 0)]),
            _ => None,
        }
    }

    /// One of the ways in which a network of three fails.
    fn random(rng: &mut StdRng) -> Self {
        let mut order = [0, 1, 2];
        order.shuffle(rng);
        let [a, b, c] = order;
        let both = |a, b| [(a, b), (b, a)];
        let name = |number: usize| format!("vm{}", number + 1);
        let (what, deaf) = match rng.random_range(0..6) {
            0 | 1 => (format!("{} is isolated", name(a)), [both(a, b), both(a, c)].concat()),
            2 => ("all are isolated".to_owned(), [both(a, b), both(a, c), both(b, c)].concat()),
            3 => (format!("{} and {} are apart", name(a), name(b)), both(a, b).to_vec()),
            4 => (format!("{} hears nobody", name(a)), vec![(a, b), (a, c)]),
            _ => (format!("{} is heard by nobody", name(a)), vec![(b, a), (c, a)]),
        };
        Self { what, deaf }
    }
}

/// A cluster with a service, and a container on each node to look from.
struct Scene {
    cluster: Cluster,
    client: Machine,
    replicas: Vec<Replica>,
    _waiting: Vec<Background>,
    /// One on each node.
    containers: Vec<Namespace>,
}

/// A change that was attempted during a partition, and how it went.
struct Attempt {
    kind: &'static str,
    name: String,
    outcome: Outcome,
}

impl Scene {
    fn new(lab: &Lab, cluster: Cluster) -> Result<Self> {
        let vm1 = cluster.vm1();
        vm1.meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;
        vm1.meshctl(&["service", "create", "--name", "web", "--network", "blue", "--publish", "80:80"])
            .ok()?;
        let (mut replicas, mut waiting, mut containers) = (Vec::new(), Vec::new(), Vec::new());
        for (host, name) in hosts(&cluster).into_iter().zip(REPLICAS) {
            let spec = ReplicaSpec { name, network: Some("blue"), service: Some("web"), port: 80 };
            replicas.push(Replica::start(host, spec)?);
            let container = format!("c-{}", host.name());
            let process = host.run(&["--network", "blue", "--name", &container], &["sleep", "infinity"])?;
            containers.push(host.of_process(&container, process.child()?));
            waiting.push(process);
        }
        let client = lab.client("client")?;
        cluster.answer_in_turn(&client, 80, &REPLICAS)?;
        Ok(Self { cluster, client, replicas, _waiting: waiting, containers })
    }

    /// One partition: changes are attempted on every side while it lasts; what is acknowledged stays, all is whole soon
    /// after, and what was refused can be done then. Returns how long the healing took.
    fn survive(&self, lab: &Lab, round: u32, plan: &Plan, length: Duration) -> Result<Duration> {
        let hosts = hosts(&self.cluster);
        let targets: Vec<Container> = hosts
            .iter()
            .map(|host| lab.container(&format!("r{round}-{}", host.name())))
            .collect::<Result<_>>()?;
        let partition = Partition::new(plan.deaf.iter().map(|&(a, b)| (hosts[a], hosts[b])))?;
        let (attempts, healing) = thread::scope(|scope| {
            let attempts: Vec<_> = hosts
                .iter()
                .zip(&targets)
                .map(|(host, target)| scope.spawn(move || attempt(host, target, round)))
                .collect();
            thread::sleep(length);
            partition.heal()?;
            let healing = self.whole_within(HEALS, &BTreeSet::new());
            let attempts: Vec<Attempt> = attempts
                .into_iter()
                .flat_map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect();
            anyhow::Ok((attempts, healing?))
        })?;

        let mut acknowledged = BTreeSet::new();
        for attempt in attempts {
            let there = self.exists(attempt.kind, &attempt.name);
            let made = match attempt.outcome.ok() {
                Ok(_) => there.map(|()| true).context("what was acknowledged is gone")?,
                Err(_) => {
                    attempt.outcome.refused("manager").context(attempt.kind)?;
                    let unknown = attempt.outcome.stderr.contains("look before you repeat it");
                    ensure!(unknown || there.is_err(), "refused, and there: {:?}", attempt.outcome);
                    there.is_ok()
                }
            };
            if made && attempt.kind == "endpoint" {
                acknowledged.insert(attempt.name);
            }
        }
        self.whole_within(HEALS, &acknowledged)?;
        for (host, target) in hosts.iter().zip(&targets) {
            if !acknowledged.contains(target.name()) {
                connect(host, target).ok().context("what was refused is done once all is well")?;
            }
            host.meshctl(&["network", "disconnect", "blue", &target.target()]).ok()?;
        }
        for (kind, prefix) in [("service", "s"), ("network", "n")] {
            for host in &hosts {
                let name = format!("{prefix}{round}-{}", host.name());
                if self.exists(kind, &name).is_ok() {
                    self.cluster.vm1().meshctl(&[kind, "rm", &name]).ok()?;
                }
            }
        }
        Ok(healing)
    }

    fn exists(&self, kind: &str, name: &str) -> Result<()> {
        let all = self.cluster.list(&[kind, "ls"])?;
        ensure!(all.iter().any(|one| one["name"] == name), "no {kind} {name}: {all:?}");
        Ok(())
    }

    /// Waits until names, FDB, VIP and published port are whole on every node; `new` are endpoints that must be there
    /// too. Returns how long it took.
    fn whole_within(&self, deadline: Duration, new: &BTreeSet<String>) -> Result<Duration> {
        let start = Instant::now();
        within(deadline, "all is whole", || self.whole(new))?;
        // A look that began in time may have waited for what came too late.
        let taken = start.elapsed();
        ensure!(taken <= deadline, "all is whole after {taken:.1?}, not within {deadline:?}");
        Ok(taken)
    }

    fn whole(&self, new: &BTreeSet<String>) -> Result<()> {
        let endpoints = self.cluster.list(&["endpoint", "ls"])?;
        let nodes = self.cluster.list(&["node", "ls"])?;
        ensure!(nodes.iter().all(|node| field(node, "status") == "ready"), "{nodes:?}");
        distinct(
            &endpoints,
            &self.cluster.list(&["service", "ls"])?,
            &self.cluster.list(&["network", "ls"])?,
        )?;
        let names: BTreeMap<&str, &str> = endpoints
            .iter()
            .filter_map(|e| Some((e["name"].as_str()?, e["addresses"][0].as_str()?)))
            .collect();
        let lacking: Vec<_> = new.iter().filter(|name| !names.contains_key(name.as_str())).collect();
        ensure!(lacking.is_empty(), "acknowledged and gone: {lacking:?}");
        let vip = self.cluster.vip("web")?;
        thread::scope(|scope| {
            let looks: Vec<_> = hosts(&self.cluster)
                .into_iter()
                .zip(&self.containers)
                .map(|(host, container)| {
                    let (endpoints, nodes, names, vip) = (&endpoints, &nodes, &names, &vip);
                    scope.spawn(move || {
                        forwarding(host, endpoints, nodes)?;
                        resolves(container, names, vip)?;
                        let each = REPLICAS.map(|replica| (replica, 2));
                        shares(&container.answers(&format!("http://{vip}/"), 6)?, &each)
                    })
                })
                .collect();
            looks
                .into_iter()
                .try_for_each(|look| look.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
        for url in self.cluster.urls(80) {
            shares(&self.client.answers(&url, 3)?, &REPLICAS.map(|replica| (replica, 1)))?;
        }
        Ok(())
    }
}

fn hosts(cluster: &Cluster) -> [&Host; 3] {
    [cluster.vm1(), cluster.vm2(), cluster.vm3()]
}

fn connect(host: &Host, target: &Container) -> Outcome {
    host.meshctl(&["network", "connect", "--name", target.name(), "blue", &target.target()])
}

/// The changes that a host's user tries while the network is broken.
fn attempt(host: &Host, target: &Container, round: u32) -> Vec<Attempt> {
    let network = format!("n{round}-{}", host.name());
    let service = format!("s{round}-{}", host.name());
    let endpoint = target.name().to_owned();
    let networks = host.meshctl(&["network", "create", &network]);
    let services = host.meshctl(&["service", "create", "--name", &service, "--network", "blue"]);
    vec![
        Attempt { kind: "endpoint", name: endpoint, outcome: connect(host, target) },
        Attempt { kind: "network", name: network, outcome: networks },
        Attempt { kind: "service", name: service, outcome: services },
    ]
}

/// No address, VNI or VIP is anybody else's too.
fn distinct(endpoints: &[Value], services: &[Value], networks: &[Value]) -> Result<()> {
    let mut owners: BTreeMap<String, &Value> = BTreeMap::new();
    let mut claim = |what: String, owner| match owners.insert(what.clone(), owner) {
        Some(other) => Err(anyhow::anyhow!("{what} belongs to {owner} and to {other}")),
        None => Ok(()),
    };
    for network in networks {
        claim(format!("VNI {}", network["vni"]), &network["name"])?;
        for subnet in network["subnets"].as_array().into_iter().flatten() {
            claim(format!("subnet {}", subnet["cidr"]), &network["name"])?;
        }
    }
    for endpoint in endpoints {
        claim(format!("MAC {}", endpoint["mac"]), &endpoint["name"])?;
        for address in endpoint["addresses"].as_array().into_iter().flatten() {
            claim(format!("{} {address}", endpoint["network"]), &endpoint["name"])?;
        }
    }
    for service in services {
        for on in service["networks"].as_array().into_iter().flatten() {
            for address in on["addresses"].as_array().into_iter().flatten() {
                claim(format!("{} {address}", on["network"]), &service["name"])?;
            }
        }
    }
    Ok(())
}

/// A node forwards to every endpoint of its networks where it is, and to none that is gone.
fn forwarding(host: &Host, endpoints: &[Value], nodes: &[Value]) -> Result<()> {
    let look =
        "for net in $0/netns/*; do nsenter --net=$net bridge fdb show; done | awk '/ dst / {print $1, $5}'";
    let found = host.output(&["bash", "-c", look, &host.run_dir()]).ok()?;
    // Bridges of nodes have MAC addresses of another prefix.
    let found: BTreeSet<String> =
        found.lines().filter(|line| line.starts_with("02:")).map(str::to_owned).collect();
    let address = |node: &str| {
        let node = nodes.iter().find(|known| known["name"] == node)?;
        Some(node["address"].as_str()?.rsplit_once(':')?.0.to_owned())
    };
    let elsewhere = endpoints.iter().filter(|e| e["network"] == "blue" && e["node"] != host.name());
    let wanted: Option<BTreeSet<String>> = elsewhere
        .map(|e| Some(format!("{} {}", e["mac"].as_str()?, address(e["node"].as_str()?)?)))
        .collect();
    let wanted = wanted.context("endpoints without MAC or node")?;
    ensure!(found == wanted, "FDB of {}: {found:?} instead of {wanted:?}", host.name());
    Ok(())
}

/// Every name is answered as the manager tells it.
fn resolves(container: &Namespace, names: &BTreeMap<&str, &str>, vip: &str) -> Result<()> {
    let mut expected: Vec<&str> = names.values().copied().chain([vip]).collect();
    expected.extend(REPLICAS.iter().filter_map(|replica| names.get(replica)));
    expected.sort_unstable();
    let asked: Vec<&str> = names.keys().copied().chain(["web", "tasks.web"]).collect();
    let found = container.dig(&asked)?;
    ensure!(found == expected, "names in {}: {found:?} instead of {expected:?}", container.name());
    Ok(())
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

/// `MESH_PARTITIONS`, `MESH_PARTITION_SECONDS` and `MESH_SEED` change how many there are, how long they last at most,
/// and which (`scripts/soak partitions`).
fn partitions(lab: &Lab, cluster: Cluster) -> Result<()> {
    let count = number("MESH_PARTITIONS").and_then(|count| u32::try_from(count).ok()).unwrap_or(SHORT.0);
    let longest = number("MESH_PARTITION_SECONDS").unwrap_or(SHORT.1).max(SHORT.1);
    let seed = number("MESH_SEED").unwrap_or_else(rand::random);
    println!("{count} partitions; MESH_SEED={seed} repeats them");
    let mut rng = StdRng::seed_from_u64(seed);
    let scene = Scene::new(lab, cluster)?;
    for round in 1..=count {
        let plan = Plan::first(round).unwrap_or_else(|| Plan::random(&mut rng));
        let length = Duration::from_secs(rng.random_range(SHORT.1..=longest));
        let what = format!("partition {round}, seed {seed}: {} for {length:?}", plan.what);
        let healing = scene.survive(lab, round, &plan, length).with_context(|| what.clone())?;
        println!("{what}: whole after {healing:.1?}");
    }
    drop(scene.replicas);
    Ok(())
}

#[test]
fn partitions_heal() {
    scenario("partitions", |lab| partitions(lab, Cluster::three(lab)?));
}

#[test]
fn partitions_between_managers_heal() {
    scenario("partitions of managers", |lab| partitions(lab, Cluster::managers(lab)?));
}
