//! The network configuration that a runtime sends on stdin.

use crate::{
    failure::{Code, Failure},
    request::is_identifier,
    version::Version,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, path::PathBuf};

const SOCKET: &str = "/run/meshd/meshd.sock";

/// Keys that runtimes and administrators use. Others are typos, or mean something that is not done.
const KEYS: [&str; 17] = [
    "aliases",
    "args",
    "capabilities",
    "cniVersion",
    "cniVersions",
    "disableCheck",
    "disableGC",
    "dns",
    "ipMasq",
    "ipam",
    "loadOnlyInlinedPlugins",
    "name",
    "network",
    "prevResult",
    "runtimeConfig",
    "service",
    "socket",
];
/// Likewise, in `runtimeConfig`: the capabilities.
const CAPABILITIES: [&str; 4] = ["aliases", "ips", "mac", "portMappings"];
const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";

/// A configuration that makes sense.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) version: Version,
    /// Of the configuration; attachments are told apart by it.
    pub(crate) name: String,
    /// The mesh's network.
    pub(crate) network: String,
    /// The service that containers are replicas of, unless they say otherwise.
    pub(crate) service: Option<String>,
    /// More names for every container.
    pub(crate) aliases: Vec<String>,
    /// Of the daemon.
    pub(crate) socket: PathBuf,
    pub(crate) dns: Dns,
    pub(crate) capabilities: Capabilities,
    /// `args.cni`, the conventional place of optional data.
    pub(crate) args: Map<String, Value>,
    pub(crate) previous: Option<Value>,
    /// Of `GC`; `None` if the key is absent.
    pub(crate) valid_attachments: Option<Vec<ValidAttachment>>,
}

/// What resolvers are told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dns {
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) nameservers: Vec<String>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub(crate) domain: String,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) search: Vec<String>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) options: Vec<String>,
}

/// `runtimeConfig`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Capabilities {
    #[serde(deserialize_with = "or_default")]
    pub(crate) port_mappings: Vec<PortMapping>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) ips: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) mac: String,
    pub(crate) aliases: Option<Aliases>,
}

/// By convention a list; Podman sends those of each network, by its name.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Aliases {
    List(Vec<String>),
    OfNetworks(BTreeMap<String, Vec<String>>),
}

/// One published port.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PortMapping {
    pub(crate) host_port: u32,
    pub(crate) container_port: u32,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) protocol: String,
    #[serde(default, deserialize_with = "or_default", rename = "hostIP")]
    pub(crate) host_ip: String,
}

/// What `GC` is told to keep.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct ValidAttachment {
    #[serde(rename = "containerID")]
    pub(crate) container: String,
    pub(crate) ifname: String,
}

#[derive(Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[derive(Default)]
struct Document {
    #[serde(deserialize_with = "or_default")]
    cni_version: String,
    #[serde(deserialize_with = "or_default")]
    name: String,
    network: Option<String>,
    service: Option<String>,
    #[serde(deserialize_with = "or_default")]
    aliases: Vec<String>,
    socket: Option<PathBuf>,
    #[serde(deserialize_with = "or_default")]
    dns: Dns,
    ip_masq: Option<bool>,
    #[serde(deserialize_with = "or_default")]
    ipam: Map<String, Value>,
    #[serde(deserialize_with = "or_default")]
    runtime_config: Map<String, Value>,
    #[serde(deserialize_with = "or_default")]
    args: Map<String, Value>,
    prev_result: Option<Map<String, Value>>,
}

impl Config {
    pub(crate) fn parse(text: &[u8]) -> Result<Self, Failure> {
        let map: Map<String, Value> = decoded(serde_json::from_slice(text))?;
        let attachments = map.get(VALID_ATTACHMENTS).cloned();
        let document: Document = decoded(serde_json::from_value(Value::Object(map.clone())))?;
        let version = Version::of(&document.cni_version)?;
        known_keys(&map, &document)?;
        if !is_identifier(&document.name) {
            let text = format!("the network configuration has no valid name: '{}'", document.name);
            return Err(Failure::new(Code::Config, text)
                .because("it begins with a letter or digit, and goes on with these, '_', '.' and '-'"));
        }
        let cni = document.args.get("cni").and_then(Value::as_object);
        let valid = attachments.map(|value| match value {
            Value::Null => Ok(Vec::new()),
            value => decoded(serde_json::from_value(value)),
        });
        let not_empty = |text: Option<String>| text.filter(|text| !text.is_empty());
        Ok(Self {
            version,
            network: not_empty(document.network).unwrap_or_else(|| document.name.clone()),
            name: document.name,
            service: not_empty(document.service),
            aliases: document.aliases,
            socket: document.socket.unwrap_or_else(|| SOCKET.into()),
            dns: document.dns,
            capabilities: decoded(serde_json::from_value(Value::Object(document.runtime_config)))?,
            args: cni.cloned().unwrap_or_default(),
            previous: document.prev_result.map(Value::Object),
            valid_attachments: valid.transpose()?,
        })
    }

    /// What endpoints of this configuration are called, up to the container.
    pub(crate) fn owner(&self) -> String {
        format!("cni:{}/", self.name)
    }
}

/// The version that an answer to a configuration is in, even to one that makes no sense.
pub(crate) fn version_of(text: &[u8]) -> Option<Version> {
    let map: Map<String, Value> = serde_json::from_slice(text).ok()?;
    Version::find(map.get("cniVersion")?.as_str()?)
}

