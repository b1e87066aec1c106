#!/bin/sh
# Runs every real client against one endpoint:
#
#   tests/interop/run.sh http://127.0.0.1:2379 [client...]
#
# Each folder with a run.sh is one client; that script takes the endpoint and ends with 0 (passed),
# 77 (skipped, after saying why) or anything else (failed). What clients install goes below
# INTEROP_CACHE, by default target/interop. INTEROP_COORDINATION=0 leaves out watch, lease, lock and
# election. The store behind the endpoint is compacted.
set -u

if [ $# -lt 1 ]; then
    echo "usage: $0 ENDPOINT [client...]" >&2
    exit 2
fi
endpoint=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
INTEROP_CACHE=${INTEROP_CACHE:-$here/../../target/interop}
mkdir -p "$INTEROP_CACHE"
INTEROP_CACHE=$(cd "$INTEROP_CACHE" && pwd)
export INTEROP_CACHE

if [ $# -eq 0 ]; then
    for script in "$here"/*/run.sh; do
        set -- "$@" "$(basename "$(dirname "$script")")"
    done
fi

failures=0
for client in "$@"; do
    "$here/$client/run.sh" "$endpoint"
    case $? in
        0) echo "interop $client: passed" ;;
        77) echo "interop $client: skipped" ;;
        *)
            echo "interop $client: FAILED"
            failures=$((failures + 1))
            ;;
    esac
done
[ "$failures" -eq 0 ]
