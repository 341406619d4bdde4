//! Docker's daemon and the mesh's, each while the other one is away, dies half-way or comes later.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::{
    CONVERGES, Cluster, Conversations, Docker, Echo, Host, Kind, Lab, Objects, scenario, unchanged, within,
};

/// How long an endpoint may stay that Docker made and knows nothing of any more: it is given half a minute.
const FORGOTTEN: Duration = Duration::from_secs(60);
const SUBNETS: [&str; 2] = ["--subnet", "10.50.0.0/24"];
/// The only thing that containers which do nothing have to do, and a signal that ends them at once.
const IDLE: [&str; 2] = ["sleep", "infinity"];
const ENDS: [&str; 2] = ["--stop-signal", "KILL"];

/// A cluster with the network `blue` and the service `web`, and a Docker on vm2 that has the network too.
fn one_docker(lab: &Lab, of_dockerd: &[&str], of_network: &[&str]) -> Result<(Cluster, Docker)> {
    let cluster = Cluster::three(lab)?;
    cluster.vm1().meshctl(&[&["network", "create"], &SUBNETS[..], &["blue"]].concat()).ok()?;
    let service = ["service", "create", "--name", "web", "--network", "blue", "--publish", "7000:7"];
    cluster.vm1().meshctl(&service).ok()?;
    let docker = Docker::start_with(cluster.vm2(), of_dockerd)?;
    docker.run(&[&["network", "create", "-d", "meshd"], of_network, &["blue"]].concat()).ok()?;
    Ok((cluster, docker))
}

/// What the networks hold on a host; what Docker's own bridge leaves there is not looked at, nor what the test holds itself.
fn of_networks(host: &Host) -> Result<Objects> {
    let mut objects = host.all_objects()?;
    objects.remove("objects of the host");
    objects
        .get_mut("namespaces")
        .into_iter()
        .for_each(|found| found.retain(|path| !path.contains("docker-")));
    Ok(objects)
}

fn nothing_left(docker: &Docker, before: &Objects) -> Result<()> {
    within(CONVERGES, "the networks hold what they did", || unchanged(before, &of_networks(docker.host())?))?;
    docker.leaves_nothing_waiting()
}

fn endpoints(cluster: &Cluster, deadline: Duration, count: impl Fn(usize) -> bool) -> Result<()> {
    within(deadline, "so many endpoints are there", || {
        let found = cluster.list(&["endpoint", "ls"])?;
        ensure!(count(found.len()), "{found:#?}");
        Ok(())
    })
}

