#!/bin/sh
# Runs main.go with the Go client clientv3, from the pinned modules.
set -u

here=$(cd "$(dirname "$0")" && pwd)
if ! command -v go >/dev/null; then
    echo 'skipped: no go'
    exit 77
fi
cd "$here" || exit 1
if ! GOFLAGS=-mod=readonly go mod download; then
    echo 'skipped: cannot get the modules of go.sum'
    exit 77
fi
GOFLAGS=-mod=readonly CGO_ENABLED=0 go build -o "$INTEROP_CACHE/clientv3" . || exit 1
exec "$INTEROP_CACHE/clientv3" "$1"
