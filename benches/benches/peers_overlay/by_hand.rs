//! A VXLAN as a manual tells it: bridge, VXLAN link and static entries, without any packet filter.

use super::Contender;
use anyhow::Result;
use mesh_tests::Lab;

/// One side: in the host a bridge with the VXLAN link, in the container one end of a veth pair.
const SIDE: &str = "
set -e
container=$1 local=$2 remote=$3 address=$4 own=$5 other=$6
ip link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0
ip link add vx42 mtu 1450 type vxlan id 42 local $local dstport 4789 nolearning
bridge fdb append 00:00:00:00:00:00 dev vx42 dst $remote
bridge fdb replace $other dev vx42 dst $remote
ip link add port mtu 1450 type veth peer name eth0 netns /run/netns/$container address $own mtu 1450
ip link set vx42 master br0 up
ip link set port master br0 up
ip link set br0 mtu 1450 up
ip -n $container address add $address/24 dev eth0
ip -n $container link set eth0 up
";

pub(super) fn start(lab: &Lab) -> Result<Contender> {
    let (one, two) = (lab.host("hand1")?, lab.host("hand2")?);
    let (client, server) = (lab.container("hand-client")?, lab.container("hand-server")?);
    let (ip1, ip2) = (one.ip().to_string(), two.ip().to_string());
    let (mac1, mac2) = ("02:00:00:00:42:01", "02:00:00:00:42:02");
    let line = ["bash", "-c", SIDE, "side"];
    one.output(&[&line[..], &[client.name(), &ip1, &ip2, "10.42.0.1", mac1, mac2]].concat()).ok()?;
    two.output(&[&line[..], &[server.name(), &ip2, &ip1, "10.42.0.2", mac2, mac1]].concat()).ok()?;
    Ok(Contender {
        name: "VXLAN by hand",
        client: Clone::clone(&*client),
        server: Clone::clone(&*server),
        address: [10, 42, 0, 2].into(),
    })
}
