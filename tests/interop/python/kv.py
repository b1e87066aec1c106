"""The KV calls of the Python client etcd3, against one endpoint: kv.py http://HOST:PORT"""

import os
import sys
from urllib.parse import urlparse

import etcd3
import etcd3.exceptions
import grpc


def main() -> None:
    url = urlparse(sys.argv[1])
    client = etcd3.client(host=url.hostname, port=url.port)
    prefix = f"interop/python/{os.getpid()}/"
    a, b, missing = prefix + "a", prefix + "b", prefix + "missing"

    # One key.
    assert client.get(missing) == (None, None)
    first = client.put(a, "one").header.revision
    value, meta = client.get(a)
    assert value == b"one"
    assert (meta.create_revision, meta.mod_revision, meta.version) == (first, first, 1)
    answer = client.put(a, "two", prev_kv=True)
    assert answer.prev_kv.value == b"one"
    assert answer.header.revision == first + 1
    value, meta = client.get(a, serializable=True)
    assert value == b"two"
    assert (meta.create_revision, meta.mod_revision, meta.version) == (first, first + 1, 2)

    # Intervals.
    client.put(b, b"\x00\xff")
    pairs = [(meta.key.decode(), value) for value, meta in client.get_prefix(prefix)]
    assert pairs == [(a, b"two"), (b, b"\x00\xff")]
    down = [meta.key.decode() for _, meta in client.get_prefix(prefix, sort_order="descend")]
    assert down == [b, a]
    assert [value for value, _ in client.get_range(a, b)] == [b"two"]
    keys = [(meta.key.decode(), value) for value, meta in client.get_prefix(prefix, keys_only=True)]
    assert keys == [(a, b""), (b, b"")]

    # Transactions.
    ok, answers = client.transaction(
        compare=[client.transactions.value(a) == "two", client.transactions.version(b) > 0],
        success=[client.transactions.put(a, "three"), client.transactions.get(a)],
        failure=[client.transactions.delete(a)],
    )
    assert ok and answers[1][0][0] == b"three"
    ok, answers = client.transaction(
        compare=[client.transactions.create(missing) > 0],
        success=[client.transactions.put(a, "never")],
        failure=[client.transactions.get(a), client.transactions.delete(b)],
    )
    assert not ok and answers[0][0][0] == b"three"
    assert client.replace(a, "three", "four") and not client.replace(a, "three", "five")
    assert not client.put_if_not_exists(a, "six")

    # Deletes.
    assert client.delete(a) and not client.delete(a)
    client.put(a, "seven")
    assert client.delete_prefix(prefix).deleted == 1

    # Compaction and a refusal.
    revision = client.put(a, "eight").header.revision
    client.compact(revision, physical=True)
    try:
        client.compact(revision)
        raise AssertionError("a compacted revision was compacted again")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.OUT_OF_RANGE
        assert error.details() == "etcdserver: mvcc: required revision has been compacted"
    client.delete(a)

    # Who is there.
    assert len(list(client.members)) >= 1
    assert client.status().version.startswith("3.")


if __name__ == "__main__":
    main()
    print("python etcd3: all as expected")
