//! The result of `ADD`, in the format of each version. Pure.

use crate::{
    config::Dns,
    failure::{Code, Failure},
    namespace::Interface,
    version::Version,
};
use mesh_api::EndpointView;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What was made, after what plugins before this one made.
pub(crate) struct Made<'a> {
    pub(crate) endpoint: &'a EndpointView,
    pub(crate) interface: &'a Interface,
    pub(crate) netns: &'a Path,
    /// What the configuration says about names; the network's own name servers if it names none.
    pub(crate) dns: &'a Dns,
}

impl Made<'_> {
    pub(crate) fn result(&self, version: Version, previous: Option<&Value>) -> Result<Value, Failure> {
        let mut result = previous.and_then(Value::as_object).cloned().unwrap_or_default();
        result.insert("cniVersion".to_owned(), version.to_string().into());
        let interfaces = list(&mut result, "interfaces")?;
        let index = interfaces.len();
        interfaces.push(self.interface(version));
        let ips = self.ips(version, index);
        list(&mut result, "ips")?.extend(ips);
        let routes = self.interface.routes.iter();
        list(&mut result, "routes")?
            .extend(routes.map(|route| json!({ "dst": route.to.to_string(), "gw": route.via.to_string() })));
        let dns = self.dns(result.get("dns"))?;
        result.insert("dns".to_owned(), dns);
        Ok(Value::Object(result))
    }

    fn interface(&self, version: Version) -> Value {
        let mut interface = json!({
            "name": self.endpoint.ifname,
            "mac": self.endpoint.mac.to_string(),
            "sandbox": self.netns,
        });
        if let Some(mtu) = self.interface.mtu.filter(|_| version >= Version::V1_1_0) {
            interface["mtu"] = mtu.into();
        }
        interface
    }

    fn ips(&self, version: Version, interface: usize) -> Vec<Value> {
        let own = |address: &&ipnetwork::IpNetwork| self.endpoint.addresses.contains(&address.ip());
        let entry = |address: &ipnetwork::IpNetwork| {
            let mut entry = json!({ "address": address.to_string(), "interface": interface });
            let gateways = self.interface.routes.iter().map(|route| route.via);
            if let Some(gateway) = gateways.into_iter().find(|gateway| address.contains(*gateway)) {
                entry["gateway"] = gateway.to_string().into();
            }
            if version < Version::V1_0_0 {
                entry["version"] = if address.is_ipv6() { "6" } else { "4" }.into();
            }
            entry
        };
        self.interface.addresses.iter().filter(own).map(entry).collect()
    }

    /// The network's servers come first: they know the network's names, and forward the others.
    fn dns(&self, previous: Option<&Value>) -> Result<Value, Failure> {
        let mut dns = self.dns.clone();
        if dns.nameservers.is_empty() {
            dns.nameservers = self.endpoint.nameservers.iter().map(ToString::to_string).collect();
        }
        if let Some(previous) = previous.filter(|previous| !previous.is_null()) {
            // Of a list serde would take the fields in their order.
            if !previous.is_object() {
                return Err(malformed("dns is no object"));
            }
            let previous: Dns = serde_json::from_value(previous.clone()).map_err(malformed)?;
            extend(&mut dns.nameservers, previous.nameservers);
            extend(&mut dns.search, previous.search);
            extend(&mut dns.options, previous.options);
            if dns.domain.is_empty() {
                dns.domain = previous.domain;
            }
        }
        Ok(json!(dns))
    }
}

fn extend(list: &mut Vec<String>, more: Vec<String>) {
    for item in more {
        if !list.contains(&item) {
            list.push(item);
        }
    }
}

/// A list of a result; what is absent or null is empty.
fn list<'a>(result: &'a mut Map<String, Value>, key: &str) -> Result<&'a mut Vec<Value>, Failure> {
    let value = result.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Array(Vec::new());
    }
    value.as_array_mut().ok_or_else(|| malformed(format!("{key} is no list")))
}

