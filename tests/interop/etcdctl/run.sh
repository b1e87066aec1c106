#!/bin/sh
# Runs kv.sh with every etcdctl that can be found: the one on the PATH (Debian ships 3.4), and the
# one that etcd-oracle.sh built, named by ETCDCTL or in INTEROP_CACHE/oracle.
set -u

here=$(cd "$(dirname "$0")" && pwd)
found=0
failures=0
for tool in "$(command -v etcdctl || true)" "${ETCDCTL:-$INTEROP_CACHE/oracle/etcdctl}"; do
    [ -n "$tool" ] && [ -x "$tool" ] || continue
    found=$((found + 1))
    "$here/kv.sh" "$tool" "$1" || failures=$((failures + 1))
done
if [ "$found" -eq 0 ]; then
    echo "skipped: no etcdctl on the PATH, in ETCDCTL or in $INTEROP_CACHE/oracle"
    exit 77
fi
[ "$failures" -eq 0 ]
