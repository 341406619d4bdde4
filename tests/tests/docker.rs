//! Real Dockers on the hosts of a cluster: their containers are endpoints like all others.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Docker, Lab, Meshd, Objects, scenario, shares, unchanged, within};

const SERVICE: &str = "mesh.service=nginx_service";

/// A cluster with `self-network` and `nginx_service` on it, and a Docker on each host.
fn cluster_with_dockers(lab: &Lab) -> Result<(Cluster, Vec<Docker>)> {
    let cluster = Cluster::three(lab)?;
    let vm1 = cluster.vm1();
    let subnets = ["--subnet", "192.168.100.0/24", "--subnet", "fd00:100::/64"];
    vm1.meshctl(&[&["network", "create"], &subnets[..], &["self-network"]].concat()).ok()?;
    let service = ["service", "create", "--name", "nginx_service", "--network", "self-network"];
    vm1.meshctl(&[&service[..], &["--publish", "8080:80"]].concat()).ok()?;
    // Docker drops what the host forwards of IPv6 too, where it is told to filter that.
    let start = |daemon: &Meshd| Docker::start_with(daemon.host(), &["--experimental", "--ip6tables"]);
    let dockers = cluster.daemons.iter().map(start).collect::<Result<Vec<_>>>()?;
    dockers.iter().try_for_each(Docker::let_pass)?;
    Ok((cluster, dockers))
}

fn net1(docker: &Docker) -> Result<()> {
    docker.run(&["network", "create", "-d", "meshd", "--opt", "mesh.network=self-network", "net1"]).ok()?;
    Ok(())
}

/// What stays of the first container on Docker's own bridge is Docker's, and is there from here on.
fn use_bridge(docker: &Docker) -> Result<()> {
    docker.container("first", &[], &["sleep", "infinity"])?;
    docker.run(&["rm", "-f", "first"]).ok()?;
    within(CONVERGES, "nobody is on the bridge any more", || {
        let (link, address) = ("ip link show docker0", "ip -6 address show docker0");
        ensure!(docker.host().shell(link).ok()?.contains("NO-CARRIER"));
        ensure!(docker.host().shell(address).ok()?.contains("fe80::"));
        Ok(())
    })
}

/// Waits until the manager knows of so many endpoints.
fn endpoints(cluster: &Cluster, count: usize) -> Result<()> {
    within(CONVERGES, &format!("{count} endpoints are there"), || {
        let found = cluster.list(&["endpoint", "ls"])?;
        ensure!(found.len() == count, "{found:#?}");
        Ok(())
    })
}

/// What the hosts hold in their kernels.
fn held(cluster: &Cluster) -> Result<Vec<Objects>> {
    cluster.daemons.iter().map(|daemon| daemon.host().all_objects()).collect()
}

/// Waits until that is what it was, and the cluster knows of no endpoint.
fn nothing_left(cluster: &Cluster, before: &[Objects]) -> Result<()> {
    endpoints(cluster, 0)?;
    within(CONVERGES, "all is as before", || {
        let now = held(cluster)?;
        before.iter().zip(&now).try_for_each(|(before, now)| unchanged(before, now))
    })
}

