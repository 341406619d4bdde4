//! Envoy's TCP proxy, one worker.

use super::{
    Contender,
    place::{PORTS, Place},
};
use anyhow::Result;
use serde_json::{Value, json};

pub(super) fn start(place: &Place<'_>) -> Result<Contender> {
    let config = json!({ "static_resources": {
        "listeners": PORTS.map(listener),
        "clusters": PORTS.map(|port| cluster(&place.server_address().to_string(), port)),
    }});
    let command =
        ["envoy", "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning", "--config-path"];
    place.proxy("Envoy, tcp_proxy", "envoy", &command, &config.to_string())
}

fn listener(port: u16) -> Value {
    let cluster = format!("port{port}");
    let proxy = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": cluster,
        "cluster": cluster,
    });
    let filter = json!({ "name": "envoy.filters.network.tcp_proxy", "typed_config": proxy });
    json!({ "name": cluster, "address": socket("0.0.0.0", port), "filter_chains": [{ "filters": [filter] }] })
}

fn cluster(address: &str, port: u16) -> Value {
    let name = format!("port{port}");
    let endpoint = json!({ "endpoint": { "address": socket(address, port) } });
    let assignment = json!({ "cluster_name": name, "endpoints": [{ "lb_endpoints": [endpoint] }] });
    json!({ "name": name, "type": "STATIC", "connect_timeout": "5s", "load_assignment": assignment })
}

fn socket(address: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": address, "port_value": port } })
}