/// A `prevResult` that is none.
pub(crate) fn malformed(why: impl ToString) -> Failure {
    Failure::new(Code::Decoding, "prevResult is not understood").because(why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::Route;
    use mesh_model::{EndpointId, Health, MacAddr, Target};

    fn endpoint() -> EndpointView {
        EndpointView {
            id: EndpointId::from_bits(1),
            name: "web1".to_owned(),
            network: "blue".to_owned(),
            service: None,
            node: "vm1".to_owned(),
            addresses: vec!["10.50.0.2".parse().unwrap(), "fd00:50::2".parse().unwrap()],
            mac: MacAddr::endpoint(1),
            aliases: Vec::new(),
            health: Health::Unchecked,
            weight: mesh_model::Weight::default(),
            draining: false,
            target: Target::Netns("/run/netns/c".into()),
            ifname: "eth0".to_owned(),
            ports: Vec::new(),
            owner: None,
            source_nat: Vec::new(),
            nameservers: vec!["10.50.0.1".parse().unwrap()],
            created: 0,
        }
    }

    fn interface() -> Interface {
        let route = |to: &str, via: &str| Route { to: to.parse().unwrap(), via: via.parse().unwrap() };
        let addresses = ["10.50.0.2/24", "fd00:50::2/64", "fe80::1/64"];
        Interface {
            up: true,
            mac: None,
            mtu: Some(1450),
            addresses: addresses.map(|a| a.parse().unwrap()).into(),
            routes: vec![route("0.0.0.0/0", "10.50.0.1"), route("::/0", "fd00:50::1")],
        }
    }

    fn result(version: Version, previous: Option<Value>) -> Result<Value, Failure> {
        let (endpoint, interface, dns) = (endpoint(), interface(), Dns::default());
        let netns = Path::new("/run/netns/c");
        Made { endpoint: &endpoint, interface: &interface, netns, dns: &dns }
            .result(version, previous.as_ref())
    }

    #[test]
    fn each_version_has_its_format() {
        let latest = result(Version::V1_1_0, None).unwrap();
        assert_eq!(
            latest,
            json!({
                "cniVersion": "1.1.0",
                "interfaces": [
                    { "name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1450, "sandbox": "/run/netns/c" },
                ],
                "ips": [
                    { "address": "10.50.0.2/24", "gateway": "10.50.0.1", "interface": 0 },
                    { "address": "fd00:50::2/64", "gateway": "fd00:50::1", "interface": 0 },
                ],
                "routes": [
                    { "dst": "0.0.0.0/0", "gw": "10.50.0.1" },
                    { "dst": "::/0", "gw": "fd00:50::1" },
                ],
                "dns": { "nameservers": ["10.50.0.1"] },
            })
        );
        let early = result(Version::V0_3_1, None).unwrap();
        assert_eq!((&early["ips"][0]["version"], &early["ips"][1]["version"]), (&json!("4"), &json!("6")));
        assert!(early["interfaces"][0].get("mtu").is_none());
        assert!(result(Version::V1_0_0, None).unwrap()["ips"][0].get("version").is_none());
    }

    #[test]
    fn what_plugins_before_made_is_kept() {
        let previous = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "cni0" }, { "name": "eth9", "sandbox": "/run/netns/c" }],
            "ips": [{ "address": "10.9.0.2/24", "interface": 1 }],
            "routes": null,
            "dns": { "nameservers": ["9.9.9.9", "10.50.0.1"], "search": ["example.test"] },
            "future": true,
        });
        let result = result(Version::V1_0_0, Some(previous)).unwrap();
        assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
        assert_eq!(result["ips"][0], json!({ "address": "10.9.0.2/24", "interface": 1 }));
        assert_eq!(result["ips"][1]["interface"], 2);
        assert_eq!(result["routes"].as_array().unwrap().len(), 2);
        assert_eq!(
            result["dns"],
            json!({ "nameservers": ["10.50.0.1", "9.9.9.9"], "search": ["example.test"] })
        );
        assert_eq!(result["future"], true);
    }

    #[test]
    fn a_previous_result_that_is_none_is_refused() {
        for wrong in [json!({ "ips": {} }), json!({ "interfaces": "x" }), json!({ "dns": [] })] {
            assert_eq!(result(Version::V1_0_0, Some(wrong)).unwrap_err().code, Code::Decoding);
        }
    }
}
