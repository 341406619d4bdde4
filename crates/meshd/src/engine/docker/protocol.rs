//! The words of Docker's plugin protocol: libnetwork's remote network driver (`docs/remote.md`) and remote IPAM driver
//! (`docs/ipam.md`). Every request is a POST with a JSON body; what fails is answered
//! `{"Err": "…"}`, by an address driver `{"Error": "…"}`.

use ipnetwork::IpNetwork;
use mesh_model::MacAddr;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The address space of this driver: how a network driver learns whose addresses a network has.
pub(super) const ADDRESS_SPACE: &str = "meshd";
/// Key of what the user gave with `--opt`.
const GENERIC: &str = "com.docker.network.generic";
const INTERNAL: &str = "com.docker.network.internal";
const PORT_MAP: &str = "com.docker.network.portmap";
/// Key in the options of an address request: what it is for.
const REQUEST_TYPE: &str = "RequestAddressType";
/// What [`REQUEST_TYPE`] says of a gateway, and the key of one in a pool's data.
pub(super) const GATEWAY: &str = "com.docker.network.gateway";
const MAC_ADDRESS: &str = "com.docker.network.endpoint.macaddress";
/// What the user names the cluster's network by, in `--opt` and in `--ipam-opt`.
pub(super) const MESH_NETWORK: &str = "mesh.network";

/// `NetworkDriver.CreateNetwork`.
#[derive(Debug, Deserialize)]
pub(super) struct CreateNetwork {
    #[serde(rename = "NetworkID")]
    pub(super) network_id: String,
    #[serde(rename = "Options", default)]
    options: Option<BTreeMap<String, Value>>,
    #[serde(rename = "IPv4Data", default)]
    ipv4: Option<Vec<Pool>>,
    #[serde(rename = "IPv6Data", default)]
    ipv6: Option<Vec<Pool>>,
}

/// A subnet that an IPAM driver has given a network.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Pool {
    #[serde(default)]
    pub(super) address_space: String,
    pub(super) pool: IpNetwork,
    #[serde(default, deserialize_with = "lenient")]
    pub(super) gateway: Option<IpNetwork>,
}

/// A text that may be empty for none.
fn lenient<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<IpNetwork>, D::Error> {
    let text = Option::<String>::deserialize(from)?.unwrap_or_default();
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(serde::de::Error::custom) }
}

/// Options in the name of the mesh that it does not know; others may be for whoever reads them.
pub(super) fn check_options<'a>(mut keys: impl Iterator<Item = &'a String>) -> Result<(), String> {
    let unknown = keys.find(|key| key.starts_with("mesh.") && *key != MESH_NETWORK);
    unknown.map_or(Ok(()), |key| Err(format!("there is no option '{key}': {MESH_NETWORK} is meant?")))
}

impl CreateNetwork {
    /// The cluster's network that the user names.
    pub(super) fn mesh_network(&self) -> Result<Option<&str>, String> {
        let given = self.options.as_ref().and_then(|options| options.get(GENERIC)?.as_object());
        let Some(given) = given else { return Ok(None) };
        check_options(given.keys())?;
        let name = given.get(MESH_NETWORK);
        name.map(|name| name.as_str().ok_or(format!("{MESH_NETWORK} is to be a name"))).transpose()
    }

    /// `--internal`.
    pub(super) fn internal(&self) -> bool {
        self.options.as_ref().and_then(|options| options.get(INTERNAL)?.as_bool()).unwrap_or_default()
    }

    /// All of its subnets.
    pub(super) fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.ipv4.iter().chain(&self.ipv6).flatten()
    }
}

/// `NetworkDriver.DeleteNetwork`.
#[derive(Debug, Deserialize)]
pub(super) struct OfNetwork {
    #[serde(rename = "NetworkID")]
    pub(super) network_id: String,
}

/// `NetworkDriver.Leave`, `DeleteEndpoint`, `EndpointOperInfo`, `RevokeExternalConnectivity`.
#[derive(Debug, Deserialize)]
pub(super) struct OfEndpoint {
    #[serde(rename = "EndpointID")]
    pub(super) endpoint_id: String,
}