/// Replicas on three Dockers are found by name and by the published port, though Docker drops what the host forwards.
#[test]
fn containers_of_three_dockers_are_one_service() {
    scenario("three dockers", |lab| {
        let (cluster, dockers) = cluster_with_dockers(lab)?;
        let client = lab.client("client")?;
        for docker in &dockers {
            net1(docker)?;
            // What Docker sets on a host that did not forward before it came; its own rule in that chain does nothing.
            let drop = "for program in iptables ip6tables; do $program -P FORWARD DROP; $program -F DOCKER-USER; done";
            docker.host().shell(drop).ok()?;
            docker.let_pass()?;
        }
        use_bridge(&dockers[1])?;
        let before = held(&cluster)?;
        for (docker, name) in dockers.iter().zip(["web1", "web2", "web3"]) {
            let alias = format!("alias-of-{name}");
            docker.web(name, &["--network", "net1", "--network-alias", &alias, "--label", SERVICE])?;
        }
        cluster.endpoints("nginx_service", "3/3")?;

        // The very first thing that a container does.
        let vip = cluster.vip("nginx_service")?;
        let run = ["run", "--rm", "--network", "net1", "box"];
        let said =
            dockers[1].run(&[&run[..], &["ping", "-4", "-c1", "-W5", "nginx_service"]].concat()).ok()?;
        ensure!(said.contains(&format!("({vip})")) && said.contains(" 0% packet loss"), "{said}");
        dockers[1].container("probe", &["--network", "net1"], &["sleep", "infinity"])?;
        within(CONVERGES, "the VIP leads to every replica", || {
            let answers = dockers[1].answers("probe", &vip, 6)?;
            shares(&answers, &[("web1", 2), ("web2", 2), ("web3", 2)])
        })?;
        let service = cluster.list(&["service", "inspect", "nginx_service"])?;
        let vip6 = service[0]["networks"][0]["addresses"][1].as_str().context("no VIP of IPv6")?.to_owned();
        let ping6 = dockers[1].run(&[&run[..], &["ping", "-6", "-c1", "-W5", &vip6]].concat()).ok()?;
        ensure!(ping6.contains(" 0% packet loss"), "{ping6}");
        for to in [client.ip().to_string(), client.ip6().to_string()] {
            dockers[1].exec("probe", &["ping", "-c1", "-W5", &to]).ok()?;
        }
        within(CONVERGES, "the VIP of IPv6 leads to every replica", || {
            let answers = dockers[1].answers("probe", &vip6, 6)?;
            shares(&answers, &[("web1", 2), ("web2", 2), ("web3", 2)])
        })?;
        // Names: the service's, tasks, a container on another host, an alias; and one that Docker knows by itself.
        let address = cluster.address("web3")?;
        for name in ["web3", "web3.self-network", "tasks.nginx_service", "alias-of-web3"] {
            within(CONVERGES, &format!("{name} is found"), || {
                let said = dockers[1].exec("probe", &["nslookup", name]).ok()?;
                ensure!(said.contains(&address), "{said}");
                Ok(())
            })?;
        }
        dockers[1].exec("probe", &["ping", "-c1", "-W5", "web2"]).ok()?;

        // What another of Docker's containers has not published is no more open to the mesh than to others.
        dockers[1].web("hidden", &[])?;
        dockers[1].web("open", &["--publish", "80:80"])?;
        let hidden = dockers[1].inspect("hidden")?["NetworkSettings"]["IPAddress"].clone();
        let hidden = hidden.as_str().context("it has an address")?;
        let vm2 = dockers[1].host();
        let published = || shares(&dockers[1].answers("probe", &vm2.ip().to_string(), 1)?, &[("open", 1)]);
        within(CONVERGES, "a published port of Docker's answers", published)?;
        shares(&dockers[1].answers("probe", hidden, 1)?, &[("failed", 1)])?;
        vm2.output(&["iptables", "-I", "DOCKER-USER", "-o", "docker0", "-j", "ACCEPT"]).ok()?;
        within(CONVERGES, "there is a way", || {
            shares(&dockers[1].answers("probe", hidden, 1)?, &[("hidden", 1)])
        })?;
        vm2.output(&["iptables", "-D", "DOCKER-USER", "-o", "docker0", "-j", "ACCEPT"]).ok()?;
        dockers[1].run(&["rm", "-f", "hidden", "open"]).ok()?;

        cluster.answer_in_turn(&client, 8080, &["web1", "web2", "web3"])?;
        for docker in &dockers {
            let url = format!("http://[{}]:8080/", docker.host().ip6());
            within(CONVERGES, &url, || {
                shares(&client.answers(&url, 6)?, &[("web1", 2), ("web2", 2), ("web3", 2)])
            })?;
            docker.host().output(&["iptables", "-F", "DOCKER-USER"]).ok()?;
        }
        cluster.answer_in_turn(&client, 8080, &["web1", "web2", "web3"])?;

        for (docker, name) in dockers.iter().zip(["web1", "web2", "web3"]) {
            docker.run(&["rm", "-f", name]).ok()?;
        }
        dockers[1].run(&["rm", "-f", "probe"]).ok()?;
        nothing_left(&cluster, &before)?;
        for docker in &dockers {
            docker.leaves_nothing_waiting()?;
            docker.run(&["network", "rm", "net1"]).ok()?;
        }
        Ok(())
    });
}

