//! Containers of Docker with several networks, and hosts whose firewall is Docker's.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Docker, Echo, Lab, comes_back, scenario, within};

/// A cluster with the network `four`, of IPv4 only, and the service `web` on it; `far` is a container elsewhere.
fn cluster(lab: &Lab) -> Result<Cluster> {
    let cluster = Cluster::three(lab)?;
    let vm1 = cluster.vm1();
    vm1.meshctl(&["network", "create", "--subnet", "10.60.0.0/24", "four"]).ok()?;
    let service = ["service", "create", "--name", "web", "--network", "four", "--publish", "8080:80"];
    vm1.meshctl(&service).ok()?;
    let far = lab.container("far")?;
    vm1.meshctl(&["network", "connect", "--name", "far", "four", &far.target()]).ok()?;
    Ok(cluster)
}

/// A name has an address of the network, for a container.
fn finds(docker: &Docker, container: &str, name: &str, address: &str) -> Result<()> {
    within(CONVERGES, &format!("{name} is found in {container}"), || {
        let said = docker.exec(container, &["nslookup", "-type=a", name]).ok()?;
        ensure!(said.contains(address), "{said}");
        Ok(())
    })
}

/// On one of Docker's own bridges as well, whichever network comes first, and whichever has the default route.
#[test]
fn a_container_that_is_on_one_of_dockers_bridges_too() {
    scenario("docker bridges", |lab| {
        let cluster = cluster(lab)?;
        let docker = Docker::start(cluster.vm2())?;
        let (client, _resolver) = (lab.client("client")?, lab.resolver()?);
        docker.run(&["network", "create", "-d", "meshd", "four"]).ok()?;
        // Docker takes the network whose name is the first for the default route.
        docker.run(&["network", "create", "zone"]).ok()?;
        for (networks, default) in [
            (["bridge", "four"], "172.17.0.1"),
            (["four", "bridge"], "172.17.0.1"),
            (["zone", "four"], "10.60.0.1"),
            (["four", "zone"], "10.60.0.1"),
        ] {
            let serve = "mkdir /www && echo both >/www/index.html && exec httpd -f -v -p 80 -h /www";
            let options = ["--network", networks[0], "--label", "mesh.service=web"];
            docker.container("both", &options, &["sh", "-c", serve])?;
            docker.run(&["network", "connect", networks[1], "both"]).ok()?;
            let routes = docker.exec("both", &["ip", "route", "show", "default"]).ok()?;
            ensure!(routes.contains(&format!("via {default} ")), "{networks:?}: {routes}");
            finds(&docker, "both", "far", &cluster.address("far")?)?;
            finds(&docker, "both", "web", &cluster.vip("web")?)?;
            finds(&docker, "both", "example.test", "192.0.2.1")?;
            cluster.answer_in_turn(&client, 8080, &["both"])?;
            let said = docker.run(&["logs", "both"]).stderr;
            let asked = said.lines().filter(|line| line.contains("response:200"));
            let (from_client, all) = (format!("{}]", client.ip()), asked.clone().count());
            let kept = asked.filter(|line| line.contains(&from_client)).count();
            ensure!(all > 0 && kept == all, "{kept} of {all} requests have the client's address: {said}");
            docker.run(&["rm", "--force", "both"]).ok()?;
        }
        Ok(())
    });
}

