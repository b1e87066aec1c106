#!/bin/sh
# Runs coordination.rs and examples/leader_election.rs with the Rust client etcd-client.
#
# That crate wants a protoc when it is built; protoc/ beside this script stands in for it.
set -u

here=$(cd "$(dirname "$0")" && pwd)
if [ "${INTEROP_COORDINATION:-1}" = 0 ]; then
    echo 'skipped: INTEROP_COORDINATION=0, and this client is tried with nothing else'
    exit 77
fi
if ! command -v cargo >/dev/null; then
    echo 'skipped: no cargo'
    exit 77
fi
target=$INTEROP_CACHE/rust
cd "$here" || exit 1
CARGO_TARGET_DIR=$target
export CARGO_TARGET_DIR
if ! cargo fetch --quiet --locked; then
    echo 'skipped: cannot get the crates of Cargo.lock'
    exit 77
fi
cargo build --quiet --locked -p quorate-interop-protoc || exit 1
PROTOC=$target/debug/protoc cargo build --quiet --locked || exit 1
"$target/debug/coordination" "$1" && exec "$target/debug/leader_election" "$1"
