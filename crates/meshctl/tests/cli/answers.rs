//! What is printed, on which stream, with which exit code.

use crate::{
    daemon::{Daemon, Ended},
    views,
};
use mesh_api::{
    Created, Diagnosis, Disconnect, Examine, Finding, Group, Initialized, Join, JoinTokenView, Joined,
    Outcome, State,
};
use mesh_model::{EndpointSpec, HealthCheck, HealthKind, NetworkSpec, NodeId, Role, ServiceUpdate, Target};
use serde_json::Value;
use std::{
    fs,
    io::{Seek, Write},
    os::fd::OwnedFd,
    process::Stdio,
};

#[test]
fn a_refusal_is_one_line() {
    let daemon = Daemon::start().refuses("DELETE /v1/networks/blue", 409, "network 'blue' is in use");
    let ended = daemon.meshctl(&["network", "rm", "blue"]);
    assert_eq!(ended.stdout, "");
    assert_eq!(ended.refused(), "network 'blue' is in use");
}

#[test]
fn nobody_listens() {
    let daemon = Daemon::start();
    let nowhere = daemon.socket().with_file_name("nowhere.sock");
    let said = daemon.meshctl(&["--socket", nowhere.to_str().unwrap(), "node", "ls"]).refused();
    assert!(said.starts_with("meshd does not answer at ") && said.contains("is it running?"), "{said}");
    assert_eq!(said.matches("No such file").count(), 1, "the cause is said once: {said}");
}

#[test]
fn a_daemon_that_breaks_off_or_babbles() {
    let daemon = Daemon::start().breaks_off("GET /v1/nodes").babbles("GET /v1/networks");
    let said = daemon.meshctl(&["node", "ls"]).refused();
    assert!(said.contains("the connection to meshd broke"), "{said}");
    let said = daemon.meshctl(&["network", "ls"]).refused();
    assert!(said.contains("not understood"), "{said}");
}

#[test]
fn malformed_values_are_refused_in_one_line_without_asking() {
    let daemon = Daemon::start();
    for (arguments, text) in [
        (
            &["network", "create", "--subnet", "10.0.0.0/33", "blue"][..],
            "--subnet: '10.0.0.0/33' is no subnet: write ADDRESS/PREFIX, such as 10.1.0.0/16",
        ),
        (
            &["service", "create", "--name", "web", "--publish", "70000:80"],
            "--publish: '70000' is no port: ports go from 1 to 65535",
        ),
        (
            &["network", "connect", "blue", "web1"],
            "TARGET: 'web1' is no target: write netns:/path, pid:NUMBER or docker:NAME",
        ),
    ] {
        assert_eq!(daemon.meshctl(arguments).refused(), text);
    }
    assert!(daemon.asked().is_empty());
}

#[test]
fn wrong_usage_is_2_and_help_is_0() {
    let daemon = Daemon::start();
    for usage in [&["frobnicate"][..], &["service", "create", "--name", "web", "--sticky"], &[]] {
        let ended = daemon.meshctl(usage);
        assert!(ended.code == Some(2) && ended.stdout.is_empty() && !ended.stderr.is_empty(), "{ended:?}");
    }
    for help in [&["--help"][..], &["service", "create", "--help"], &["run", "--help"]] {
        assert!(daemon.meshctl(help).ok().contains("Examples:"), "{help:?}");
    }
}

#[test]
fn a_diagnosis_is_a_table_with_what_needs_somebody_first() {
    let finding = |group, check: &str, outcome, place: &str, result: &str, remedy: &str| Finding {
        group,
        check: check.to_owned(),
        outcome,
        place: place.to_owned(),
        peer: None,
        network: None,
        result: result.to_owned(),
        remedy: remedy.to_owned(),
    };
    let fine = finding(Group::Host, "kernel", Outcome::Ok, "vm1", "has what is needed", "");
    let odd =
        finding(Group::Cluster, "clocks", Outcome::Warning, "vm1 <-> vm2", "3 s ahead", "set the clocks");
    let bad = finding(Group::Links, "vxlan-port", Outcome::Failed, "vm1 <-> vm2", "blocked", "open it");
    let diagnosis =
        Diagnosis { node: "vm1".to_owned(), healthy: false, findings: vec![fine.clone(), odd.clone(), bad] };
    let daemon = Daemon::start().says("POST /v1/doctor", &diagnosis);
    let ended = daemon.meshctl(&["doctor", "--node", "vm2", "--network", "blue"]);
    assert_eq!(
        ended.stdout,
        "STATUS    CHECK              WHERE         RESULT      WHAT TO DO\n\
         FAILED    links/vxlan-port   vm1 <-> vm2   blocked     open it\n\
         warning   cluster/clocks     vm1 <-> vm2   3 s ahead   set the clocks\n\
         \n\
         STATUS   CHECK         WHERE   RESULT\n\
         ok       host/kernel   vm1     has what is needed\n"
    );
    assert_eq!(ended.code, Some(1));
    assert_eq!(
        ended.stderr,
        "meshctl: vm1 is not healthy: 1 finding FAILED: do what stands beside, worst first from the top\n"
    );
    let asked: Examine = daemon.asked_once("POST /v1/doctor").body();
    assert_eq!((asked.node.as_deref(), asked.network.as_deref()), (Some("vm2"), Some("blue")));

    let healthy = Diagnosis { healthy: true, findings: vec![fine, odd], ..diagnosis };
    let daemon = Daemon::start().says("POST /v1/doctor", &healthy);
    assert!(daemon.meshctl(&["doctor"]).ok().starts_with("STATUS"), "warnings alone are no failure");
    assert_eq!(daemon.meshctl(&["-q", "doctor"]).ok(), "");
    for form in ["json", "yaml"] {
        let said = daemon.meshctl(&["-o", form, "doctor"]).ok();
        assert_eq!(yaml_serde::from_str::<Diagnosis>(&said).unwrap(), healthy);
    }
}