/// Restarts of the container and of both daemons, and networks that are connected and disconnected while it runs.
#[test]
fn containers_outlive_restarts() {
    scenario("docker restarts", |lab| {
        let (mut cluster, mut dockers) = cluster_with_dockers(lab)?;
        let client = lab.client("client")?;
        net1(&dockers[0])?;
        net1(&dockers[1])?;
        use_bridge(&dockers[1])?;
        let before = held(&cluster)?;
        let replica = ["--network", "net1", "--label", SERVICE, "--restart", "always"];
        dockers[0].web("web1", &replica)?;
        // Connected while it runs.
        dockers[1].web("web2", &["--label", SERVICE])?;
        dockers[1].run(&["network", "connect", "--alias", "second", "net1", "web2"]).ok()?;
        cluster.endpoints("nginx_service", "2/2")?;
        cluster.answer_in_turn(&client, 8080, &["web1", "web2"])?;
        within(CONVERGES, "the alias is found", || {
            let said = dockers[0].exec("web1", &["nslookup", "second"]).ok()?;
            ensure!(said.contains(&cluster.address("web2")?), "{said}");
            Ok(())
        })?;

        dockers[1].run(&["network", "disconnect", "net1", "web2"]).ok()?;
        cluster.endpoints("nginx_service", "1/1")?;
        dockers[1].run(&["network", "connect", "net1", "web2"]).ok()?;
        dockers[0].run(&["restart", "--time", "0", "web1"]).ok()?;
        cluster.endpoints("nginx_service", "2/2")?;
        cluster.answer_in_turn(&client, 8080, &["web1", "web2"])?;

        // The daemon of the mesh: nothing changes.
        let endpoints = cluster.list(&["endpoint", "ls"])?;
        cluster.daemons[0].restart()?;
        cluster.daemons[1].restart()?;
        cluster.answer_in_turn(&client, 8080, &["web1", "web2"])?;
        ensure!(cluster.list(&["endpoint", "ls"])? == endpoints);

        // Docker's daemon ends, is killed, and starts its containers again.
        dockers[0].terminate()?;
        dockers[0].restart()?;
        cluster.endpoints("nginx_service", "2/2")?;
        cluster.answer_in_turn(&client, 8080, &["web1", "web2"])?;
        dockers[0].kill()?;
        dockers[0].restart()?;
        cluster.endpoints("nginx_service", "2/2")?;
        cluster.answer_in_turn(&client, 8080, &["web1", "web2"])?;

        // The record is gone: the container is adopted again.
        let id = mesh_tests::field(&cluster.endpoint("web2")?, "id");
        cluster.vm1().meshctl(&["endpoint", "rm", &id]).ok()?;
        cluster.endpoints("nginx_service", "2/2")?;
        cluster.answer_in_turn(&client, 8080, &["web1", "web2"])?;

        dockers[0].run(&["rm", "-f", "web1"]).ok()?;
        dockers[1].run(&["rm", "-f", "web2"]).ok()?;
        nothing_left(&cluster, &before)?;
        dockers[0].leaves_nothing_waiting()
    });
}

/// Containers that Docker knows nothing of the mesh for: attached by name.
#[test]
fn a_container_is_attached_by_name() {
    scenario("docker target", |lab| {
        let (cluster, dockers) = cluster_with_dockers(lab)?;
        let (client, vm2) = (lab.client("client")?, cluster.vm2());
        dockers[1].web("web2", &[])?;
        let connect = ["network", "connect", "--service", "nginx_service", "self-network", "docker:web2"];
        vm2.meshctl(&connect).ok()?;
        vm2.meshctl(&connect).refused("already on network")?;
        ensure!(mesh_tests::field(&cluster.endpoint("web2")?, "ifname") == "eth1");
        cluster.answer_in_turn(&client, 8080, &["web2"])?;
        for _ in 0..2 {
            vm2.meshctl(&["network", "disconnect", "self-network", "docker:web2"]).ok()?;
        }
        cluster.endpoints("nginx_service", "0/0")?;
        vm2.meshctl(&connect).ok()?;
        cluster.answer_in_turn(&client, 8080, &["web2"])?;
        dockers[1].run(&["rm", "-f", "web2"]).ok()?;
        endpoints(&cluster, 0)?;
        vm2.meshctl(&["network", "connect", "self-network", "docker:web2"]).refused("no such container")?;
        dockers[1].container("idle", &[], &["true"])?;
        dockers[1].run(&["wait", "idle"]).ok()?;
        vm2.meshctl(&["network", "connect", "self-network", "docker:idle"]).refused("does not run")
    });
}

