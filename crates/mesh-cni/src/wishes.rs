//! What is asked of the mesh for one attachment, from all the places that a runtime may say it in.

use crate::{
    args::Args,
    config::{Aliases, Config, PortMapping, unsupported},
    failure::{Code, Failure},
};
use ipnetwork::IpNetwork;
use mesh_model::{
    MacAddr, Name, Protocol, PublishMode, PublishedPort, Weight,
    labels::{ALIASES, NAME, SERVICE, WEIGHT},
};
use serde_json::Value;
use std::net::IpAddr;

/// An attachment's part of an endpoint's specification.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Wishes {
    pub(crate) service: Option<String>,
    pub(crate) name: Option<Name>,
    pub(crate) preferred_name: Option<Name>,
    pub(crate) aliases: Vec<Name>,
    pub(crate) weight: Weight,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) mac: Option<MacAddr>,
    pub(crate) ports: Vec<PublishedPort>,
}

impl Wishes {
    /// What is said for one attachment counts more than what is said for the network; a capability counts more than
    /// `args`, and those more than `CNI_ARGS`, as the conventions ask for.
    pub(crate) fn of(config: &Config, args: &Args) -> Result<Self, Failure> {
        let mut wishes = Self { service: config.service.clone(), ..Self::default() };
        wishes.take_args(args)?;
        wishes.take_labels(config)?;
        for alias in config.aliases.iter().chain(aliases(config)) {
            wishes.take_alias(alias)?;
        }
        // Podman's container; what other runtimes call a pod.
        wishes.preferred_name = args.get("K8S_POD_NAME").and_then(|name| name.parse().ok());
        wishes.addresses = addresses(config, args)?;
        let mac = Some(config.capabilities.mac.as_str()).filter(|mac| !mac.is_empty());
        wishes.mac = mac.or(args.get("MAC")).map(parse_mac).transpose()?;
        wishes.ports = config.capabilities.port_mappings.iter().map(port).collect::<Result<_, _>>()?;
        Ok(wishes)
    }

    fn take_args(&mut self, args: &Args) -> Result<(), Failure> {
        for (variable, key) in [
            ("MESH_SERVICE", SERVICE),
            ("MESH_NAME", NAME),
            ("MESH_ALIASES", ALIASES),
            ("MESH_WEIGHT", WEIGHT),
        ] {
            if let Some(value) = args.get(variable) {
                self.take(key, value)?;
            }
        }
        Ok(())
    }

    /// `args` are optional data: what is not understood is passed over.
    fn take_labels(&mut self, config: &Config) -> Result<(), Failure> {
        let labels = config.args.get("labels").and_then(Value::as_array);
        for label in labels.into_iter().flatten() {
            if let (Some(key), Some(value)) = (label["key"].as_str(), label["value"].as_str()) {
                self.take(key, value)?;
            }
        }
        Ok(())
    }

    /// Some aliases are none: Podman keeps aliases with a container, and has no other place for what a plugin is to know.
    fn take_alias(&mut self, alias: &str) -> Result<(), Failure> {
        if let Some((key, value)) = alias.split_once('=')
            && self.take(key, value)?
        {
            return Ok(());
        }
        self.add_name(alias)
    }

    fn add_name(&mut self, name: &str) -> Result<(), Failure> {
        let name: Name = parse_name(name)?;
        if !self.aliases.iter().any(|known| known.same(&name)) {
            self.aliases.push(name);
        }
        Ok(())
    }

