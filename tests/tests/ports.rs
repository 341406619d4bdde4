//! Published ports that change, and those of one address.

use anyhow::{Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Host, Lab, Nginx, Replica, ReplicaSpec, field, scenario, within};

const IN_TURN: [&str; 2] = ["web1", "web2"];

/// The service `web` on the network `blue`, of both families, published as told; replicas on vm1 and vm2.
fn web(lab: &Lab, publish: &[&str]) -> Result<(Cluster, Vec<Replica>)> {
    let cluster = Cluster::three(lab)?;
    let vm1 = cluster.vm1();
    let subnets = ["--subnet", "192.168.100.0/24", "--subnet", "fd00:100::/64"];
    vm1.meshctl(&[&["network", "create"], &subnets[..], &["blue"]].concat()).ok()?;
    let service = ["service", "create", "--name", "web", "--network", "blue"];
    vm1.meshctl(&[&service[..], publish].concat()).ok()?;
    let spec = |name| ReplicaSpec { name, network: Some("blue"), service: Some("web"), port: 80 };
    let replicas = vec![Replica::start(vm1, spec("web1"))?, Replica::start(cluster.vm2(), spec("web2"))?];
    cluster.endpoints("web", "2/2")?;
    Ok((cluster, replicas))
}

#[test]
fn a_port_moves_and_the_old_one_is_free_again() {
    scenario("moved port", |lab| {
        let (cluster, _replicas) = web(lab, &["--publish", "8080:80"])?;
        let client = lab.client("client")?;
        cluster.answer_in_turn(&client, 8080, &IN_TURN)?;
        for (old, new, spec) in [
            (8080, 8081, "8081:80"),
            (8081, 8082, "published=8082,target=80,protocol=http"),
            (8082, 8080, "8080:80"),
        ] {
            let (add, remove) = (["--publish-add", spec], ["--publish-rm", &old.to_string()]);
            let update = [&["service", "update"], &add[..], &remove[..], &["web"]].concat();
            cluster.vm1().meshctl(&update).ok()?;
            cluster.answer_in_turn(&client, new, &IN_TURN)?;
            for daemon in &cluster.daemons {
                let host = daemon.host();
                for address in [host.ip().to_string(), format!("[{}]", host.ip6())] {
                    client.curl(&format!("http://{address}:{new}/"))?;
                    let closed = client.output(&["curl", "-sS", &format!("http://{address}:{old}/")]);
                    // 7: refused at once, as a port on which nobody listens.
                    ensure!(closed.code == Some(7), "{closed:?}");
                }
                // A program of the host gets it, and its clients reach that.
                let name = format!("{}-{old}", host.name());
                let _own = Nginx::new(host, &name, old, &name)?.start(host)?;
                let served = client.curl(&format!("http://{}:{old}/", host.ip()))?;
                ensure!(served == name, "{served}");
            }
        }
        // The new one is nobody else's: nginx gives up.
        let nginx = Nginx::new(cluster.vm3(), "second", 8080, "second")?.command();
        let ended = cluster.vm3().output(&nginx.iter().map(String::as_str).collect::<Vec<_>>());
        ensure!(ended.code == Some(1) && ended.stderr.contains("in use"), "{ended:?}");
        Ok(())
    });
}

#[test]
fn a_port_of_one_address_answers_there_only() {
    scenario("bound port", |lab| {
        let publish = ["--publish", "10.77.0.12:8081:80", "--publish", "[fd77::13]:8082:80"];
        let (cluster, _replicas) = web(lab, &publish)?;
        let client = lab.client("client")?;
        for daemon in &cluster.daemons {
            for address in [daemon.host().ip().to_string(), format!("[{}]", daemon.host().ip6())] {
                for (port, bound) in [(8081, "10.77.0.12"), (8082, "[fd77::13]")] {
                    let url = format!("http://{address}:{port}/");
                    within(CONVERGES, &url, || {
                        let asked = client.output(&["curl", "-sS", "--max-time", "2", &url]);
                        let expected = if address == bound { 0 } else { 7 };
                        ensure!(asked.code == Some(expected), "expected exit code {expected}: {asked:?}");
                        Ok(())
                    })?;
                }
            }
        }
        Ok(())
    });
}