const COMPOSE: &str = r#"
version: "3.7"
services:
  web:
    image: box
    command: sh -c "mkdir -p /www && hostname >/www/index.html && exec httpd -f -p 80 -h /www"
    labels:
      mesh.service: nginx_service
    networks:
      front:
        aliases: [web-of-compose]
networks:
  front:
    driver: meshd
    driver_opts:
      mesh.network: self-network
"#;

/// A Compose file whose network names the driver, scaled, and taken down.
#[test]
fn a_compose_file_works_as_it_is() {
    scenario("compose", |lab| {
        let (cluster, dockers) = cluster_with_dockers(lab)?;
        let (client, docker) = (lab.client("client")?, &dockers[1]);
        let file = "/run/lab/vm2/compose.yml";
        std::fs::write(docker.host().file(file), COMPOSE)?;
        let up = ["up", "--detach", "--scale", "web=2"];
        let mut earlier = BTreeSet::new();
        for again in [&[][..], &["--force-recreate"]] {
            docker.compose(file, &[&up, again].concat()).ok()?;
            cluster.endpoints("nginx_service", "2/2")?;
            let replicas = within(CONVERGES, "both answer in turn, on a node without any of them", || {
                let answers = client.answers(&format!("http://{}:8080/", cluster.vm3().ip()), 8)?;
                ensure!(answers.len() == 2 && answers.values().all(|count| *count == 4), "{answers:?}");
                Ok(answers.into_keys().collect::<BTreeSet<_>>())
            })?;
            ensure!(earlier.is_disjoint(&replicas), "containers of before answer: {earlier:?}, {replicas:?}");
            earlier = replicas;
        }
        net1(&dockers[2])?;
        within(CONVERGES, "the alias of the file is a name on every host", || {
            let found =
                dockers[2].run(&["run", "--rm", "--network", "net1", "box", "nslookup", "web-of-compose"]);
            ensure!(found.ok()?.matches("192.168.100.").count() >= 2);
            Ok(())
        })?;
        docker.compose(file, &["down"]).ok()?;
        cluster.endpoints("nginx_service", "0/0")?;
        for (right, wrong, why) in [
            ("mesh.network: self-network", "mesh.network: nowhere", "no network 'nowhere'"),
            ("mesh.network: self-network", "mesh.netwrok: self-network", "no option 'mesh.netwrok'"),
            ("mesh.service: nginx_service", "mesh.service: nobody", "no service is called 'nobody'"),
        ] {
            std::fs::write(docker.host().file(file), COMPOSE.replace(right, wrong))?;
            let said = docker.compose(file, &up);
            ensure!(said.code != Some(0) && said.stderr.contains(why), "no '{why}': {said:?}");
        }
        docker.compose(file, &["down"]).ok()?;
        endpoints(&cluster, 0)?;
        docker.leaves_nothing_waiting()
    });
}