/// Docker dies while it makes containers, and requests come without those that should follow.
#[test]
fn containers_that_vanish_half_way_leave_nothing() {
    scenario("docker, half-way", |lab| {
        let addresses = ["--ipam-driver", "meshd", "--subnet", "10.50.0.0/24"];
        let (cluster, mut docker) = one_docker(lab, &[], &addresses)?;
        let vm2 = cluster.vm2().clone();
        docker.run(&["network", "create", "-d", "meshd", "--opt", "mesh.network=blue", "plain"]).ok()?;
        let before = of_networks(&vm2)?;
        let names = ["c1", "c2", "c3"];
        for reached in [1, names.len()] {
            docker.container("c0", &ENDS, &IDLE)?;
            let begun = names.into_iter().zip(["blue", "plain", "blue"]).map(|(name, network)| {
                docker.spawn(
                    &[&["run", "--name", name, "--network", network], &ENDS[..], &["box"], &IDLE].concat(),
                )
            });
            let begun = begun.collect::<Result<Vec<_>>>()?;
            let connecting = docker.spawn(&["network", "connect", "plain", "c0"])?;
            endpoints(&cluster, CONVERGES, |count| count >= reached)?;
            docker.kill()?;
            drop((begun, connecting));
            docker.restart()?;
            let known = docker.run(&["ps", "--all", "--quiet"]).ok()?;
            docker.run(&[&["rm", "--force"], &known.lines().collect::<Vec<_>>()[..]].concat()).ok()?;
            endpoints(&cluster, FORGOTTEN, |count| count == 0)?;
            nothing_left(&docker, &before)?;
        }

        // Requests as Docker sends them, but not in its order, or not all.
        let id = |network: &str| docker.run(&["network", "inspect", "--format", "{{.Id}}", network]).ok();
        let (blue, plain) = (id("blue")?, id("plain")?);
        let of = |network: &str, endpoint: char, more: &str| {
            format!(r#"{{"NetworkID":"{network}","EndpointID":"{}"{more}}}"#, endpoint.to_string().repeat(64))
        };
        let done = |method: &str, body: &str| {
            let said = vm2.ask_plugin(method, body)?;
            ensure!(said.ends_with(" 200") && !said.contains("\"Err\""), "{method}: {said}");
            Ok(said)
        };
        let refused = |method: &str, body: &str, why: &str| {
            let said = vm2.ask_plugin(method, body)?;
            ensure!(said.contains(why), "{method}: {said}");
            Ok(())
        };
        let with_mac =
            |mac: &str| format!(r#","Interface":{{"Address":"172.18.0.9/16","MacAddress":"{mac}"}}"#);
        // Twice the same is once; another one of the same name is none.
        let create = of(&plain, 'a', &with_mac("02:42:ac:12:00:09"));
        let first = done("NetworkDriver.CreateEndpoint", &create)?;
        ensure!(done("NetworkDriver.CreateEndpoint", &create)? == first);
        let other = of(&plain, 'a', &with_mac("02:42:ac:12:00:0a"));
        refused("NetworkDriver.CreateEndpoint", &other, "such an endpoint already")?;
        // An address and nothing else; one with its endpoint, which is asked for twice.
        let address = |mac: &str, wanted: &str| {
            format!(
                r#"{{"PoolID":"subnet:10.50.0.0/24","Address":"{wanted}","Options":{{"com.docker.network.endpoint.macaddress":"{mac}"}}}}"#
            )
        };
        done("IpamDriver.RequestAddress", &address("02:42:0a:32:00:4d", "10.50.0.77"))?;
        done("IpamDriver.RequestAddress", &address("02:42:0a:32:00:4e", "10.50.0.78"))?;
        let interface = r#","Interface":{"Address":"10.50.0.78/24","MacAddress":"02:42:0a:32:00:4e"}"#;
        for _ in 0..2 {
            done("NetworkDriver.CreateEndpoint", &of(&blue, 'b', interface))?;
        }
        // A container that is gone before its interface is fetched.
        done("NetworkDriver.CreateEndpoint", &of(&plain, 'c', ""))?;
        done("NetworkDriver.Join", &of(&plain, 'c', r#","SandboxKey":"/run/nowhere""#))?;
        // One that leaves, and is never deleted.
        done("NetworkDriver.CreateEndpoint", &of(&plain, 'd', ""))?;
        done("NetworkDriver.Join", &of(&plain, 'd', r#","SandboxKey":"/run/nowhere-else""#))?;
        endpoints(&cluster, CONVERGES, |count| count == 5)?;
        done("NetworkDriver.Leave", &of(&plain, 'd', ""))?;
        refused("NetworkDriver.Join", &of(&plain, 'e', r#","SandboxKey":"/run/nowhere""#), "not known")?;
        endpoints(&cluster, CONVERGES, |count| count == 4)?;
        // Docker itself is not there to be asked.
        docker.kill()?;
        endpoints(&cluster, FORGOTTEN, |count| count == 0)?;
        nothing_left(&docker, &before)?;
        docker.restart()?;
        docker.run(&["run", "--rm", "--network", "blue", "--ip", "10.50.0.77", "box", "true"]).ok().map(drop)
    });
}

/// Docker does not try again what it could not start without a driver, or without the managers: that is made up for.
#[test]
fn containers_that_docker_gave_up_on_are_started() {
    scenario("docker, given up", |lab| {
        let (mut cluster, mut docker) = one_docker(lab, &[], &[])?;
        let always = ["--network", "blue", "--label", "mesh.service=web", "--restart", "always"];
        docker.container("always", &[&ENDS[..], &always].concat(), &IDLE)?;
        docker.container("once", &[&ENDS[..], &["--network", "blue"]].concat(), &IDLE)?;
        let unless_stopped = ["--network", "blue", "--restart", "unless-stopped"];
        docker.container("stopped", &[&ENDS[..], &unless_stopped].concat(), &IDLE)?;
        docker.run(&["stop", "stopped"]).ok()?;
        let error = |docker: &Docker, text: &str| {
            within(CONVERGES, "Docker has given up", || {
                let state = docker.inspect("always")?["State"].clone();
                ensure!(state["Running"] == false && state["Error"].to_string().contains(text), "{state}");
                Ok(())
            })
        };
        let started = |cluster: &Cluster, docker: &Docker| {
            within(CONVERGES, "the container runs", || {
                ensure!(docker.runs("always")?, "{:?}", docker.inspect("always")?["State"]);
                Ok(())
            })?;
            cluster.endpoints("web", "1/1")?;
            ensure!(!docker.runs("once")? && !docker.runs("stopped")?, "others run");
            Ok::<_, anyhow::Error>(())
        };
        // The host boots, and Docker is faster.
        docker.terminate()?;
        cluster.daemons[1].terminate()?;
        docker.host().shell(&format!("rm -f {}/meshd.sock", docker.host().docker_plugins())).ok()?;
        docker.restart()?;
        error(&docker, "plugin \\\"meshd\\\" not found")?;
        cluster.daemons[1].start()?;
        started(&cluster, &docker)?;
        // The only manager is away when the container ends.
        cluster.daemons[0].kill()?;
        docker.spawn(&["restart", "always"])?.wait(CONVERGES)?;
        error(&docker, "no manager answers")?;
        cluster.daemons[0].start()?;
        started(&cluster, &docker)
    });
}

/// `live-restore`: containers keep what they have, whichever of the daemons dies and comes back first.
#[test]
fn containers_of_a_docker_with_live_restore() {
    scenario("docker live-restore", |lab| {
        let (mut cluster, mut docker) = one_docker(lab, &["--live-restore"], &[])?;
        let (client, vm2) = (lab.client("client")?, cluster.vm2().clone());
        let far = lab.container("far")?;
        cluster.vm1().meshctl(&["network", "connect", "--name", "far", "blue", &far.target()]).ok()?;
        let before = of_networks(&vm2)?;
        docker.container("kept", &["--network", "blue", "--label", "mesh.service=web"], &IDLE)?;
        cluster.endpoints("web", "1/1")?;
        let kept = docker.namespace("kept")?;
        let _echo = Echo::start(&kept, 7)?;
        let places = [cluster.vm1(), &vm2].map(|host| (Kind::Kernel, host.ip(), 7000));
        let talks = within(CONVERGES, "the port leads there", || Conversations::start(&client, &places))?;
        let (records, names) = (cluster.list(&["endpoint", "ls"])?, [cluster.address("far")?]);
        let all_well = |cluster: &Cluster| {
            within(CONVERGES, "the name is found by Docker's resolver", || {
                ensure!(kept.dig(&["@127.0.0.11", "far"])? == names);
                Ok(())
            })?;
            within(CONVERGES, "the records are the same", || {
                let now = cluster.list(&["endpoint", "ls"])?;
                ensure!(now == records, "{now:#?}");
                Ok(())
            })?;
            talks.go_on(5)
        };
        all_well(&cluster)?;
        docker.kill()?;
        talks.go_on(5)?;
        docker.restart()?;
        all_well(&cluster)?;
        for docker_first in [true, false] {
            docker.kill()?;
            cluster.daemons[1].kill()?;
            talks.go_on(5)?;
            docker.begin().and_then(|()| if docker_first { docker.restart() } else { Ok(()) })?;
            cluster.daemons[1].start()?;
            docker.restart()?;
            all_well(&cluster)?;
        }
        talks.stop()?;
        docker.run(&["rm", "--force", "kept"]).ok()?;
        endpoints(&cluster, CONVERGES, |count| count == 1)?;
        nothing_left(&docker, &before)
    });
}