    /// Takes what a key of meshd's says; whether it is one.
    fn take(&mut self, key: &str, value: &str) -> Result<bool, Failure> {
        match key {
            // As one that isn't there.
            SERVICE | NAME | ALIASES | WEIGHT if value.is_empty() => {}
            SERVICE => self.service = Some(value.to_owned()),
            NAME => self.name = Some(parse_name(value)?),
            ALIASES => {
                let mut names = value.split(',').map(str::trim).filter(|name| !name.is_empty());
                names.try_for_each(|name| self.add_name(name))?;
            }
            WEIGHT => self.weight = parse_weight(value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// The capability's aliases, as a list or by network.
fn aliases(config: &Config) -> impl Iterator<Item = &String> {
    let (list, of_network) = match &config.capabilities.aliases {
        None => (None, None),
        Some(Aliases::List(list)) => (Some(list), None),
        Some(Aliases::OfNetworks(networks)) => (None, networks.get(&config.name)),
    };
    list.into_iter().chain(of_network).flatten()
}

fn addresses(config: &Config, args: &Args) -> Result<Vec<IpAddr>, Failure> {
    let of_args = config.args.get("ips").and_then(Value::as_array);
    if !config.capabilities.ips.is_empty() {
        return config.capabilities.ips.iter().map(|ip| parse_ip(ip)).collect();
    }
    if let Some(ips) = of_args.filter(|ips| !ips.is_empty()) {
        let text = |ip: &Value| ip.as_str().map(str::to_owned).unwrap_or_else(|| ip.to_string());
        return ips.iter().map(|ip| parse_ip(&text(ip))).collect();
    }
    args.get("IP").into_iter().flat_map(|list| list.split(',')).map(parse_ip).collect()
}

/// An address, with or without a prefix length: that of the network counts.
fn parse_ip(text: &str) -> Result<IpAddr, Failure> {
    text.parse().or_else(|_| text.parse::<IpNetwork>().map(|network| network.ip())).map_err(|_| {
        Failure::new(Code::Config, format!("'{text}' is no IP address"))
            .because("write 192.0.2.1 or 2001:db8::1")
    })
}

fn parse_mac(text: &str) -> Result<MacAddr, Failure> {
    text.parse().map_err(|e| Failure::new(Code::Config, "the MAC address is invalid").because(e))
}

fn parse_name(text: &str) -> Result<Name, Failure> {
    text.parse().map_err(|e| Failure::new(Code::Config, format!("'{text}' can't be a name")).because(e))
}

fn parse_weight(text: &str) -> Result<Weight, Failure> {
    text.parse().map_err(|e: String| Failure::new(Code::Config, "the weight is invalid").because(e))
}

/// A port of this host that leads to the container: in host mode, for another host may give the same port to a container
/// of its own. What is to be reached through every node is published by a service.
fn port(mapping: &PortMapping) -> Result<PublishedPort, Failure> {
    let number = |key: &str, port: u32| {
        u16::try_from(port).ok().filter(|port| *port > 0).ok_or_else(|| {
            Failure::new(Code::Config, format!("portMappings: {key} {port} is no port"))
                .because("ports go from 1 to 65535")
        })
    };
    let protocol = match mapping.protocol.to_ascii_lowercase().as_str() {
        "" | "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => {
            let value = Value::from(mapping.protocol.as_str());
            return Err(unsupported("portMappings.protocol", &value, "tcp and udp can be published"));
        }
    };
    let ip = Some(mapping.host_ip.as_str()).filter(|ip| !ip.is_empty()).map(parse_ip).transpose()?;
    Ok(PublishedPort {
        published: number("hostPort", mapping.host_port)?,
        target: number("containerPort", mapping.container_port)?,
        protocol,
        mode: PublishMode::Host,
        ip: ip.filter(|ip| !ip.is_unspecified()),
        proxy_protocol: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn wishes(more: Value, args: &str) -> Result<Wishes, Failure> {
        let mut config = json!({ "cniVersion": "0.4.0", "name": "blue", "type": "mesh-cni" });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let config = Config::parse(config.to_string().as_bytes()).unwrap();
        Wishes::of(&config, &Args::parse(args).unwrap())
    }

    #[test]
    fn podman_says_names_and_places_like_this() {
        let runtime = json!({ "runtimeConfig": {
            "aliases": { "blue": ["db", "DB", "mesh.service=web", "mesh.name=web-1", "mesh.weight=3"], "red": ["other"] },
            "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "" },
                { "hostPort": 53, "containerPort": 53, "protocol": "UDP", "hostIP": "0.0.0.0" },
                { "hostPort": 81, "containerPort": 80, "hostIP": "192.0.2.1" }],
        }});
        let args = "IgnoreUnknown=1;K8S_POD_NAME=web1;MAC=02:11:22:33:44:55;IP=10.1.0.9";
        let wishes = wishes(runtime, args).unwrap();
        assert_eq!(wishes.aliases, ["db".parse::<Name>().unwrap()]);
        assert_eq!(wishes.service.as_deref(), Some("web"));
        assert_eq!((wishes.name, wishes.weight), (Some("web-1".parse().unwrap()), "3".parse().unwrap()));
        assert_eq!(wishes.preferred_name, Some("web1".parse().unwrap()));
        assert_eq!(wishes.addresses, ["10.1.0.9".parse::<IpAddr>().unwrap()]);
        assert_eq!(wishes.mac, Some("02:11:22:33:44:55".parse().unwrap()));
        let ports: Vec<String> = wishes.ports.iter().map(ToString::to_string).collect();
        assert_eq!(ports, ["*:8080->80/tcp", "*:53->53/udp", "192.0.2.1:81->80/tcp"]);
    }

    #[test]
    fn every_variable_of_the_mesh_is_known_and_taken() {
        let args = "MESH_SERVICE=web;MESH_NAME=web-1;MESH_ALIASES=a, b,,A;MESH_WEIGHT=3";
        let expected = Wishes {
            service: Some("web".to_owned()),
            name: Some("web-1".parse().unwrap()),
            aliases: vec!["a".parse().unwrap(), "b".parse().unwrap()],
            weight: "3".parse().unwrap(),
            ..Wishes::default()
        };
        assert_eq!(wishes(json!({}), args).unwrap(), expected);
        let label = |key: &str, value: &str| json!({ "key": key, "value": value });
        let labels = [
            label("mesh.service", "web"),
            label("mesh.name", "web-1"),
            label("mesh.aliases", "a,b"),
            label("mesh.weight", "3"),
            label("mesh.service", ""),
        ];
        assert_eq!(wishes(json!({ "args": { "cni": { "labels": labels } } }), "").unwrap(), expected);
    }

    #[test]
    fn the_nearer_place_counts() {
        let args = "MESH_SERVICE=args;IP=10.1.0.3";
        let config = json!({ "service": "config", "args": { "cni": { "ips": ["10.1.0.2/24"] } } });
        let of_args = wishes(config.clone(), args).unwrap();
        assert_eq!(of_args.service.as_deref(), Some("args"));
        assert_eq!(of_args.addresses, ["10.1.0.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(wishes(config, "").unwrap().service.as_deref(), Some("config"));
        let labels = json!({ "args": { "cni": { "labels": [{ "key": "mesh.service", "value": "label" }, 7] } },
            "runtimeConfig": { "ips": ["10.1.0.1/24", "fd00::1"] } });
        let labelled = wishes(labels, args).unwrap();
        assert_eq!(labelled.service.as_deref(), Some("label"));
        let both: [IpAddr; 2] = ["10.1.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        assert_eq!(labelled.addresses, both);
    }

    #[test]
    fn what_can_not_be_is_refused_with_its_code() {
        let mapping = |mapping: Value| json!({ "runtimeConfig": { "portMappings": [mapping] } });
        for (config, args, code) in [
            (mapping(json!({ "hostPort": 0, "containerPort": 80 })), "", Code::Config),
            (mapping(json!({ "hostPort": 80, "containerPort": 70000 })), "", Code::Config),
            (
                mapping(json!({ "hostPort": 80, "containerPort": 80, "protocol": "sctp" })),
                "",
                Code::Unsupported,
            ),
            (mapping(json!({ "hostPort": 80, "containerPort": 80, "hostIP": "here" })), "", Code::Config),
            (json!({ "runtimeConfig": { "ips": ["10.1.0"] } }), "", Code::Config),
            (json!({ "runtimeConfig": { "mac": "02:11" } }), "", Code::Config),
            (json!({ "runtimeConfig": { "aliases": ["a b"] } }), "", Code::Config),
            (json!({ "args": { "cni": { "ips": [7] } } }), "", Code::Config),
            (json!({}), "IP=x", Code::Config),
            (json!({}), "MESH_NAME=-", Code::Config),
            (json!({}), "MESH_ALIASES=a,-", Code::Config),
            (json!({}), "MESH_WEIGHT=257", Code::Config),
        ] {
            assert_eq!(wishes(config.clone(), args).unwrap_err().code, code, "{config} {args}");
        }
    }

    proptest! {
        #[test]
        fn an_address_is_what_was_written(octets: [u8; 4], prefix in 0..=32u8) {
            let ip = IpAddr::from(octets);
            let text = format!("{ip}/{prefix}");
            let wished = wishes(json!({ "runtimeConfig": { "ips": [text] } }), "").unwrap();
            prop_assert_eq!(wished.addresses, [ip]);
        }

        #[test]
        fn a_port_is_what_was_written_or_refused(host: u32, container in 0..70_000u32) {
            let mapping = json!({ "hostPort": host, "containerPort": container });
            let wished = wishes(json!({ "runtimeConfig": { "portMappings": [mapping] } }), "");
            let fits = |port: u32| (1..=65535).contains(&port);
            match wished {
                Ok(wished) => {
                    prop_assert_eq!(u32::from(wished.ports[0].published), host);
                    prop_assert_eq!(u32::from(wished.ports[0].target), container);
                }
                Err(_) => prop_assert!(!fits(host) || !fits(container)),
            }
        }
    }
}
