"""Watch, lease, lock and election of the Python client etcd3: coordination.py http://HOST:PORT"""

import os
import sys
import threading
from urllib.parse import urlparse

import etcd3
import etcd3.events
import etcd3.exceptions


def watches(client: etcd3.Etcd3Client, prefix: str) -> None:
    a, b = prefix + "wa", prefix + "wb"
    first = client.put(a, "one").header.revision
    client.put(a, "two")
    client.put(b, "three")
    client.delete(a)
    events, cancel = client.watch_prefix(prefix + "w", start_revision=first, prev_kv=True)
    seen = [next(events) for _ in range(4)]
    cancel()
    assert [event.key.decode() for event in seen] == [a, a, b, a]
    assert [event.mod_revision for event in seen] == [first + n for n in range(4)]
    assert isinstance(seen[3], etcd3.events.DeleteEvent)
    assert [event.prev_value for event in seen] == [b"", b"one", b"", b"two"]

    came = threading.Event()
    watch_id = client.add_watch_callback(b, lambda _: came.set())
    client.put(b, "four")
    assert came.wait(10)
    client.cancel_watch(watch_id)

    client.compact(first + 2)
    events, cancel = client.watch(a, start_revision=first)
    try:
        next(events)
        raise AssertionError("a compacted revision was watched")
    except etcd3.exceptions.RevisionCompactedError as error:
        assert error.compacted_revision == first + 2


def leases(client: etcd3.Etcd3Client, prefix: str) -> None:
    key = prefix + "leased"
    lease = client.lease(60)
    client.put(key, "x", lease=lease)
    assert lease.granted_ttl == 60 and lease.remaining_ttl > 50
    assert list(lease.keys) == [key.encode()]
    assert [answer.TTL for answer in lease.refresh()] == [60]
    lease.revoke()
    assert client.get(key) == (None, None)
    assert client.get_lease_info(lease.id).TTL == -1

    events, cancel = client.watch(prefix + "short")
    client.put(prefix + "short", "x", lease=client.lease(1))
    assert isinstance(next(events), etcd3.events.PutEvent)
    assert isinstance(next(events), etcd3.events.DeleteEvent)
    cancel()


def locks(client: etcd3.Etcd3Client, prefix: str) -> None:
    """A second holder waits by watching; this client's own waiting breaks with today's tenacity."""
    one = client.lock(prefix + "lock", ttl=30)
    two = client.lock(prefix + "lock", ttl=30)
    assert one.acquire() and one.is_acquired()
    ok, _ = client.transaction(
        compare=[client.transactions.create(one.key) == 0],
        success=[client.transactions.put(one.key, "thief")],
        failure=[],
    )
    assert not ok and not two.is_acquired()
    events, cancel = client.watch(one.key)
    assert one.release()
    assert isinstance(next(events), etcd3.events.DeleteEvent)
    cancel()
    assert two.acquire() and two.is_acquired() and not one.is_acquired()
    assert two.release()


def election(client: etcd3.Etcd3Client, prefix: str) -> None:
    """This client has no election of its own; this is the recipe by hand."""
    line, proposals = prefix + "election/", ["one", "two"]
    keys = []
    for proposal in proposals:
        lease = client.lease(30)
        keys.append((line + f"{lease.id:x}", lease))
        ok, _ = client.transaction(
            compare=[client.transactions.create(keys[-1][0]) == 0],
            success=[client.transactions.put(keys[-1][0], proposal, lease)],
            failure=[],
        )
        assert ok
    events, cancel = client.watch(keys[0][0])
    keys[0][1].revoke()
    assert isinstance(next(events), etcd3.events.DeleteEvent)
    cancel()
    leader = next(client.get_prefix(line, sort_order="ascend", sort_target="create"))
    assert leader[0] == b"two"
    keys[1][1].revoke()


def main() -> None:
    url = urlparse(sys.argv[1])
    client = etcd3.client(host=url.hostname, port=url.port)
    prefix = f"interop/python/{os.getpid()}/"
    watches(client, prefix)
    leases(client, prefix)
    locks(client, prefix)
    election(client, prefix)
    client.delete_prefix(prefix)


if __name__ == "__main__":
    main()
    print("python etcd3: coordination as expected")
    sys.stdout.flush()
    # The client's watcher thread never ends by itself.
    os._exit(0)
