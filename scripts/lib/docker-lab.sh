#!/bin/bash
# A Docker of one host of a lab: with directories of its own, and nothing of it outside the lab's namespaces.
#
#   docker-lab.sh DIRECTORY PLUGINS [OPTION…]   runs dockerd in the calling network namespace: DIRECTORY gets all that it
#       writes, its socket among that; PLUGINS is where it looks for drivers (elsewhere /run/docker/plugins)
#   docker-lab.sh create|start|… …              runc, as that dockerd runs it
set -euo pipefail

# Containers of a lab get no cgroups: those are the machine's, and would outlive a lab that is killed.
runtime() {
  local previous='' word config
  for word; do
    if [[ $previous == --bundle ]]; then
      config=$(jq 'del(.linux.cgroupsPath)' "$word/config.json")
      printf '%s' "$config" >"$word/config.json"
    fi
    previous=$word
  done
  exec runc --rootless=true "$@"
}

# In a mount namespace of its own, where the directory of drivers is this host's. What is mounted in DIRECTORY/run, the
# containers' network namespaces, is seen by the whole lab.
daemon() {
  local directory=$1 plugins=$2 mount
  shift 2
  for mount in /sys/fs/cgroup/*; do
    ! mountpoint --quiet "$mount" || mount -o remount,bind,ro "$mount"
  done
  mkdir -p /run/docker/plugins "$plugins"
  mount --bind "$plugins" /run/docker/plugins
  exec dockerd --data-root "$directory/data" --exec-root "$directory/run" --pidfile "$directory/pid" \
    --host "unix://$directory/docker.sock" --add-runtime "lab=$(realpath "$0")" --default-runtime lab "$@"
}

case ${1:-} in
  daemon)
    shift
    daemon "$@"
    ;;
  /*)
    mkdir -p "$1/run" "$1/data"
    if ! mountpoint --quiet "$1/run"; then
      mount --bind "$1/run" "$1/run"
      mount --make-shared "$1/run"
    fi
    # An earlier one that was killed left it behind.
    rm -f "$1/pid"
    exec unshare --mount --propagation unchanged "$0" daemon "$@"
    ;;
  *) runtime "$@" ;;
esac
