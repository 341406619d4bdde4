//! Published ports that change, and those of one address.

use anyhow::{Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Lab, Nginx, Replica, ReplicaSpec, scenario, within};

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