/// Networks and addresses as Docker's users ask for them, and what is refused.
#[test]
fn networks_and_addresses_are_the_clusters() {
    scenario("docker networks", |lab| {
        let (cluster, dockers) = cluster_with_dockers(lab)?;
        let (manager, worker) = (&dockers[0], &dockers[1]);
        let create = |docker: &Docker, words: &[&str]| {
            docker.run(&[&["network", "create", "-d", "meshd"], words].concat())
        };
        // Addresses of the cluster are those that Docker shows.
        let blue = ["--ipam-driver", "meshd", "--subnet", "10.50.0.0/24", "blue"];
        create(manager, &blue).ok()?;
        within(CONVERGES, "the cluster has the network", || {
            let network = cluster.list(&["network", "inspect", "blue"])?;
            ensure!(network[0]["subnets"][0]["cidr"] == "10.50.0.0/24", "{network:?}");
            Ok(())
        })?;
        create(worker, &blue).ok()?;
        manager.container("b1", &["--network", "blue"], &["sleep", "infinity"])?;
        worker.container("b2", &["--network", "blue"], &["sleep", "infinity"])?;
        worker.container("b3", &["--network", "blue", "--ip", "10.50.0.77"], &["sleep", "infinity"])?;
        for (docker, name) in [(manager, "b1"), (worker, "b2"), (worker, "b3")] {
            let shown = docker.inspect(name)?["NetworkSettings"]["Networks"]["blue"]["IPAddress"].clone();
            ensure!(shown == cluster.address(name)?.as_str(), "{name}: {shown}");
        }
        ensure!(cluster.address("b3")? == "10.50.0.77");
        manager.exec("b1", &["ping", "-c1", "-W5", "10.50.0.77"]).ok()?;
        let taken = manager.run(&["run", "--rm", "--network", "blue", "--ip", "10.50.0.77", "box", "true"]);
        ensure!(taken.stderr.contains("10.50.0.77 is taken on network 'blue' by endpoint 'b3'"), "{taken:?}");

        // Both families, each as the user wants it; the addresses of a network that has others already.
        let both = [
            "--ipv6",
            "--ipam-driver",
            "meshd",
            "--subnet",
            "10.51.0.0/24",
            "--subnet",
            "fd00:51::/64",
            "both",
        ];
        create(manager, &both).ok()?;
        within(CONVERGES, "the cluster has the network", || cluster.list(&["network", "inspect", "both"]))?;
        let wanted = ["--network", "both", "--ip", "10.51.0.40", "--ip6", "fd00:51::40"];
        manager.container("d1", &wanted, &["sleep", "infinity"])?;
        ensure!(cluster.endpoint("d1")?["addresses"] == serde_json::json!(["10.51.0.40", "fd00:51::40"]));
        let open = ["--ipv6", "--ipam-driver", "meshd", "--ipam-opt", "mesh.network=both", "open"];
        create(worker, &open).ok()?;
        worker.container("d2", &["--network", "open"], &["sleep", "infinity"])?;
        let shown = worker.inspect("d2")?["NetworkSettings"]["Networks"]["open"].clone();
        let shown = serde_json::json!([shown["IPAddress"], shown["GlobalIPv6Address"]]);
        ensure!(cluster.endpoint("d2")?["addresses"] == shown, "{shown}");
        worker.exec("d2", &["ping", "-6", "-c1", "-W5", "fd00:51::40"]).ok()?;
        manager.run(&["rm", "-f", "d1"]).ok()?;
        worker.run(&["rm", "-f", "d2"]).ok()?;

        // No option: the cluster's network of that name.
        create(manager, &["green"]).ok()?;
        within(CONVERGES, "the cluster has the network", || cluster.list(&["network", "inspect", "green"]))?;
        create(worker, &["green"]).ok()?;
        manager.container("g1", &["--network", "green"], &["sleep", "infinity"])?;
        worker.container("g2", &["--network", "green"], &["sleep", "infinity"])?;
        within(CONVERGES, "the other host's container is found", || {
            manager.exec("g1", &["ping", "-c1", "-W2", "g2"]).ok().map(drop)
        })?;

        let refused = |outcome: mesh_tests::Outcome, text: &str| {
            ensure!(outcome.code != Some(0) && outcome.stderr.contains(text), "no '{text}': {outcome:?}");
            Ok(())
        };
        refused(create(worker, &["--opt", "mesh.network=nowhere", "x"]), "no network 'nowhere'")?;
        refused(create(worker, &["--subnet", "192.168.100.0/24", "x"]), "--ipam-driver meshd")?;
        refused(create(worker, &["--ipam-driver", "meshd", "x"]), "--ipam-opt mesh.network=NAME")?;
        refused(create(worker, &["--opt", "mesh.netwrok=blue", "x"]), "there is no option 'mesh.netwrok'")?;
        refused(create(worker, &["--internal", "--opt", "mesh.network=blue", "x"]), "is not internal")?;
        let other_gateway =
            ["--ipam-driver", "meshd", "--subnet", "10.50.0.0/24", "--gateway", "10.50.0.9", "x"];
        refused(create(worker, &other_gateway), "has another gateway than 10.50.0.9")?;
        let labelled = ["run", "--rm", "--network", "green", "--label", "mesh.service=none", "box", "true"];
        refused(worker.run(&labelled), "no service is called 'none'")?;
        for (docker, name) in
            [(manager, "b1"), (worker, "b2"), (worker, "b3"), (manager, "g1"), (worker, "g2")]
        {
            docker.run(&["rm", "-f", name]).ok()?;
        }
        endpoints(&cluster, 0)?;
        manager.leaves_nothing_waiting()?;
        worker.leaves_nothing_waiting()
    });
}