/// `NetworkDriver.CreateEndpoint`.
#[derive(Debug, Deserialize)]
pub(super) struct CreateEndpoint {
    #[serde(rename = "NetworkID")]
    pub(super) network_id: String,
    #[serde(rename = "EndpointID")]
    pub(super) endpoint_id: String,
    #[serde(rename = "Interface", default)]
    pub(super) interface: Option<Interface>,
    #[serde(rename = "Options", default)]
    options: Option<BTreeMap<String, Value>>,
}

/// What is known of an interface; empty texts for what is not.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Interface {
    #[serde(rename = "Address", default, skip_serializing_if = "String::is_empty")]
    pub(super) address: String,
    #[serde(rename = "AddressIPv6", default, skip_serializing_if = "String::is_empty")]
    pub(super) address_ipv6: String,
    #[serde(rename = "MacAddress", default, skip_serializing_if = "String::is_empty")]
    pub(super) mac_address: String,
}

/// A port of `-p`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct PortBinding {
    /// `IPPROTO_TCP` and so on.
    pub(super) proto: u8,
    pub(super) port: u16,
    #[serde(rename = "HostIP", default)]
    pub(super) host_ip: Option<String>,
    #[serde(default)]
    pub(super) host_port: u16,
}

impl CreateEndpoint {
    /// The ports that the user gave with `-p`.
    pub(super) fn ports(&self) -> Result<Vec<PortBinding>, String> {
        match self.options.as_ref().and_then(|options| options.get(PORT_MAP)) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(ports) => Vec::deserialize(ports).map_err(|e| format!("{PORT_MAP}: {e}")),
        }
    }
}

/// `NetworkDriver.Join`.
#[derive(Debug, Deserialize)]
pub(super) struct Join {
    #[serde(rename = "NetworkID")]
    pub(super) network_id: String,
    #[serde(rename = "EndpointID")]
    pub(super) endpoint_id: String,
    /// Where the container's network namespace is going to be kept, or is already.
    #[serde(rename = "SandboxKey")]
    pub(super) sandbox_key: String,
}

/// The answer to [`Join`].
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Joined {
    pub(super) interface_name: InterfaceName,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) gateway: String,
    #[serde(rename = "GatewayIPv6", skip_serializing_if = "String::is_empty")]
    pub(super) gateway_ipv6: String,
    pub(super) static_routes: Vec<StaticRoute>,
    /// No second interface that leads out by Docker's own bridge.
    pub(super) disable_gateway_service: bool,
}

/// What to fetch, and what to call it in the container.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct InterfaceName {
    pub(super) src_name: String,
    pub(super) dst_prefix: String,
}

/// A route in the container.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct StaticRoute {
    pub(super) destination: IpNetwork,
    /// 0: by a next hop, 1: on the link itself.
    pub(super) route_type: u8,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) next_hop: String,
}

/// `IpamDriver.RequestPool`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RequestPool {
    #[serde(default)]
    pub(super) pool: String,
    #[serde(default)]
    pub(super) sub_pool: String,
    #[serde(default)]
    pub(super) options: Option<BTreeMap<String, String>>,
    #[serde(rename = "V6", default)]
    pub(super) v6: bool,
}

/// The answer to [`RequestPool`].
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct PoolGiven {
    #[serde(rename = "PoolID")]
    pub(super) pool_id: String,
    pub(super) pool: IpNetwork,
    pub(super) data: BTreeMap<String, String>,
}

/// `IpamDriver.RequestAddress` and `ReleaseAddress`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct OfAddress {
    #[serde(rename = "PoolID")]
    pub(super) pool_id: String,
    #[serde(default)]
    pub(super) address: String,
    #[serde(default)]
    options: Option<BTreeMap<String, String>>,
}

impl OfAddress {
    /// Whether the address is for a gateway.
    pub(super) fn is_gateway(&self) -> bool {
        self.option(REQUEST_TYPE) == Some(GATEWAY)
    }

    /// The MAC address of the endpoint that it is for: by it the endpoint is known before it has an ID.
    pub(super) fn mac(&self) -> Option<MacAddr> {
        self.option(MAC_ADDRESS)?.parse().ok()
    }

    fn option(&self, key: &str) -> Option<&str> {
        self.options.as_ref()?.get(key).map(String::as_str)
    }
}
