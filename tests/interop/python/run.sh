#!/bin/sh
# Runs kv.py and coordination.py with the Python client etcd3 in an environment of its own.
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
"$environment/bin/python" "$here/kv.py" "$1" || exit 1
[ "${INTEROP_COORDINATION:-1}" = 0 ] || exec "$environment/bin/python" "$here/coordination.py" "$1"
