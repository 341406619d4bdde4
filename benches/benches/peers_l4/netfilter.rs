//! Destination NAT to the server and source NAT to the host, as a manual of iptables has it: nothing else in the host.

use super::{
    Contender,
    place::{PORTS, Place},
};
use anyhow::Result;

pub(super) fn start(place: &Place<'_>) -> Result<Contender> {
    let host = place.ingress("iptables")?;
    let server = place.server_address();
    let forward = |port: u16| {
        format!(
            "iptables -t nat -A PREROUTING -d {} -p tcp --dport {port} -j DNAT --to-destination {server}\n",
            host.ip()
        )
    };
    let script = format!(
        "set -e\nsysctl -qw net.ipv4.ip_forward=1\n{}iptables -t nat -A POSTROUTING -d {server} -p tcp -j MASQUERADE",
        PORTS.map(forward).concat()
    );
    host.shell(&script).ok()?;
    Ok(place.contender("iptables, DNAT and SNAT", host.ip(), None))
}
