#!/bin/bash
# Make sure that a Docker engine answers, with Compose v2, BuildKit and what builds base images without an image hub.
#
#   scripts/engine.sh           install what is missing (Debian, as root), start the engine if none answers, wait for it
#   scripts/engine.sh --check   only look; change nothing
#
# Idempotent: safe to run twice, at the same time, after kill -9 of the engine, with a stale pidfile.
# stderr is the story. Exit 0: the engine answers. Exit 3: there is none and this script may not or cannot start one, as
# in a container without privileges; it says what is missing and how to get it. Exit 1: an installation failed.
set -euo pipefail

SOCKET=/var/run/docker.sock
EXEC_ROOT=/var/run/docker
PIDFILE=/var/run/docker.pid
LOG=${DOCKERD_LOG:-/var/log/dockerd.log}
LOCK=/run/lock/lastgood-engine.lock
PLUGINS=/usr/local/lib/docker/cli-plugins   # seen by Debian's client and by Docker's own
PLUGIN_SUITE=trixie                         # the stable suite that has Compose v2 and buildx; both need only libc6 >= 2.34
# For base images from Debian packages, the loopback registry, the edge, and tests with a pooler and with point-in-time
# recovery. An engine that can reach a hub does without.
BUILDERS=(mmdebstrap busybox-static docker-registry haproxy pgbouncer pgbackrest postgresql)
CLUSTERS=/etc/postgresql-common/createcluster.d/lastgood.conf

PATH=$PATH:/usr/sbin:/sbin                  # where dockerd and iptables are

say() { echo "engine: $*" >&2; }
answers() { timeout 10 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }
has_plugin() { timeout 20 docker "$1" version >/dev/null 2>&1; }
installed() { dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed; }
is_debian() { grep -qsx 'ID=debian' /etc/os-release; }
may_install() { [ "$(id -u)" = 0 ] && is_debian; }

# Prints the Debian packages that are not there, one per line. An engine that answers, whoever installed it, is enough.
missing_packages() {
  if ! answers; then
    command -v dockerd >/dev/null || echo docker.io
    command -v iptables >/dev/null || echo iptables
  fi
  # Debian 13 split the client out of docker.io; Debian 12 has no such package.
  command -v docker >/dev/null || ! apt-cache show docker-cli >/dev/null 2>&1 || echo docker-cli
  for package in "${BUILDERS[@]}"; do installed "$package" || echo "$package"; done
}

install_packages() {
  say "installing $*"
  # The lock: another apt may be running. --no-install-recommends: docker.io recommends a kernel module loader and git.
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
  local log
  log=$(mktemp)
  # A server of Debian's comes with a cluster that runs; the programs are wanted, not that.
  if [[ " $* " == *" postgresql "* ]]; then mkdir -p "${CLUSTERS%/*}" && echo 'create_main_cluster = false' >"$CLUSTERS"; fi
  # A third-party list that cannot be refreshed is no reason to stop: if it mattered, the installation fails and says so.
  "${apt[@]}" update >"$log" 2>&1 || say "some package lists could not be refreshed"
  "${apt[@]}" install -y --no-install-recommends "$@" >>"$log" 2>&1 || { cat "$log" >&2; exit 1; }
  rm -f "$log" "$CLUSTERS"
  # Where systemd runs, Debian starts what it installs. The registry and the proxy are wanted as programs, not as daemons.
  if [ -d /run/systemd/system ]; then
    for daemon in docker-registry haproxy pgbouncer pgbackrest; do
      if [[ " $* " == *" $daemon "* ]]; then systemctl disable --now "$daemon" >&2 || true; fi
    done
  fi
}

