# The lab of scripts/demo: starting it, running things in it, showing what they print. Sourced in the repository.
# shellcheck shell=bash

STATE=/run/meshd-demo
BINARIES=$(realpath --canonicalize-missing "${CARGO_TARGET_DIR:-target}")/debug

BOLD='' GREEN='' PLAIN=''
[[ ! -t 1 ]] || { BOLD=$'\e[1m' GREEN=$'\e[32m' PLAIN=$'\e[0m'; }

title() { printf '\n%s== %s%s\n' "$BOLD" "$*" "$PLAIN"; }
say() { printf '%s\n' "$*"; }
note() { printf '\n%s\n' "$*"; }

lab_runs() { [[ -s $STATE/init && -e /proc/$(<"$STATE/init")/root/run/lab ]]; }

lab_file() { echo "/proc/$(<"$STATE/init")/root$1"; }

first_child() { cat "/proc/$1/task/"*/children | cut --delimiter=' ' --fields=1; }

# The lab's first process is left to itself: it stays until stop_lab, which also removes a lab that is half made.
start_lab() {
  local unshared host
  mkdir -p "$STATE"
  setsid unshare --mount --pid --fork --kill-child --mount-proc --propagation private -- \
    scripts/lib/lab.sh init detached </dev/null >"$STATE/lab" 2>&1 &
  unshared=$!
  echo "$unshared" >"$STATE/unshared"
  until grep --quiet ready "$STATE/lab"; do
    kill -0 "$unshared" 2>/dev/null || die "no lab: $(<"$STATE/lab")"
    sleep 0.05
  done
  first_child "$unshared" >"$STATE/init"
  for host in 1 2 3; do
    in_lab "$PWD/scripts/lib/lab.sh" host "vm$host" "$host"
  done
  in_lab "$PWD/scripts/lib/lab.sh" client client 1
}

# Ends every process of the lab; its namespaces and mounts go with them.
stop_lab() {
  local init unshared
  if lab_runs; then
    init=$(<"$STATE/init")
    kill -KILL "$init"
    while [[ -e /proc/$init ]]; do sleep 0.05; done
  fi
  # Of a lab that is half made, only the process that makes it is known: its child ends with it.
  if [[ -s $STATE/unshared ]]; then
    unshared=$(<"$STATE/unshared")
    if grep --quiet --text --no-messages lab.sh "/proc/$unshared/cmdline"; then
      kill -KILL "$unshared" 2>/dev/null || true
    fi
  fi
  rm -rf "$STATE"
}

# In a session of its own: ^C on the terminal is for the script, not for a step of the lab that is half done.
in_lab() { setsid --wait nsenter --target="$(<"$STATE/init")" --mount --pid -- "$@"; }

# in_host NAME COMMAND…: in a host or the client, or in the container `test` with its own resolv.conf.
in_host() {
  local name=$1 init pid
  shift
  init=$(<"$STATE/init")
  if [[ -s $STATE/container-$name ]]; then
    pid=$(<"$STATE/container-$name")
    nsenter --target="$pid" --mount --pid --net -- "$@"
  else
    MESH_SOCKET=/run/lab/$name/run/meshd.sock PATH=$BINARIES:$PATH nsenter --target="$init" --mount --pid \
      --net="/proc/$init/root/run/netns/$name" -- "$@"
  fi
}

# A shell with a prompt that says where it is.
enter() {
  local prompt
  prompt=$(printf '\\[\\e[1m\\]%s\\[\\e[0m\\]:\\w# ' "$1")
  PS1=$prompt in_host "$1" bash --norc
}

# show NAME COMMAND…: a command as a user types it, and what it prints.
show() {
  local name=$1
  shift
  printf '%s%s#%s %s\n' "$GREEN" "$name" "$PLAIN" "$*"
  in_host "$name" "$@" | sed 's/^/  /'
}

