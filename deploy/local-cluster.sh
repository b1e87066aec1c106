#!/usr/bin/env bash
# Starts a cluster on this machine in one command and stops it with Ctrl-C.
#
#   deploy/local-cluster.sh [-n MEMBERS] [-d DIR] [-p PORT] [--fresh] [-- FLAG...]
#
#   -n MEMBERS   number of members, 1 to 9 (3)
#   -d DIR       where data and logs go (./local-cluster); a second start continues with what is there
#   -p PORT      client port of the first member (2379); others follow in steps of 10000, peers are +1
#   --fresh      remove the data of an earlier run first
#   -- FLAG...   further flags for every member, e.g. -- --log-level=debug
#
# QUORATE_BIN names a server binary to use in place of target/release/quorate, which is built if it
# is not there. Only the processes started here are stopped, by their process ids.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

members=3
base=local-cluster
first_port=2379
fresh=no
fail() { echo "local-cluster: $*" >&2; exit 2; }
usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }
while [ $# -gt 0 ]; do
    case $1 in
        -n) members=${2:?-n needs a number}; shift 2 ;;
        -d) base=${2:?-d needs a directory}; shift 2 ;;
        -p) first_port=${2:?-p needs a port}; shift 2 ;;
        --fresh) fresh=yes; shift ;;
        -h | --help) usage; exit 0 ;;
        --) shift; break ;;
        *) usage >&2; fail "there is no option $1" ;;
    esac
done
[[ $members =~ ^[1-9]$ ]] || fail "-n must be 1 to 9"
[[ $first_port =~ ^[0-9]+$ ]] && [ "$first_port" -ge 1 ] || fail "-p must be a port"

# Three members get etcd's customary ports 2379, 22379, 32379; steps shrink when they would not fit.
step=10000
[ $((first_port + members * step + 1)) -le 65535 ] || step=10
[ $((first_port + members * step + 1)) -le 65535 ] || fail "-p $first_port leaves no room for ports"
client_port() { echo $((first_port + ($1 == 1 ? 0 : $1 * step))); }
client_url() { echo "http://127.0.0.1:$(client_port "$1")"; }
peer_url() { echo "http://127.0.0.1:$(($(client_port "$1") + 1))"; }

server=${QUORATE_BIN:-${CARGO_TARGET_DIR:-$repository/target}/release/quorate}
if [ ! -x "$server" ]; then
    [ -z "${QUORATE_BIN:-}" ] || fail "QUORATE_BIN=$QUORATE_BIN is no program"
    (cd "$repository" && cargo build --locked --release --bin quorate)
fi
[ "$fresh" = no ] || for i in $(seq "$members"); do rm -rf "$base/n$i.data"; done
mkdir -p "$base"

initial=
endpoints=
for i in $(seq "$members"); do
    initial+=${initial:+,}n$i=$(peer_url "$i")
    endpoints+=${endpoints:+,}127.0.0.1:$(client_port "$i")
done

pids=()
# Asks every member to stop, waits, and ends those that do not listen.
stop_all() {
    trap - EXIT INT TERM
    [ ${#pids[@]} -gt 0 ] || return 0
    kill "${pids[@]}" 2>/dev/null || true
    for _ in $(seq 100); do
        kill -0 "${pids[@]}" 2>/dev/null || break
        sleep 0.1
    done
    kill -9 "${pids[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
    echo "local-cluster: stopped; data and logs stay in $base"
}
trap stop_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

for i in $(seq "$members"); do
    : >"$base/n$i.log"
    "$server" --name="n$i" --data-dir="$base/n$i.data" \
        --listen-client-urls="$(client_url "$i")" --advertise-client-urls="$(client_url "$i")" \
        --listen-peer-urls="$(peer_url "$i")" \
        --initial-advertise-peer-urls="$(peer_url "$i")" \
        --initial-cluster="$initial" --initial-cluster-token=local-cluster \
        "$@" >>"$base/n$i.log" 2>&1 &
    pids+=($!)
done

# Waits until member $1 says that it serves; fails if it ends or takes longer than 30 seconds.
await_ready() {
    for _ in $(seq 300); do
        grep -q "ready to serve client requests" "$base/n$1.log" && return
        kill -0 "${pids[$(($1 - 1))]}" 2>/dev/null || break
        sleep 0.1
    done
    echo "local-cluster: member n$1 did not start; its log ends with:" >&2
    tail -n 5 "$base/n$1.log" >&2
    exit 1
}
for i in $(seq "$members"); do await_ready "$i"; done

cat <<TEXT
local-cluster: $members members serve, data and logs in $base
  endpoints  $endpoints
  pids       ${pids[*]}
  try        etcdctl --endpoints=$endpoints put hello world
             etcdctl --endpoints=$endpoints endpoint status -w table
  fail over  kill one pid; the cluster goes on while more than half of its members run
Ctrl-C stops all.
TEXT

# A member may be killed to see what happens: end only when none is left.
while [ -n "$(jobs -r)" ]; do
    wait -n 2>/dev/null || true
done