# Unpacks Compose v2 and buildx beside the client, leaving apt's configuration and libc as they are: installing them
# from a newer suite by apt would pull that suite's libc in.
install_plugins() {
  say "unpacking Compose v2 and buildx from Debian $PLUGIN_SUITE"
  local work mirror codename
  work=$(mktemp -d)
  mkdir -p "$work"/{lists/partial,cache/archives/partial,parts,debs} "$PLUGINS"
  # shellcheck disable=SC1091 # a file of the machine
  codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
  # The mirror that this machine already uses for its own suite.
  # shellcheck disable=SC2016 # apt fills it in, not the shell
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' "Codename: $codename" |
    grep -v security | head -n 1) || true
  if [ -z "$mirror" ]; then say "no Debian mirror found in apt's lists; run: apt-get update"; exit 1; fi
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $PLUGIN_SUITE main" >"$work/suite.list"
  local apt=(apt-get -qq -o "Dir::Etc::sourcelist=$work/suite.list" -o "Dir::Etc::sourceparts=$work/parts"
    -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root
    -o Acquire::Languages=none -o Acquire::Retries=3)
  "${apt[@]}" update >&2
  (cd "$work/debs" && "${apt[@]}" download docker-compose docker-buildx >&2)
  for deb in "$work"/debs/*.deb; do dpkg -x "$deb" "$work/x"; done
  install -m 755 "$work"/x/usr/libexec/docker/cli-plugins/docker-{compose,buildx} "$PLUGINS/"
  rm -rf "$work"
}

# dockerd refuses to start while its pidfile names any living process, or a zombie: drop the file unless it names a
# living process of that name.
drop_stale_pidfile() {
  local pid
  [ -s "$1" ] || return 0
  pid=$(cat "$1")
  if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ] && ! grep -q '^State:.*Z' "/proc/$pid/status"; then return 0; fi
  rm -f "$1"
}

start_engine() {
  if [ -d /run/systemd/system ]; then
    systemctl start docker >&2
    for _ in $(seq 300); do answers && return 0; sleep 0.1; done
    return 1
  fi
  drop_stale_pidfile "$PIDFILE" dockerd
  drop_stale_pidfile "$EXEC_ROOT/containerd/containerd.pid" containerd
  local child
  for _ in 1 2 3; do
    # 9>&-: the engine outlives this script and must not hold its lock.
    setsid nohup dockerd --host "unix://$SOCKET" --exec-root "$EXEC_ROOT" --pidfile "$PIDFILE" >>"$LOG" 2>&1 </dev/null 9>&- &
    child=$!
    for _ in $(seq 300); do
      answers && return 0
      kill -0 "$child" 2>/dev/null || break
      sleep 0.1
    done
    sleep 1
  done
  tail -n 3 "$LOG" >&2
  return 1
}

# Without systemd all containers together weigh as much as one process beside them, and starve where tests and builds
# keep the machine busy. Here their group gets the weight of sixteen processes. Best effort: an engine is one without.
weigh_containers() {
  local cpu=/sys/fs/cgroup/cpu
  if [ -f /sys/fs/cgroup/cgroup.controllers ]; then cpu=/sys/fs/cgroup; fi
  mkdir -p "$cpu/docker" 2>/dev/null || return 0
  if [ -f "$cpu/cgroup.subtree_control" ]; then echo +cpu 2>/dev/null >"$cpu/cgroup.subtree_control" || :; fi
  if [ -f "$cpu/docker/cpu.shares" ]; then echo 16384 2>/dev/null >"$cpu/docker/cpu.shares" || :; fi
  if [ -f "$cpu/docker/cpu.weight" ]; then echo 1600 2>/dev/null >"$cpu/docker/cpu.weight" || :; fi
}

# What only a person can do about it. Returns 3.
say_what_is_missing() {
  say "not ready: $1"
  if is_debian; then
    say "  as root, where a daemon may run: scripts/engine.sh    (Debian packages: docker.io iptables ${BUILDERS[*]})"
  else
    say "  this script installs only on Debian; elsewhere: a Docker engine that '$(id -un)' may use, Compose v2 and buildx"
  fi
  return 3
}

what_is_missing() {
  if ! command -v docker >/dev/null; then echo "no docker client";
  elif ! answers; then echo "no Docker engine answers '$(id -un)'";
  elif ! has_plugin compose; then echo "'docker compose' (v2) is not there";
  elif ! has_plugin buildx; then echo "'docker buildx' is not there"; fi
}

main() {
  local gap
  if [ "${1:-}" = --check ] || ! may_install; then
    gap=$(what_is_missing)
    if [ -n "$gap" ]; then say_what_is_missing "$gap"; fi
  else
    exec 9>"$LOCK"
    flock 9
    local packages
    mapfile -t packages < <(missing_packages)
    if [ ${#packages[@]} -gt 0 ]; then install_packages "${packages[@]}"; fi
    if ! has_plugin compose || ! has_plugin buildx; then install_plugins; fi
    if ! answers; then
      say "starting dockerd (log: $LOG)"
      start_engine || say_what_is_missing "dockerd does not start here (log: $LOG)"
      if [ ! -d /run/systemd/system ]; then weigh_containers; fi
    fi
  fi
  say "engine $(docker version --format '{{.Server.Version}}') answers, compose $(docker compose version --short)"
}

main "$@"