/// What is no request of Docker's is refused, and harms nobody.
#[test]
fn bad_requests_are_refused() {
    scenario("bad plugin requests", |lab| {
        let cluster = Cluster::of(vec![
            lab.host("vm1")?.meshd()?,
            lab.host("vm2")?.meshd()?,
            lab.host("vm3")?.meshd()?,
        ])?;
        let vm1 = cluster.vm1();
        let plugins = vm1.docker_plugins();
        ensure!(!vm1.file(&plugins).exists(), "there is no Docker yet");
        vm1.output(&["mkdir", "-p", &plugins]).ok()?;
        let socket = format!("{plugins}/meshd.sock");
        let ask = |method: &str, body: &str| vm1.ask_plugin(method, body);
        within(CONVERGES, "the driver answers once the directory is there", || {
            let said = ask("Plugin.Activate", "")?;
            ensure!(said.contains("NetworkDriver") && said.ends_with(" 200"), "{said}");
            Ok(())
        })?;
        // One that never comes to its end is in nobody's way.
        let mut slow = UnixStream::connect(vm1.file(&socket))?;
        slow.write_all(
            b"POST /NetworkDriver.Join HTTP/1.1\r\nHost: docker\r\nContent-Length: 100\r\n\r\n{\"Netw",
        )?;
        let huge = "/run/lab/huge";
        std::fs::write(vm1.file(huge), format!("{{\"NetworkID\":\"{}\"}}", "x".repeat(2 << 20)))?;
        for (method, body, status) in [
            ("NetworkDriver.CreateEndpoint", "", " 400"),
            ("NetworkDriver.CreateNetwork", "@/run/lab/huge", " 413"),
            ("NetworkDriver.CreateNetwork", "{\"NetworkID\":\"a\",\"IPv4Data\":[{\"Pool\":\"x\"}]}", " 400"),
            (
                "NetworkDriver.CreateNetwork",
                "{\"NetworkID\":\"a\",\"Options\":{\"com.docker.network.generic\":{\"mesh.network\":5}}}",
                " 200",
            ),
            (
                "NetworkDriver.CreateEndpoint",
                "{\"NetworkID\":\"a\",\"EndpointID\":\"0123456789abcdef\",\"Interface\":{\"MacAddress\":\"x\"}}",
                " 200",
            ),
            ("IpamDriver.RequestPool", "{\"Pool\":[1]}", " 400"),
            ("IpamDriver.RequestPool", "{\"Pool\":\"300.0.0.0/8\"}", " 200"),
            ("Plugin.Activate/..", "{}", " 404"),
            ("NetworkDriver.CreateEndpoint", "[]", " 400"),
            ("NetworkDriver.Join", "{\"NetworkID\":1}", " 400"),
            ("IpamDriver.RequestPool", "\u{1}", " 400"),
            ("NetworkDriver.Unheard", "{}", " 404"),
            ("NetworkDriver.CreateEndpoint", "{\"NetworkID\":\"a\",\"EndpointID\":\"..\"}", " 200"),
            (
                "NetworkDriver.Join",
                "{\"NetworkID\":\"a\",\"EndpointID\":\"b\",\"SandboxKey\":\"/etc\"}",
                " 200",
            ),
            ("NetworkDriver.Leave", "{\"EndpointID\":\"b\"}", " 200"),
            ("IpamDriver.RequestAddress", "{\"PoolID\":\"x\",\"Address\":\"y\"}", " 200"),
        ] {
            let said = ask(method, body)?;
            let fine = method.ends_with("Leave");
            ensure!(said.ends_with(status) && said.contains("\"Err\"") != fine, "{method} {body}: {said}");
        }
        // The socket is made again when somebody removes it.
        vm1.output(&["rm", &socket]).ok()?;
        within(CONVERGES, "the driver answers again", || ask("Plugin.Activate", "").map(drop))?;
        endpoints(&cluster, 0)
    });
}