#[test]
fn what_is_created_prints_its_id_and_warns_beside() {
    let warned = Created { warnings: vec!["port 80 is taken on vm2".to_owned()], ..views::created() };
    let daemon =
        Daemon::start().says("POST /v1/networks", &views::created()).says("POST /v1/services", &warned);
    let create = ["network", "create", "--subnet", "10.8.0.0/16", "--label", "tier=db", "--internal", "blue"];
    let dns = ["--dns", "10.0.0.53", "--dns-domain", "lan=10.1.0.53,fd00::53"];
    assert_eq!(daemon.meshctl(&[&create[..], &dns].concat()).ok(), "00000000000000aa\n");
    let spec: NetworkSpec = daemon.asked_once("POST /v1/networks").body();
    assert_eq!((&*spec.name, spec.internal, spec.ipv6), ("blue", true, false));
    assert_eq!(spec.subnets, ["10.8.0.0/16".parse().unwrap()]);
    assert_eq!(spec.labels["tier"], "db");
    assert_eq!(spec.dns.upstreams, ["10.0.0.53".parse().unwrap()]);
    assert_eq!(spec.dns.domains["lan"], ["10.1.0.53".parse().unwrap(), "fd00::53".parse().unwrap()]);

    let ended = daemon.meshctl(&["service", "create", "--name", "web"]);
    assert_eq!((ended.code, &*ended.stdout), (Some(0), "00000000000000aa\n"));
    assert_eq!(ended.stderr, "meshctl: warning: port 80 is taken on vm2\n");
}

#[test]
fn yaml_has_no_tags_that_its_readers_would_not_know() {
    let endpoints = [views::endpoint()];
    let daemon = Daemon::start().says("GET /v1/endpoints?", &endpoints);
    let yaml = daemon.meshctl(&["endpoint", "ls", "-o", "yaml"]).ok();
    assert!(yaml.contains("  target:\n    ") && !yaml.contains('!'), "{yaml}");
    let expected = serde_json::to_value(&endpoints).unwrap();
    assert_eq!(yaml_serde::from_str::<Value>(&yaml).unwrap(), expected);
}

#[test]
fn programs_get_the_views_as_they_are() {
    let nodes = [views::node("vm1", 1), views::node("vm2", 2)];
    let daemon = Daemon::start().says("GET /v1/nodes", &nodes);
    let expected = serde_json::to_value(&nodes).unwrap();
    let json = daemon.meshctl(&["-o", "json", "node", "ls"]).ok();
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), expected);
    let yaml = daemon.meshctl(&["node", "ls", "-o", "yaml"]).ok();
    assert_eq!(yaml_serde::from_str::<Value>(&yaml).unwrap(), expected);
    assert_eq!(daemon.meshctl(&["-q", "node", "ls"]).ok(), "000000000000\n000000000000\n");
    let whole = daemon.meshctl(&["-q", "node", "ls", "--no-trunc"]).ok();
    assert_eq!(whole, "0000000000000001\n0000000000000002\n");
}

#[test]
fn a_node_is_found_by_name_self_and_unique_prefix() {
    let nodes = [views::node("vm1", 0xab00 << 48), views::node("vm2", 0xac00 << 48)];
    let daemon = Daemon::start().says("GET /v1/nodes", &nodes);
    let inspect = |wanted: &str| daemon.meshctl(&["-q", "node", "inspect", wanted]);
    assert_eq!(inspect("vm2").ok(), "ac00000000000000\n");
    assert_eq!(inspect("self").ok(), "ab00000000000000\n");
    assert_eq!(inspect("ac00").ok(), "ac00000000000000\n");
    for unknown in ["a", "vm3", ""] {
        assert!(inspect(unknown).refused().contains("no node is called"), "{unknown}");
    }
}