# until_output COUNT TEXT NAME COMMAND…: waits until a command prints TEXT on COUNT lines.
until_output() {
  local count=$1 text=$2 deadline=$((SECONDS + 30))
  shift 2
  until [[ $(in_host "$@" | grep --count "$text") == "$count" ]]; do
    ((SECONDS < deadline)) || die "'${*:2}' on $1 did not print $text on $count lines within 30 s"
    sleep 0.1
  done
}

start_meshd() {
  local host=$1 directory deadline=$((SECONDS + 30))
  directory=$(lab_file "/run/lab/$host")
  mkdir -p "$directory/run"
  in_host "$host" setsid meshd --data-dir "/run/lab/$host/data" --run-dir "/run/lab/$host/run" --name "$host" \
    </dev/null >>"$directory/log" 2>&1 &
  until [[ -S $directory/run/meshd.sock ]]; do
    ((SECONDS < deadline)) || die "meshd on $host opened no socket within 30 s"
    sleep 0.05
  done
}

# start_replica HOST NAME: an nginx whose page is its name.
start_replica() {
  local host=$1 name=$2 directory=/run/lab/$2 files
  files=$(lab_file "$directory")
  mkdir -p "$files"
  echo "$name" >"$files/index.html"
  cat >"$files/nginx.conf" <<NGINX
daemon off;
master_process off;
pid $directory/pid;
error_log $directory/error.log;
events {}
http {
  log_format who '\$remote_addr\t\$request\t\$status';
  access_log $directory/access.log who;
  client_body_temp_path $directory/body;
  proxy_temp_path $directory/proxy;
  fastcgi_temp_path $directory/fastcgi;
  uwsgi_temp_path $directory/uwsgi;
  scgi_temp_path $directory/scgi;
  default_type text/plain;
  server {
    listen 80;
    listen [::]:80;
    root $directory;
    location = /health { access_log off; return 200; }
  }
}
NGINX
  say "  $name on $host: meshctl run --network self-network --service nginx_service --name $name -- nginx"
  start_run "$host" "$name" --service nginx_service -- nginx -p "$directory" -c "$directory/nginx.conf"
}

# start_container HOST NAME: a process that only waits, to be entered.
start_container() {
  say "  $2 on $1: meshctl run --network self-network --name $2 -- sleep infinity"
  start_run "$1" "$2" -- sleep infinity
  first_child "$(<"$STATE/run-$2")" >"$STATE/container-$2"
}

# start_run HOST NAME OPTION… -- COMMAND…: `meshctl run` in the background, until its command runs.
start_run() {
  local host=$1 name=$2 deadline=$((SECONDS + 30)) entered
  shift 2
  in_host "$host" setsid meshctl run --network self-network --name "$name" "$@" </dev/null \
    >>"$(lab_file "/run/lab/$host/run-$name.log")" 2>&1 &
  entered=$!
  # The background shell, nsenter, meshctl, the command: each the child of the one before.
  until [[ -n $(first_child "$(first_child "$(first_child "$entered")")") ]] 2>/dev/null; do
    ((SECONDS < deadline)) || die "$name on $host did not start within 30 s"
    sleep 0.05
  done
  first_child "$(first_child "$entered")" >"$STATE/run-$name"
}

kill_replica() { kill -KILL "$(<"$STATE/run-$1")"; }

for_each_host() {
  local number
  for number in 1 2 3; do
    "$@" "vm$number" "10.77.0.1$number"
  done
}

# count_answers REQUESTS NAME ADDRESS: how often each replica answered a client outside.
count_answers() {
  printf '  %s (%s): ' "$2" "$3"
  # shellcheck disable=SC2016
  in_host client bash -c 'for i in $(seq "$1"); do curl -fsS --max-time 2 "http://$2/" || echo failed; done' \
    count "$1" "$3" | sort | uniq --count | awk '{printf "%s%s ×%s", separator, $2, $1; separator = "  "} END {print ""}'
}
