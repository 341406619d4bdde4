//! Names, as a container sees them.

use anyhow::{Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Container, Host, Lab, scenario, within};

/// Connects a new container and gives it the nameserver of its network, the gateway.
fn connected(lab: &Lab, host: &Host, name: &str, options: &[&str], network: &str) -> Result<Container> {
    let container = lab.container(name)?;
    let target = container.target();
    let line = [&["network", "connect", "--name", name], options, &[network, target.as_str()]].concat();
    host.meshctl(&line).ok()?;
    container.resolver("192.168.100.1")?;
    Ok(container)
}

/// A network with the service `web` (alias `www`), replicas on vm1 and vm2, and a container on vm3 that asks.
fn names(lab: &Lab, mode: &str) -> Result<(Cluster, Container)> {
    let cluster = Cluster::three(lab)?;
    let vm1 = cluster.vm1();
    vm1.meshctl(&["network", "create", "--subnet", "192.168.100.0/24", "blue"]).ok()?;
    let mode = ["--endpoint-mode", mode, "--alias", "www"];
    vm1.meshctl(&[&["service", "create", "--name", "web", "--network", "blue"], &mode[..]].concat()).ok()?;
    connected(lab, vm1, "web1", &["--service", "web", "--ip", "192.168.100.51"], "blue")?;
    connected(
        lab,
        cluster.vm2(),
        "web2",
        &["--service", "web", "--ip", "192.168.100.52", "--alias", "second"],
        "blue",
    )?;
    let asking = connected(lab, cluster.vm3(), "asking", &[], "blue")?;
    within(CONVERGES, "both replicas are known on vm3", || {
        ensure!(asking.dig(&["tasks.web"])? == ["192.168.100.51", "192.168.100.52"]);
        Ok(())
    })?;
    Ok((cluster, asking))
}

#[test]
fn services_endpoints_and_aliases() {
    scenario("names", |lab| {
        let (cluster, asking) = names(lab, "vip")?;
        let vip = cluster.vip("web")?;
        let expected: [(&str, &[&str]); 5] = [
            ("web", &[&vip]),
            ("www", &[&vip]),
            ("web1", &["192.168.100.51"]),
            ("second", &["192.168.100.52"]),
            ("tasks.web", &["192.168.100.51", "192.168.100.52"]),
        ];
        for (name, addresses) in expected {
            for suffix in ["", ".blue", ".blue.mesh.internal"] {
                for transport in ["+notcp", "+tcp"] {
                    let query = format!("{name}{suffix}");
                    let found = asking.dig(&[&query, transport])?;
                    ensure!(found == addresses, "{query} {transport}: {found:?}, expected {addresses:?}");
                }
            }
        }
        ensure!(asking.dig(&["WEB"])? == [vip.clone()], "names have no letter case");
        ensure!(asking.dig(&["-x", "192.168.100.51"])? == ["web1.blue.mesh.internal."]);
        // A name that exists has no IPv6 address here: NODATA, which must not become NXDOMAIN.
        let nodata = asking.output(&["dig", "+tries=1", "web", "AAAA"]).ok()?;
        ensure!(nodata.contains("status: NOERROR") && nodata.contains("ANSWER: 0"), "{nodata}");
        // What programs do, by way of the C library.
        let resolved = asking.output(&["getent", "ahostsv4", "web"]).ok()?;
        ensure!(resolved.contains(&vip), "{resolved}");
        Ok(())
    });
}

#[test]
fn dnsrr_gives_the_endpoints() {
    scenario("dnsrr", |lab| {
        let (_cluster, asking) = names(lab, "dnsrr")?;
        for name in ["web", "www", "tasks.web"] {
            let found = asking.dig(&[name])?;
            ensure!(found == ["192.168.100.51", "192.168.100.52"], "{name}: {found:?}");
        }
        Ok(())
    });
}

#[test]
fn everything_else_is_forwarded() {
    scenario("forwarding", |lab| {
        let resolver = lab.resolver()?;
        let (cluster, asking) = names(lab, "vip")?;
        ensure!(asking.dig(&["www.example.test"])? == ["192.0.2.1", "example.test."]);
        ensure!(asking.dig(&["+tcp", "example.test"])? == ["192.0.2.1"]);
        let unknown = asking.output(&["dig", "+tries=1", "nothing.mesh.internal"]).ok()?;
        ensure!(unknown.contains("status: NXDOMAIN"), "{unknown}");
        // The own names do not depend on the resolver beyond.
        drop(resolver);
        ensure!(asking.dig(&["web"])? == [cluster.vip("web")?]);
        Ok(())
    });
}

#[test]
fn names_go_with_what_they_name() {
    scenario("names go", |lab| {
        let (cluster, asking) = names(lab, "vip")?;
        cluster.vm2().meshctl(&["network", "disconnect", "blue", "web2"]).ok()?;
        within(CONVERGES, "the endpoint's names are gone", || {
            ensure!(asking.dig(&["tasks.web"])? == ["192.168.100.51"]);
            ensure!(asking.dig(&["web2.blue.mesh.internal"])?.is_empty());
            Ok(())
        })?;
        // Idempotent, as the contract says.
        cluster.vm2().meshctl(&["network", "disconnect", "blue", "web2"]).ok()?;
        cluster.vm1().meshctl(&["network", "disconnect", "blue", "web1"]).ok()?;
        let vip = cluster.vip("web")?;
        within(CONVERGES, "no replica is left, the service's name is", || {
            ensure!(asking.dig(&["tasks.web"])?.is_empty());
            ensure!(asking.dig(&["web"])? == [vip.as_str()]);
            Ok(())
        })?;
        cluster.vm1().meshctl(&["service", "rm", "web"]).ok()?;
        within(CONVERGES, "the service's name is gone", || {
            ensure!(asking.dig(&["web.blue.mesh.internal"])?.is_empty());
            Ok(())
        })
    });
}