/// Who has a port before its node joins keeps it, and the node says so; it serves the port once it can. What a node has served
/// goes on, though somebody takes the port while no daemon holds it.
#[test]
fn a_port_that_somebody_has_is_his_unless_it_was_served_before() {
    scenario("others' port", |lab| {
        let (vm1, vm2) = (lab.host("vm1")?, lab.host("vm2")?);
        let daemon = vm1.meshd()?;
        vm1.meshctl(&["cluster", "init", "--advertise-addr", &vm1.ip().to_string()]).ok()?;
        vm1.meshctl(&["network", "create", "--subnet", "192.168.100.0/24", "blue"]).ok()?;
        let service = ["service", "create", "--name", "web", "--network", "blue", "--publish", "8080:80"];
        vm1.meshctl(&service).ok()?;
        let spec = ReplicaSpec { name: "web1", network: Some("blue"), service: Some("web"), port: 80 };
        let _replica = Replica::start(&vm1, spec)?;
        let client = lab.client("client")?;
        let answers = |host: &Host, expected: &str| {
            let url = format!("http://{}:8080/", host.ip());
            within(CONVERGES, &format!("{url} is {expected}'s"), || {
                let answer = client.output(&["curl", "-sS", "--max-time", "2", &url]).ok()?;
                ensure!(answer.trim() == expected, "{answer}");
                Ok(())
            })
        };
        answers(&vm1, "web1")?;

        let theirs = Nginx::new(&vm2, "theirs", 8080, "theirs")?;
        let mut running = theirs.start(&vm2)?;
        let mut second = vm2.meshd()?;
        let token = vm1.meshctl(&["-q", "cluster", "join-token", "worker"]).ok()?;
        let join = ["cluster", "join", "--token", token.trim(), "--advertise-addr", &vm2.ip().to_string()];
        vm2.meshctl(&[&join[..], &[&format!("{}:7443", vm1.ip())]].concat()).ok()?;
        let says_who_has_it = || {
            within(CONVERGES, "vm2 says who has it", || {
                let status = vm2.meshctl(&["status"]).stdout;
                ensure!(status.contains("port 8080/tcp is in use by nginx (pid "), "{status}");
                let web = vm1.meshctl(&["-o", "json", "service", "inspect", "web"]).json()?;
                let degraded = &web[0]["degraded"][0];
                ensure!(degraded["node"] == "vm2", "{web}");
                ensure!(field(degraded, "problem").contains("in use by nginx"), "{web}");
                Ok(())
            })
        };
        says_who_has_it()?;
        let url = format!("http://{}:8080/", vm2.ip());
        for _ in 0..20 {
            let answer = client.curl(&url)?;
            ensure!(answer.trim() == "theirs", "taken from whoever had it: {answer}");
        }
        // It stays so when the daemon starts again.
        second.terminate()?;
        second.start()?;
        says_who_has_it()?;
        answers(&vm2, "theirs")?;
        running.kill()?;
        answers(&vm2, "web1")?;

        // Now it is the mesh's. The process that serves what the kernel can't lead holds it while no daemon runs; it goes on
        // though that ended too, and somebody is quicker than the next daemon.
        second.terminate()?;
        let refused = vm2.output(&theirs.command().iter().map(String::as_str).collect::<Vec<_>>());
        ensure!(refused.code == Some(1) && refused.stderr.contains("in use"), "{refused:?}");
        second.start()?;
        second.interrupt()?;
        let _late = theirs.start(&vm2)?;
        within(CONVERGES, "nginx has it", || {
            ensure!(vm2.curl("http://127.0.0.1:8080/")?.trim() == "theirs");
            Ok(())
        })?;
        answers(&vm2, "web1")?;
        second.start()?;
        says_who_has_it()?;
        answers(&vm2, "web1")?;
        drop(daemon);
        Ok(())
    });
}
