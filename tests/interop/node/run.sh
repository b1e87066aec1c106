#!/bin/sh
# Runs kv.js and coordination.js with the Node client etcd3, installed from the lock file.
set -u

here=$(cd "$(dirname "$0")" && pwd)
folder=$INTEROP_CACHE/node
if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    echo 'skipped: no node or no npm'
    exit 77
fi
if ! cmp -s "$here/package-lock.json" "$folder/package-lock.json" || [ ! -d "$folder/node_modules" ]; then
    rm -rf "$folder"
    mkdir -p "$folder"
    cp "$here/package.json" "$here/package-lock.json" "$folder"
    if ! (cd "$folder" && npm ci --silent --no-audit --no-fund --ignore-scripts); then
        rm -rf "$folder"
        echo 'skipped: cannot install the packages of package-lock.json'
        exit 77
    fi
fi
cp "$here/kv.js" "$here/coordination.js" "$folder"
node "$folder/kv.js" "$1" || exit 1
[ "${INTEROP_COORDINATION:-1}" = 0 ] || exec node "$folder/coordination.js" "$1"
