#!/bin/sh
# Runs kv.py with the Python client etcd3 in an environment of its own.
set -u

here=$(cd "$(dirname "$0")" && pwd)
environment=$INTEROP_CACHE/python
if ! command -v python3 >/dev/null; then
    echo 'skipped: no python3'
    exit 77
fi
if ! cmp -s "$here/requirements.txt" "$environment/requirements.txt"; then
    rm -rf "$environment"
    if ! python3 -m venv "$environment" ||
        ! "$environment/bin/pip" install --quiet --disable-pip-version-check \
            -r "$here/requirements.txt"; then
        echo 'skipped: cannot install the packages of requirements.txt'
        exit 77
    fi
    cp "$here/requirements.txt" "$environment/requirements.txt"
fi
exec "$environment/bin/python" "$here/kv.py" "$1"
