#!/bin/bash
# A lab: hosts of a small network, as network namespaces of one machine.
#
# The lab's first process holds a PID namespace and a mount namespace of its own: whatever runs in the lab ends with
# it, and the network namespaces and mounts then vanish by themselves. The machine's own network is never touched.
#
#   unshare --mount --pid --fork --kill-child --mount-proc --propagation private -- lab.sh init [attached|detached]
#
# The other verbs run inside, entered by `nsenter --target PID --mount --pid`. Not by `ip netns exec`: that makes a
# mount namespace for each command, and what meshd keeps by bind mount would be gone with it.
#
#   lan ── lan0 (bridge, 10.77.0.1/24, fd77::1/64)
#           ├─ vm1     eth0 10.77.0.11, fd77::11     hosts
#           ├─ vm2     eth0 10.77.0.12, fd77::12
#           └─ client  eth0 10.77.0.101, fd77::101   outside the cluster
set -euo pipefail

# A private /run, so that names of namespaces and directories of daemons are this lab's own; no /etc/meshd of the
# machine; the resolver that hosts use is the lab's router.
make_private() {
  local resolv
  resolv=$(readlink --canonicalize-missing /etc/resolv.conf)
  mount -t tmpfs -o mode=755 lab /run
  mkdir -p /run/netns /run/lab
  echo 'nameserver 10.77.0.1' >/run/lab/resolv.conf
  mkdir -p "$(dirname "$resolv")"
  [[ -e $resolv ]] || touch "$resolv"
  mount --bind /run/lab/resolv.conf "$resolv"
  [[ ! -d /etc/meshd ]] || mount -t tmpfs -o mode=755 lab /etc/meshd
}

add_lan() {
  ip netns add lan
  ip -n lan link set lo up
  # With an address of its own: else it takes the lowest of its ports', another one when a machine joins, and those that know the
  # router by the old one send it nothing that arrives, for up to half a minute.
  ip -n lan link add lan0 address 02:00:0a:4d:00:01 type bridge stp_state 0 forward_delay 0 mcast_snooping 0
  ip -n lan address add 10.77.0.1/24 dev lan0
  ip -n lan address add fd77::1/64 dev lan0 nodad
  ip -n lan link set lan0 up
}

# add_machine NAME NUMBER: a namespace on the LAN, with 10.77.0.NUMBER and fd77::NUMBER.
add_machine() {
  local name=$1 number=$2
  ip netns add "$name"
  ip -n lan link add "$name" type veth peer name eth0 netns "$name"
  ip -n lan link set "$name" master lan0 up
  ip -n "$name" link set lo up
  ip -n "$name" address add "10.77.0.$number/24" dev eth0
  ip -n "$name" address add "fd77::$number/64" dev eth0 nodad
  ip -n "$name" link set eth0 up
  ip -n "$name" route add default via 10.77.0.1
  ip -n "$name" route add default via fd77::1
}

# add_container NAME: a namespace with nothing but loopback, to be connected to a network.
add_container() {
  ip netns add "$1"
  ip -n "$1" link set lo up
}

case ${1:-} in
  init)
    make_private
    add_lan
    echo ready
    if [[ ${2:-attached} == detached ]]; then
      sleep infinity &
      wait
    else
      # The owner holds the other end of this pipe: however it ends, the lab ends with it.
      read -r _ || true
    fi
    ;;
  host) add_machine "$2" "$((10 + $3))" ;;
  client) add_machine "$2" "$((100 + $3))" ;;
  container) add_container "$2" ;;
  *)
    echo "usage: lab.sh init [attached|detached] | host NAME N | client NAME N | container NAME" >&2
    exit 2
    ;;
esac
