//! What a Docker does for its own host: ports of `-p`, internal networks, and what happens while no meshd runs.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::{
    CONVERGES, Cluster, Docker, Host, Lab, Meshd, Objects, Outcome, scenario, unchanged, within,
};

/// How long the record of a container may stay that went while no meshd ran: it is given half a minute.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// A cluster with a Docker on the first two hosts.
fn two_dockers(lab: &Lab) -> Result<(Cluster, [Docker; 2])> {
    let cluster = Cluster::three(lab)?;
    let dockers = [Docker::start(cluster.vm1())?, Docker::start(cluster.vm2())?];
    Ok((cluster, dockers))
}

/// `docker network create -d meshd`, on the manager first: there it makes the cluster's network.
fn create(docker: &Docker, words: &[&str]) -> Outcome {
    docker.run(&[&["network", "create", "-d", "meshd"], words].concat())
}

fn refused(outcome: &Outcome, text: &str) -> Result<()> {
    ensure!(outcome.code != Some(0) && outcome.stderr.contains(text), "no '{text}': {outcome:?}");
    Ok(())
}

/// `-p`: on the container's host, in both families, and gone with the container.
#[test]
fn ports_of_a_container() {
    scenario("docker ports", |lab| {
        let (cluster, [_, docker]) = two_dockers(lab)?;
        let (client, vm1, vm2) = (lab.client("client")?, cluster.vm1(), cluster.vm2());
        let subnets = ["--subnet", "10.50.0.0/24", "--subnet", "fd00:50::/64"];
        vm1.meshctl(&[&["network", "create"], &subnets[..], &["blue"]].concat()).ok()?;
        create(&docker, &["blue"]).ok()?;
        docker.web("web", &["--network", "blue", "-p", "8080:80"])?;
        let urls = [format!("http://{}:8080/", vm2.ip()), format!("http://[{}]:8080/", vm2.ip6())];
        let answers = || {
            for url in &urls {
                within(CONVERGES, url, || {
                    ensure!(client.curl(url)? == "web");
                    Ok(())
                })?;
            }
            Ok::<_, anyhow::Error>(())
        };
        answers()?;
        ensure!(client.curl(&format!("http://{}:8080/", vm1.ip())).is_err(), "it is published on vm1 too");
        let second = docker.run(&["run", "--rm", "--network", "blue", "-p", "8080:80", "box", "true"]);
        refused(&second, "8080")?;
        docker.run(&["restart", "--time", "0", "web"]).ok()?;
        answers()?;
        docker.run(&["rm", "-f", "web"]).ok()?;
        within(CONVERGES, "the port is gone", || {
            ensure!(urls.iter().all(|url| client.curl(url).is_err()), "it answers");
            ensure!(vm2.shell("nft list table ip meshd").ok()?.matches("8080").count() == 0);
            Ok(())
        })?;
        docker.web("again", &["--network", "blue", "-p", "8080:80"])?;
        within(CONVERGES, "another container has it", || {
            ensure!(client.curl(&urls[0])? == "again");
            Ok(())
        })
    });
}

/// `--internal`: its containers find and reach each other over hosts, and nothing else.
#[test]
fn an_internal_network() {
    scenario("docker internal", |lab| {
        let (cluster, dockers) = two_dockers(lab)?;
        create(&dockers[0], &["--internal", "inner"]).ok()?;
        within(CONVERGES, "the cluster has the network", || {
            let network = cluster.list(&["network", "inspect", "inner"])?;
            ensure!(network[0]["internal"] == true, "{network:?}");
            Ok(())
        })?;
        create(&dockers[1], &["--internal", "inner"]).ok()?;
        for (docker, name) in dockers.iter().zip(["i1", "i2"]) {
            docker.container(name, &["--network", "inner"], &["sleep", "infinity"])?;
        }
        within(CONVERGES, "the other host's container is found and reached", || {
            dockers[1].exec("i2", &["ping", "-c1", "-W2", "i1"]).ok().map(drop)
        })?;
        let i2 = dockers[1].namespace("i2")?;
        ensure!(i2.shell("ip route show default; ip -6 route show default").ok()?.is_empty());
        let gateway = cluster.list(&["network", "inspect", "inner"])?[0]["subnets"][0]["gateway"].clone();
        let gateway = gateway.as_str().unwrap_or_default();
        // Whatever way it gives itself.
        i2.output(&["ip", "route", "replace", "default", "via", gateway]).ok()?;
        for host in [cluster.vm1(), cluster.vm2()] {
            let ping = dockers[1].exec("i2", &["ping", "-c1", "-W1", &host.ip().to_string()]);
            ensure!(ping.code == Some(1), "{ping:?}");
        }
        Ok(())
    });
}