#[test]
fn init_prints_the_whole_join_command() {
    let made = Initialized {
        node: NodeId::from_bits(7),
        join_token: "MESH-1-abc".to_owned(),
        manager: "[fd00::1]:7443".parse().unwrap(),
    };
    let daemon = Daemon::start().says("POST /v1/cluster/init", &made);
    let text = daemon.meshctl(&["cluster", "init", "--advertise-addr", "fd00::1"]).ok();
    let command = text.lines().find(|line| line.contains("meshctl ")).map(str::trim);
    assert_eq!(command, Some("meshctl cluster join --token MESH-1-abc [fd00::1]:7443"), "{text}");
    let asked: Value = daemon.asked_once("POST /v1/cluster/init").body();
    assert_eq!((&asked["advertise"], &asked["data_path_port"]), (&"[fd00::1]:7443".into(), &4789.into()));
}

#[test]
fn a_token_alone_is_for_scripts() {
    let view = JoinTokenView { token: "MESH-1-abc".to_owned(), manager: "10.0.0.1:7443".parse().unwrap() };
    let daemon = Daemon::start().says("POST /v1/cluster/join-token", &view);
    assert_eq!(
        daemon.meshctl(&["-q", "cluster", "join-token", "worker", "--ttl", "1h"]).ok(),
        "MESH-1-abc\n"
    );
    let asked: Value = daemon.asked_once("POST /v1/cluster/join-token").body();
    assert_eq!((&asked["role"], &asked["ttl_ms"]), (&"worker".into(), &3_600_000.into()));
}

#[test]
fn join_resolves_the_managers_name() {
    let joined = Joined { node: NodeId::from_bits(7), role: Role::Worker };
    let daemon = Daemon::start().says("POST /v1/cluster/join", &joined);
    let join = ["cluster", "join", "--token", "t", "--advertise-addr", "10.0.0.2", "localhost:7000"];
    assert_eq!(daemon.meshctl(&join).ok(), "This node joined the cluster as a worker.\n");
    let asked: Join = daemon.asked_once("POST /v1/cluster/join").body();
    assert!(asked.manager.ip().is_loopback() && asked.manager.port() == 7000, "{asked:?}");
    assert_eq!(asked.advertise, Some("10.0.0.2:7443".parse().unwrap()));

    let said = daemon.meshctl(&["cluster", "join", "--token", "t", "no-such-host.invalid:7443"]).refused();
    assert!(said.contains("cannot resolve 'no-such-host.invalid'"), "{said}");
}

#[test]
fn a_token_need_not_be_in_the_list_of_processes() {
    let joined = Joined { node: NodeId::from_bits(7), role: Role::Worker };
    let join = |token: &[&str], said: &str, environment: Option<&str>| {
        let daemon = Daemon::start().says("POST /v1/cluster/join", &joined);
        let mut command = daemon.command(&[&["cluster", "join", "10.0.0.1:7443"], token].concat());
        command.envs(environment.map(|token| ("MESH_TOKEN", token)));
        let mut input = tempfile::tempfile().unwrap();
        input.write_all(said.as_bytes()).unwrap();
        input.rewind().unwrap();
        let ended = Ended::from(command.stdin(input).output().unwrap());
        (ended, daemon)
    };
    for (token, said, environment) in [
        (&["--token", "-"][..], "MESH-1-abc\nmore\n", None),
        (&["--token", "-"], "MESH-1-abc", Some("MESH-1-other")),
        (&[], "", Some("MESH-1-abc")),
        (&["--token", "MESH-1-abc"], "", Some("MESH-1-other")),
    ] {
        let (ended, daemon) = join(token, said, environment);
        ended.ok();
        assert_eq!(daemon.asked_once("POST /v1/cluster/join").body::<Join>().token, "MESH-1-abc");
    }
    let (ended, daemon) = join(&["--token", "-"], "\n", None);
    assert!(ended.refused().starts_with("no token on standard input: ") && daemon.asked().is_empty());

    let mut help = Daemon::start().command(&["cluster", "join", "--help"]);
    let help = Ended::from(help.env("MESH_TOKEN", "MESH-1-abc").output().unwrap()).ok();
    assert!(help.contains("MESH_TOKEN") && !help.contains("MESH-1-abc"), "{help}");
}