/// A service is on one network of its replica; the others are connected all the same. So are two networks that lead nowhere
/// but to their names.
#[test]
fn a_container_that_is_on_several_networks_of_the_mesh() {
    scenario("docker, several networks", |lab| {
        let cluster = cluster(lab)?;
        let docker = Docker::start(cluster.vm1())?;
        docker.run(&["network", "create", "-d", "meshd", "four"]).ok()?;
        for name in ["inner1", "inner2", "outer"] {
            let internal: &[&str] = if name == "outer" { &[] } else { &["--internal"] };
            docker.run(&[&["network", "create", "-d", "meshd"], internal, &[name]].concat()).ok()?;
        }
        docker.web("web1", &["--network", "four", "--label", "mesh.service=web"])?;
        for name in ["inner1", "inner2", "outer"] {
            docker.run(&["network", "connect", name, "web1"]).ok()?;
        }
        cluster.endpoints("web", "1/1")?;
        let vm1 = cluster.vm1();
        let mut others = Vec::new();
        for name in ["inner1", "inner2", "outer"] {
            let peer = lab.container(&format!("of-{name}"))?;
            let named = format!("of-{name}");
            vm1.meshctl(&["network", "connect", "--name", &named, name, &peer.target()]).ok()?;
            others.push((named, peer));
        }
        let finds_all = || {
            finds(&docker, "web1", "far", &cluster.address("far")?)?;
            // Docker's resolver asks in one network, whose name server knows on which others who asks is.
            others.iter().try_for_each(|(name, _)| finds(&docker, "web1", name, &cluster.address(name)?))
        };
        finds_all()?;
        // Also at its next start, when all are there before it is.
        docker.run(&["restart", "--time", "0", "web1"]).ok()?;
        cluster.endpoints("web", "1/1")?;
        finds_all()?;
        // A network that it is no longer on is none of its own.
        docker.run(&["network", "disconnect", "inner2", "web1"]).ok()?;
        within(CONVERGES, "names of a network that it left are not found", || {
            let said = docker.exec("web1", &["nslookup", "-type=a", "of-inner2.inner2.mesh.internal"]);
            ensure!(said.code != Some(0), "{said:?}");
            Ok(())
        })?;
        docker.run(&["network", "connect", "inner2", "web1"]).ok()?;
        let here = cluster.list(&["endpoint", "ls"])?;
        let named = here.iter().filter(|endpoint| endpoint["name"] == "web1");
        let with_service = named.clone().filter(|endpoint| endpoint["service"] == "web").count();
        ensure!((named.count(), with_service) == (4, 1), "{here:#?}");
        // Where none of them has the service, that is said.
        let wrong = ["run", "--rm", "--network", "outer", "--label", "mesh.service=web", "box", "true"];
        let said = docker.run(&wrong);
        ensure!(said.stderr.contains("service 'web' is not on network 'outer'"), "{said:?}");
        // A container that is renamed is so on every host.
        docker.run(&["rename", "web1", "other"]).ok()?;
        // Docker's resolver knows the new name by itself, but not with the mesh's suffix.
        finds(&docker, "other", "other.four.mesh.internal", "10.60.0.")?;
        let outdated = docker.exec("other", &["nslookup", "-type=a", "web1.four.mesh.internal"]);
        ensure!(outdated.code != Some(0), "the old name is there: {outdated:?}");
        Ok(())
    });
}

/// Docker drops what its host forwards, of both families, in iptables-legacy: ports lead to the container, and it gets out.
#[test]
fn dockers_firewall_in_iptables_legacy() {
    scenario("docker, legacy firewall", |lab| {
        // What a host's `iptables` is.
        let vm1 = lab.host("vm1")?;
        vm1.shell("mount --bind /usr/sbin/xtables-legacy-multi /usr/sbin/xtables-nft-multi").ok()?;
        let _meshd = vm1.meshd()?;
        vm1.meshctl(&["cluster", "init", "--advertise-addr", &vm1.ip().to_string()]).ok()?;
        let subnets = ["--subnet", "10.50.0.0/24", "--subnet", "fd00:50::/64"];
        vm1.meshctl(&[&["network", "create"], &subnets[..], &["blue"]].concat()).ok()?;
        let ports = ["--publish", "8080:80", "--publish", "5300:53/udp"];
        vm1.meshctl(&[&["service", "create", "--name", "web", "--network", "blue"], &ports[..]].concat())
            .ok()?;
        let docker = Docker::start_with(&vm1, &["--experimental", "--ip6tables"])?;
        docker.run(&["network", "create", "-d", "meshd", "blue"]).ok()?;
        docker.web("web1", &["--network", "blue", "--label", "mesh.service=web"])?;
        Echo::datagrams(&docker.namespace("web1")?, 53)?;
        for program in ["iptables", "ip6tables"] {
            vm1.output(&[program, "-P", "FORWARD", "DROP"]).ok()?;
            let rules = vm1.output(&[&format!("{program}-legacy"), "-S"]).ok()?;
            ensure!(rules.contains("-P FORWARD DROP") && rules.contains("DOCKER-ISOLATION"), "{rules}");
        }
        let client = lab.client("client")?;
        for (ip, url) in [
            (IpAddr::from(vm1.ip()), format!("http://{}:8080/", vm1.ip())),
            (IpAddr::from(vm1.ip6()), format!("http://[{}]:8080/", vm1.ip6())),
        ] {
            within(CONVERGES, &format!("{ip} leads to the container"), || {
                ensure!(client.curl(&url)? == "web1");
                ensure!(comes_back(&client, SocketAddr::new(ip, 5300))?, "no datagram comes back");
                Ok(())
            })?;
        }
        for to in [client.ip().to_string(), client.ip6().to_string()] {
            docker.exec("web1", &["ping", "-c1", "-W2", &to]).ok()?;
        }
        Ok(())
    });
}