/// What is done while meshd does not run: it is refused or made up for, and what ran goes on.
#[test]
fn containers_that_come_and_go_while_no_meshd_runs() {
    scenario("docker, meshd down", |lab| {
        let (mut cluster, [manager, docker]) = two_dockers(lab)?;
        create(&manager, &["blue"]).ok()?;
        within(CONVERGES, "the cluster has the network", || cluster.list(&["network", "inspect", "blue"]))?;
        create(&docker, &["blue"]).ok()?;
        manager.container("far", &["--network", "blue"], &["sleep", "infinity"])?;
        docker.container("stays", &["--network", "blue"], &["sleep", "infinity"])?;
        let vm2 = cluster.vm2().clone();
        // What Docker's own bridge leaves on the host is not looked at.
        let of_networks = || -> Result<Objects> {
            let mut objects = vm2.all_objects()?;
            objects.remove("objects of the host");
            Ok(objects)
        };
        let before = (cluster.list(&["endpoint", "ls"])?.len(), of_networks()?);
        docker.container("goes", &["--network", "blue"], &["sleep", "infinity"])?;
        cluster.daemons[1].terminate()?;

        docker.run(&["rm", "-f", "goes"]).ok()?;
        let far = cluster.address("far")?;
        docker.exec("stays", &["ping", "-c1", "-W2", &far]).ok()?;
        docker.container("plain", &[], &["sleep", "infinity"])?;
        cluster.daemons[1].start()?;
        within(FORGOTTEN, "what went is forgotten", || {
            ensure!(cluster.list(&["endpoint", "ls"])?.len() == before.0);
            unchanged(&before.1, &of_networks()?)
        })?;
        docker.exec("stays", &["ping", "-c1", "-W2", "far"]).ok()?;
        cluster.vm2().meshctl(&["network", "connect", "blue", "docker:plain"]).ok()?;
        within(CONVERGES, "the container of before is a name", || {
            manager.exec("far", &["ping", "-c1", "-W2", "plain"]).ok().map(drop)
        })
    });
}

/// A meshd that loses its disk and becomes another cluster adopts the containers that Docker runs on its networks.
#[test]
fn containers_from_before_this_cluster_are_adopted() {
    scenario("docker adoption", |lab| {
        let host = lab.host("vm1")?;
        let docker = Docker::start(&host)?;
        let cluster = |meshd: &Meshd| -> Result<()> {
            let vm1: &Host = meshd.host();
            vm1.meshctl(&["cluster", "init", "--advertise-addr", &vm1.ip().to_string()]).ok()?;
            vm1.meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;
            vm1.meshctl(&["service", "create", "--name", "web", "--network", "blue", "--publish", "8080:80"])
                .ok()?;
            Ok(())
        };
        let mut meshd = host.meshd()?;
        cluster(&meshd)?;
        create(&docker, &["blue"]).ok()?;
        docker.web("web1", &["--network", "blue", "--label", "mesh.service=web"])?;
        let client = lab.client("client")?;
        let answers = || {
            within(CONVERGES, "the container answers", || {
                ensure!(client.curl(&format!("http://{}:8080/", host.ip()))? == "web1");
                Ok(())
            })
        };
        answers()?;
        meshd.interrupt()?;
        fs::remove_dir_all(host.file(host.data_dir()))?;
        meshd.start()?;
        cluster(&meshd)?;
        answers()?;
        docker.run(&["rm", "-f", "web1"]).ok()?;
        within(CONVERGES, "it goes as all others do", || {
            let left = host.meshctl(&["-o", "json", "endpoint", "ls"]).json()?;
            ensure!(left.as_array().map(Vec::len) == Some(0), "{left}");
            Ok(())
        })
    });
}
