//! The host's stub as the only resolver: the real systemd-resolved, which asks the router.

use std::fs;

use anyhow::{Context, Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Host, Lab, Namespace, STUB_CONF, resolved, scenario, within};

use crate::{GATEWAY, OF_ROUTER, connected, finds, network, states, status};

/// Longer than what is sent by UDP.
const LONG: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

/// Names of the router's, and that there are no others.
fn router() -> Vec<String> {
    let text = LONG.map(|letter| letter.repeat(250)).join(",");
    vec![
        format!("--address=/example.test/{OF_ROUTER}"),
        format!("--txt-record=long.test,{text}"),
        "--cname=alias.test,www.example.test".to_owned(),
        "--host-record=www.example.test,192.0.2.1".to_owned(),
        "--address=/#/".to_owned(),
    ]
}

/// The hosts' file is the one that systemd-resolved has written by then.
fn is_the_hosts(lab: &Lab, host: &Host) -> Result<()> {
    let text = within(CONVERGES, "it has written the file", || {
        let text = fs::read_to_string(host.file(STUB_CONF)).context(STUB_CONF)?;
        ensure!(text.contains("\nnameserver 127.0.0.53\n"), "{text}");
        Ok(text)
    })?;
    lab.hosts_resolv_conf(&text)
}

/// What it says of names, by both transports.
fn is_asked(asking: &Namespace) -> Result<()> {
    for transport in ["+notcp", "+tcp"] {
        let ask = |question: &[&str]| asking.dig(&[&[transport], question].concat());
        ensure!(ask(&["www.example.test"])? == [OF_ROUTER]);
        let found = ask(&["alias.test"])?;
        ensure!(found == [OF_ROUTER, "www.example.test."], "{found:?}");
        // It is there, but has no such address.
        ensure!(ask(&["www.example.test", "AAAA"])?.is_empty());
        ensure!(status(asking, &[transport, "www.example.test", "AAAA"])? == "NOERROR");
        for kind in ["A", "AAAA", "SRV"] {
            let code = status(asking, &[transport, "nothing.test", kind])?;
            ensure!(code == "NXDOMAIN", "{transport} {kind}: {code}");
        }
        let text = ask(&["long.test", "TXT"])?;
        ensure!(
            text.len() == 1 && LONG.iter().all(|letter| text[0].contains(&letter.repeat(250))),
            "{text:?}"
        );
    }
    Ok(())
}

#[test]
fn systemd_resolved_answers_what_containers_ask() {
    scenario("systemd-resolved", |lab| {
        let records = router();
        let records: Vec<&str> = records.iter().map(String::as_str).collect();
        let _router = lab.resolver_with(&records)?;
        let host = lab.host("vm1")?;
        let stub = resolved(&host, "10.77.0.1")?;
        is_the_hosts(lab, &host)?;
        let cluster = Cluster::alone(host.meshd()?)?;
        let vm1 = cluster.vm1();
        network(vm1, "blue", &[])?;
        let asking = connected(lab, vm1, "asking", "blue", &[])?;
        finds(&asking, "example.test", OF_ROUTER)?;
        is_asked(&asking)?;
        within(CONVERGES, "nobody else is asked", || {
            let view = vm1.meshctl(&["-o", "json", "dns", "status"]).json()?;
            ensure!(states(&view) == [("127.0.0.53:53".to_owned(), "good".to_owned())], "{view}");
            Ok(())
        })?;

        drop(stub);
        // Not there and not known differ; the mesh's own names do not depend on it.
        ensure!(status(&asking, &["unknown.example.test"])? == "SERVFAIL");
        finds(&asking, "asking", &cluster.address("asking")?)?;
        ensure!(status(&asking, &[&format!("@{GATEWAY}"), "nothing.mesh.internal"])? == "NXDOMAIN");
        let _stub = resolved(&host, "10.77.0.1")?;
        finds(&asking, "unknown.example.test", OF_ROUTER)?;
        finds(&asking, "later.example.test", OF_ROUTER)
    });
}
