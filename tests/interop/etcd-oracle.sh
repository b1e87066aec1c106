#!/bin/sh
# Builds etcd and etcdctl 3.7.1 from their published Go modules into a folder.
#
#   tests/interop/etcd-oracle.sh FOLDER
#
# The versions and checksums of all modules are pinned by go.mod and go.sum beside this script.
# Does nothing if both binaries are there in the wanted version. Exits with 0 and a message if there
# is no `go`: the oracle is a convenience of tests, never a need of the build.
set -eu

version=3.7.1

if [ $# -ne 1 ]; then
    echo "usage: $0 FOLDER" >&2
    exit 2
fi
mkdir -p "$1"
folder=$(cd "$1" && pwd)
source=$(cd "$(dirname "$0")/oracle" && pwd)

# Whether the binary $1 is there and says that it has the wanted version.
is_built() {
    [ -x "$folder/$1" ] && "$folder/$1" "$2" 2>/dev/null | grep -q "ersion: $version\$"
}

if is_built etcd --version && is_built etcdctl version; then
    exit 0
fi
if ! command -v go >/dev/null; then
    echo "skipped: no go, so no etcd $version to compare with" >&2
    exit 0
fi
cd "$source"
GOFLAGS=-mod=readonly CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' \
    -o "$folder/etcd" go.etcd.io/etcd/server/v3
GOFLAGS=-mod=readonly CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' \
    -o "$folder/etcdctl" go.etcd.io/etcd/etcdctl/v3