#[test]
fn removals_answer_for_what_they_removed() {
    let daemon = Daemon::start().says("DELETE /v1/services/one", &views::removed(true)).refuses(
        "DELETE /v1/services/two",
        409,
        "service 'two' has 2 endpoints",
    );
    let ended = daemon.meshctl(&["service", "rm", "one", "two", "three"]);
    assert_eq!(ended.stdout, "one\n");
    assert_eq!(ended.refused(), "service 'two' has 2 endpoints");
    assert!(daemon.asked().iter().all(|asked| !asked.what.contains("three")));

    let json = daemon.meshctl(&["-o", "json", "service", "rm", "one"]).ok();
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()[0]["removed"], true);
}

#[test]
fn connect_and_disconnect() {
    let daemon = Daemon::start()
        .says("POST /v1/endpoints", &views::endpoint())
        .says("POST /v1/endpoints/disconnect", &views::removed(false));
    let connect = ["network", "connect", "--service", "web", "--ip", "192.0.2.9", "--alias", "a", "blue"];
    let connected = daemon.meshctl(&[&connect[..], &["netns:/run/netns/c1"]].concat()).ok();
    assert_eq!(connected, "123456789abcdef0\n");
    let spec: EndpointSpec = daemon.asked_once("POST /v1/endpoints").body();
    assert_eq!((&*spec.network, spec.service.as_deref(), &*spec.ifname), ("blue", Some("web"), "eth0"));
    assert_eq!(spec.target, Target::Netns("/run/netns/c1".into()));
    assert_eq!((spec.addresses.len(), spec.aliases.len(), spec.name), (1, 1, None));

    assert_eq!(daemon.meshctl(&["network", "disconnect", "--force", "blue", "web1"]).ok(), "");
    let asked: Disconnect = daemon.asked_once("POST /v1/endpoints/disconnect").body();
    assert_eq!((&*asked.network, &*asked.endpoint, asked.force), ("blue", "web1", true));
}

#[test]
fn an_update_keeps_what_is_not_said_of_the_check() {
    let daemon = Daemon::start()
        .says("GET /v1/services/web", &views::service())
        .says("PATCH /v1/services/web", &views::created());
    daemon.meshctl(&["service", "update", "--health-interval", "500ms", "web"]).ok();
    let update: ServiceUpdate = daemon.asked_once("PATCH /v1/services/web").body();
    let check = HealthCheck {
        kind: HealthKind::Http("/up".to_owned()),
        port: Some(81),
        interval_ms: 500,
        timeout_ms: 250,
        rise: 1,
        fall: 7,
    };
    assert_eq!(update.health, Some(Some(check)));
}

#[test]
fn an_update_of_something_else_does_not_touch_the_check() {
    let daemon = Daemon::start().says("PATCH /v1/services/web", &views::created());
    daemon.meshctl(&["service", "update", "--publish-add", "80:80", "web"]).ok();
    let update: ServiceUpdate = daemon.asked_once("PATCH /v1/services/web").body();
    assert!(update.health.is_none() && update.publish_add.len() == 1);
}

#[test]
fn names_are_escaped_on_their_way() {
    let daemon = Daemon::start().refuses("GET /v1/networks/a%2Fb%3Fc", 404, "no network is called 'a/b?c'");
    assert_eq!(daemon.meshctl(&["network", "inspect", "a/b?c"]).refused(), "no network is called 'a/b?c'");
}

#[test]
fn status_is_the_exit_code() {
    for (state, code) in
        [(State::Ready, 0), (State::Unclustered, 0), (State::Detached, 1), (State::Removed, 1)]
    {
        let ended = Daemon::start().says("GET /v1/status", &views::status(state)).meshctl(&["status"]);
        assert!(ended.code == Some(code) && ended.stdout.contains("State:"), "{ended:?}");
    }
}

#[test]
fn version_says_both_and_its_own_without_a_daemon() {
    let daemon = Daemon::start().says("GET /v1/status", &views::status(State::Ready));
    assert!(daemon.meshctl(&["version"]).ok().contains("9.8.7"));
    let ended = Daemon::start().breaks_off("GET /v1/status").meshctl(&["version"]);
    assert!(ended.stdout.contains(env!("CARGO_PKG_VERSION")), "{ended:?}");
    ended.refused();
}

#[test]
fn a_reader_that_went_away_is_no_error() {
    let nodes = [views::node("vm1", 1)];
    let daemon = Daemon::start().says("GET /v1/nodes", &nodes);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let stdout = Stdio::from(OwnedFd::from(writer));
    let output = daemon.command(&["node", "ls"]).stdout(stdout).stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn an_answer_that_cannot_be_written_is_an_error() {
    let daemon = Daemon::start().says("GET /v1/nodes", &[views::node("vm1", 1)]);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = daemon.command(&["node", "ls"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert!(crate::daemon::Ended::from(output).refused().contains("cannot write the answer"));
}