/// Nothing that is asked for is passed over in silence.
fn known_keys(map: &Map<String, Value>, document: &Document) -> Result<(), Failure> {
    let internal = |key: &str| key == "type" || key.starts_with('_') || key.starts_with("cni.dev/");
    let mut unknown = map.iter().filter(|(key, _)| !KEYS.contains(&key.as_str()) && !internal(key));
    if let Some((key, value)) = unknown.next() {
        return Err(unsupported(key, value, "it is no key of this plugin"));
    }
    if document.ip_masq == Some(false) {
        let why = "what leaves a network bears the host's address, unless the network is internal";
        return Err(unsupported("ipMasq", &Value::Bool(false), why));
    }
    if !document.ipam.is_empty() {
        let ipam = Value::Object(document.ipam.clone());
        return Err(unsupported("ipam", &ipam, "meshd gives out the addresses: leave it out"));
    }
    let mut capabilities = document.runtime_config.iter();
    match capabilities.find(|(key, _)| !CAPABILITIES.contains(&key.as_str())) {
        Some((key, value)) => {
            Err(unsupported(&format!("runtimeConfig.{key}"), value, "it is no capability of this plugin"))
        }
        None => Ok(()),
    }
}

pub(crate) fn unsupported(key: &str, value: &Value, why: &str) -> Failure {
    Failure::new(Code::Unsupported, format!("{key} = {value} is not supported")).because(why)
}

fn decoded<T>(result: serde_json::Result<T>) -> Result<T, Failure> {
    result.map_err(|e| Failure::new(Code::Decoding, "the network configuration is not understood").because(e))
}

/// Runtimes written in Go send `null` for what is empty.
fn or_default<'de, T: Default + Deserialize<'de>, D: serde::Deserializer<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn parse(value: &Value) -> Result<Config, Failure> {
        Config::parse(value.to_string().as_bytes())
    }

    #[test]
    fn a_bare_configuration_means_the_network_of_its_name() {
        let config = parse(&json!({ "cniVersion": "0.4.0", "name": "blue", "type": "mesh-cni" })).unwrap();
        assert_eq!((config.network.as_str(), config.socket.to_str()), ("blue", Some(SOCKET)));
        assert_eq!(config.owner(), "cni:blue/");
        assert_eq!(config.valid_attachments, None);
    }

    #[test]
    fn what_runtimes_written_in_go_send_for_nothing_is_nothing() {
        let config = parse(&json!({
            "cniVersion": "1.1.0", "name": "blue", "type": "mesh-cni", "prevResult": null, "capabilities": null,
            "runtimeConfig": { "ips": null, "aliases": null }, "args": null, "dns": {}, "ipam": {},
            "cni.dev/valid-attachments": null,
        }));
        let config = config.unwrap();
        assert!(config.previous.is_none() && config.capabilities.aliases.is_none());
        assert_eq!(config.valid_attachments, Some(Vec::new()));
    }

    #[test]
    fn what_is_wrong_has_the_code_of_the_specification() {
        let with = |key: &str, value: Value| {
            let mut config = json!({ "cniVersion": "1.0.0", "name": "blue", "type": "mesh-cni" });
            config[key] = value;
            parse(&config).map(drop).map_err(|failure| failure.code)
        };
        for (key, value, code) in [
            ("cniVersion", json!("0.2.0"), Code::Version),
            ("cniVersion", json!("9.9"), Code::Version),
            ("cniVersion", json!(""), Code::Version),
            ("cniVersion", json!(1), Code::Decoding),
            ("name", json!(""), Code::Config),
            ("name", json!("a/b"), Code::Config),
            ("name", json!(["blue"]), Code::Decoding),
            ("netwrk", json!("blue"), Code::Unsupported),
            ("ipMasq", json!(false), Code::Unsupported),
            ("ipam", json!({ "type": "host-local" }), Code::Unsupported),
            ("ipam", json!("host-local"), Code::Decoding),
            ("dns", json!({ "nameservers": "1.1.1.1" }), Code::Decoding),
            ("args", json!("x"), Code::Decoding),
            ("prevResult", json!([]), Code::Decoding),
            ("runtimeConfig", json!({ "bandwidth": {} }), Code::Unsupported),
            ("runtimeConfig", json!({ "portMappings": [{ "hostPort": "80" }] }), Code::Decoding),
            ("runtimeConfig", json!({ "aliases": 7 }), Code::Decoding),
            ("cni.dev/valid-attachments", json!([{ "containerID": "x" }]), Code::Decoding),
        ] {
            assert_eq!(with(key, value.clone()), Err(code), "{key} = {value}");
        }
        assert_eq!(with("_comment", json!("mine")), Ok(()));
        assert_eq!(with("ipMasq", json!(true)), Ok(()));
        for text in ["", "[]", "{", "null", "\u{0}"] {
            assert_eq!(Config::parse(text.as_bytes()).unwrap_err().code, Code::Decoding, "{text:?}");
        }
    }

    #[test]
    fn an_unsupported_key_is_named_with_its_value() {
        let wrong = json!({ "cniVersion": "1.0.0", "name": "blue", "type": "mesh-cni", "netwrk": "b" });
        let failure = parse(&wrong).unwrap_err().json(Version::LATEST);
        assert_eq!(failure["msg"], r#"netwrk = "b" is not supported"#);
    }

    proptest! {
        #[test]
        fn no_text_is_the_end_of_it(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Config::parse(&text);
            let _ = version_of(&text);
        }

        /// A valid document of which one value is replaced by any other kind of value.
        #[test]
        fn no_value_is_the_end_of_it(key in 0..KEYS.len(), value in any_json()) {
            let mut config = json!({ "cniVersion": "1.0.0", "name": "blue", "type": "mesh-cni" });
            config[KEYS[key]] = value;
            if let Ok(config) = parse(&config) {
                prop_assert!(is_identifier(&config.name) && !config.network.is_empty());
            }
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-zA-Z.]{0,12}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }
}
