//! What the command line means, and what is refused.

use crate::{Cli, Command, network, service};
use clap::{CommandFactory, Parser, error::ErrorKind};
use mesh_model::{
    Balance, DomainName, EndpointMode, HealthCheck, HealthKind, NetworkSpec, NetworkUpdate, Resolver,
    ServiceSpec, ServiceUpdate,
};

fn parse(line: &str) -> Result<Command, ErrorKind> {
    Cli::try_parse_from(line.split_whitespace()).map(|cli| cli.command).map_err(|e| e.kind())
}

fn created(line: &str) -> anyhow::Result<ServiceSpec> {
    match parse(line) {
        Ok(Command::Service(service::Command::Create(args))) => args.spec(),
        other => panic!("{line}: {other:?}"),
    }
}

fn updated(line: &str, current: Option<&HealthCheck>) -> anyhow::Result<ServiceUpdate> {
    match parse(line) {
        Ok(Command::Service(service::Command::Update(args))) => args.update(current),
        other => panic!("{line}: {other:?}"),
    }
}

fn network_created(line: &str) -> NetworkSpec {
    match parse(line) {
        Ok(Command::Network(network::Command::Create(args))) => args.spec(),
        other => panic!("{line}: {other:?}"),
    }
}

fn network_updated(line: &str) -> NetworkUpdate {
    match parse(line) {
        Ok(Command::Network(network::Command::Update(args))) => args.update(),
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_says_what_it_does() {
    fn check(command: &clap::Command) {
        assert!(command.get_about().is_some(), "{} says nothing of itself", command.get_name());
        let arguments = command.get_arguments().filter(|a| !a.is_hide_set());
        for argument in arguments {
            assert!(argument.get_help().is_some(), "{}: {}", command.get_name(), argument.get_id());
        }
        command.get_subcommands().for_each(check);
    }
    check(&Cli::command());
}

#[test]
fn a_service_with_nothing_said_has_the_contracts_defaults() {
    let spec = created("meshctl service create --name web").unwrap();
    assert!(spec.networks.is_empty() && spec.ports.is_empty() && spec.health.is_none());
    assert_eq!((spec.endpoint_mode, spec.balance), (EndpointMode::Vip, Balance::Roundrobin));
    assert_eq!(spec.drain_timeout_ms, 10_000);
}

#[test]
fn a_service_with_everything_said() {
    let spec = created(
        "meshctl service create --name web --network blue --network red --alias www --publish 80:8080 \
         --publish 9090-9091:8080-8081/udp --endpoint-mode dnsrr --health-http /up --health-port 81 \
         --health-interval 500ms --health-rise 1 --health-fall 5 --health-timeout 250ms --balance random \
         --drain-timeout 1m",
    )
    .unwrap();
    assert_eq!(spec.networks, ["blue", "red"]);
    let ports: Vec<String> = spec.ports.iter().map(ToString::to_string).collect();
    assert_eq!(ports, ["*:80->8080/tcp", "*:9090->8080/udp", "*:9091->8081/udp"]);
    assert_eq!((spec.endpoint_mode, spec.balance), (EndpointMode::Dnsrr, Balance::Random));
    let check = HealthCheck {
        kind: HealthKind::Http("/up".to_owned()),
        port: Some(81),
        interval_ms: 500,
        timeout_ms: 250,
        rise: 1,
        fall: 5,
    };
    assert_eq!(spec.health, Some(check));
    assert_eq!(spec.drain_timeout_ms, 60_000);
}

#[test]
fn a_check_without_more_has_the_contracts_defaults() {
    let spec = created("meshctl service create --name web --health-tcp").unwrap();
    let check = HealthCheck {
        kind: HealthKind::Tcp,
        port: None,
        interval_ms: 2_000,
        timeout_ms: 1_000,
        rise: 2,
        fall: 3,
    };
    assert_eq!(spec.health, Some(check));
}

#[test]
fn an_interval_alone_is_no_check() {
    let refused = created("meshctl service create --name web --health-interval 1s").unwrap_err();
    assert!(refused.to_string().contains("--health-http"), "{refused}");
}

#[test]
fn an_update_changes_only_what_is_said() {
    let nothing = updated("meshctl service update web", None).unwrap();
    assert!(nothing.publish_add.is_empty() && nothing.publish_rm.is_empty());
    assert!(nothing.health.is_none() && nothing.balance.is_none() && nothing.aliases.is_none());
    assert!(nothing.endpoint_mode.is_none() && nothing.drain_timeout_ms.is_none());

    let ports =
        updated("meshctl service update --publish-add 443:8443 --publish-rm 80/tcp web", None).unwrap();
    assert_eq!(ports.publish_add[0].to_string(), "*:443->8443/tcp");
    assert_eq!(ports.publish_rm, ["80/tcp"]);

    let check = HealthCheck {
        kind: HealthKind::Http("/up".to_owned()),
        port: Some(81),
        interval_ms: 500,
        timeout_ms: 250,
        rise: 1,
        fall: 5,
    };
    let slower = updated("meshctl service update --health-interval 3s web", Some(&check)).unwrap();
    assert_eq!(slower.health, Some(Some(HealthCheck { interval_ms: 3_000, ..check.clone() })));
    let tcp = updated("meshctl service update --health-tcp web", Some(&check)).unwrap();
    assert_eq!(tcp.health, Some(Some(HealthCheck { kind: HealthKind::Tcp, ..check })));
    assert_eq!(updated("meshctl service update --no-health web", None).unwrap().health, Some(None));
    assert!(updated("meshctl service update --health-rise 2 web", None).is_err());
}

#[test]
fn flags_after_the_command_of_run_are_the_commands() {
    assert!(matches!(parse("meshctl run --network blue -- nginx -o x --network red"), Ok(Command::Run(_))));
    assert_eq!(parse("meshctl run --network blue nginx").unwrap_err(), ErrorKind::UnknownArgument);
    assert_eq!(parse("meshctl run --network blue").unwrap_err(), ErrorKind::MissingRequiredArgument);
    assert_eq!(parse("meshctl run -- nginx").unwrap_err(), ErrorKind::MissingRequiredArgument);
}

#[test]
fn globals_may_come_last() {
    assert!(matches!(
        parse("meshctl network ls -o json -q --socket /x"),
        Ok(Command::Network(network::Command::Ls { .. }))
    ));
}

#[test]
fn resolvers_of_networks() {
    let resolvers = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<Resolver>>();
    let domain = |text: &str| text.parse::<DomainName>().unwrap();
    assert!(network_created("meshctl network create blue").dns.is_empty());
    let spec = network_created(
        "meshctl network create --dns 10.0.0.1 --dns [fd00::1]:5353 --dns-domain Corp.example=10.1.0.1,10.1.0.2:54 \
         --dns-domain lan=fd00::2 --dns-domain corp.example.=10.1.0.3 blue",
    );
    assert_eq!(spec.dns.upstreams, resolvers(&["10.0.0.1", "[fd00::1]:5353"]));
    let domains = [
        (domain("corp.example"), resolvers(&["10.1.0.1", "10.1.0.2:54", "10.1.0.3"])),
        (domain("lan"), resolvers(&["fd00::2"])),
    ];
    assert_eq!(spec.dns.domains, domains.into());

    let update = network_updated(
        "meshctl network update --dns-add 10.0.0.1 --dns-rm 10.0.0.2 --dns-rm 10.0.0.3:54 \
         --dns-domain-add lan=10.1.0.1,10.1.0.2 --dns-domain-rm Corp.example. blue",
    );
    assert_eq!(update.dns_add, resolvers(&["10.0.0.1"]));
    assert_eq!(update.dns_rm, resolvers(&["10.0.0.2", "10.0.0.3:54"]));
    assert_eq!(update.dns_domain_add, [(domain("lan"), resolvers(&["10.1.0.1", "10.1.0.2"]))].into());
    assert_eq!(update.dns_domain_rm, [domain("corp.example")]);
    assert!(update.subnet_add.is_empty() && update.label_add.is_empty());
    for alone in
        ["--dns-add 10.0.0.1", "--dns-rm 10.0.0.1", "--dns-domain-add lan=10.0.0.1", "--dns-domain-rm lan"]
    {
        network_updated(&format!("meshctl network update {alone} blue"));
    }
}

/// A flag whose function does not exist yet does not exist either.
#[test]
fn wrong_usage() {
    for line in [
        "meshctl",
        "meshctl cluster",
        "meshctl cluster init",
        "meshctl cluster init --advertise-addr 10.0.0.1 --store mysql",
        "meshctl cluster join 10.0.0.1",
        "meshctl cluster join-token king",
        "meshctl network create",
        "meshctl network create --driver bridge blue",
        "meshctl node update vm2",
        "meshctl network inspect",
        "meshctl network update blue",
        "meshctl network update --gateway 10.0.0.1 blue",
        "meshctl network update --label-add a=b --gateway 10.0.0.1 blue",
        "meshctl network prune blue",
        "meshctl network connect blue",
        "meshctl service create",
        "meshctl service create --name web --sticky",
        "meshctl service create --name web --balance leastconn",
        "meshctl service create --name web --endpoint-mode none",
        "meshctl service create --name web --health-http / --health-tcp",
        "meshctl service update --no-health --health-tcp web",
        "meshctl service update --no-health --health-rise 2 web",
        "meshctl service update --sticky web",
        "meshctl service ps",
        "meshctl -o xml node ls",
        "meshctl frobnicate",
    ] {
        let kind = parse(line).expect_err(line);
        assert!(kind != ErrorKind::ValueValidation, "{line}: {kind:?}");
    }
}

/// These are usage to clap; `meshctl` refuses them as meshd would.
#[test]
fn malformed_values() {
    for line in [
        "meshctl cluster init --advertise-addr banana",
        "meshctl cluster init --advertise-addr 10.0.0.1 --data-path-port 0",
        "meshctl cluster init --advertise-addr 10.0.0.1 --default-addr-pool 10.0.0.0",
        "meshctl cluster join --token x vm1:70000",
        "meshctl cluster join-token worker --ttl 5",
        "meshctl network create --subnet 10.0.0.0/33 blue",
        "meshctl network create --gateway 10.0.0 blue",
        "meshctl network create --vni 99999999999 blue",
        "meshctl network create --label tier blue",
        "meshctl network create --dns banana blue",
        "meshctl network create --dns 10.0.0.1:0 blue",
        "meshctl network create --dns 0.0.0.0 blue",
        "meshctl network create --dns 10.0.0.1,10.0.0.2 blue",
        "meshctl network create --dns-domain corp.example blue",
        "meshctl network create --dns-domain corp.example= blue",
        "meshctl network create --dns-domain a..b=10.0.0.1 blue",
        "meshctl network update --dns-add ::1%lo blue",
        "meshctl network update --dns-domain-add blue.mesh.internal=10.0.0.1 blue",
        "meshctl network update --dns-domain-rm mesh.internal blue",
        "meshctl network create b/lue",
        "meshctl network connect blue container",
        "meshctl network connect --ip 10.0.0 blue pid:1",
        "meshctl service create --name web --publish 70000:80",
        "meshctl service create --name web --publish 80:80/sctp",
        "meshctl service create --name web --health-tcp --health-port 0",
        "meshctl service create --name _web",
        "meshctl service update --drain-timeout soon web",
    ] {
        assert_eq!(parse(line).expect_err(line), ErrorKind::ValueValidation, "{line}");
    }
}
