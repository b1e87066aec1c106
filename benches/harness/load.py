"""Load generators behind one face: `quoratectl bench`, or kvload where there is one."""

import json
import os
import subprocess
import time
from dataclasses import dataclass


class Unsupported(Exception):
    """The generator has no such workload."""


@dataclass
class Load:
    """One closed loop: what, by how many, for how long, on which keys."""

    workload: str
    clients: int = 64
    conns: int = 16
    seconds: float = 3.0
    # Stop after so many requests; `seconds` is then only the bound.
    requests: int = 0
    keys: int = 10_000
    value_bytes: int = 256
    sequential: bool = False
    # Requests a second of all clients together; 0 is no limit.
    rate: int = 0
    seed: int = 1


@dataclass
class Outcome:
    """What a generator saw. Latencies in milliseconds, of the slowest kind of request."""

    requests: int
    per_second: float
    p50: float
    p99: float
    longest: float
    errors: int
    # Share of one core that the generator took; near 1 it is the limit, not the server.
    client_busy: float = 0.0


# Kinds of request below this share do not decide the latency of a mix.
KIND_SHARE_MIN = 0.02


class Generator:
    """Starts one process a run and reads the JSON that it prints."""

    def run(self, endpoints, load):
        """The outcome of `load` on `endpoints`."""
        command = self.command(endpoints, load)
        bound = load.seconds + 60
        began, used = time.monotonic(), _children_seconds()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=bound,
                                  stdin=subprocess.DEVNULL, check=False)
        except subprocess.TimeoutExpired as late:
            raise RuntimeError(f"the load generator did not end in {bound:.0f} s") from late
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\nfailed: {done.stderr.strip()}")
        outcome = self.outcome(json.loads(done.stdout.strip().splitlines()[-1]))
        used = _children_seconds() - used
        outcome.client_busy = used / (time.monotonic() - began)
        return outcome


class Quoratectl(Generator):
    """`quoratectl bench` of this repository."""

    WORKLOADS = {
        "put": ["put"],
        "get": ["get"],
        "get-serializable": ["get", "--consistency", "s"],
        "mixed": ["mixed", "--read-percent", "90"],
        "txn-cas": ["txn"],
    }

    def __init__(self, binary):
        self.binary = binary

    def command(self, endpoints, load):
        if load.workload not in self.WORKLOADS:
            raise Unsupported(f"quoratectl bench has no {load.workload}; use --kvload")
        length = (["--total", str(load.requests)] if load.requests
                  else ["--duration", f"{int(load.seconds * 1000)}ms"])
        order = ["--sequential-keys"] if load.sequential else []
        return [
            self.binary, "--endpoints", ",".join(endpoints), "-w", "json", "bench",
            *self.WORKLOADS[load.workload], "--clients", str(load.clients),
            "--conns", str(load.conns), *length, "--key-size", "8",
            "--val-size", str(load.value_bytes), "--key-space-size", str(load.keys),
            "--rate", str(load.rate), "--seed", str(load.seed), *order,
        ]

    def outcome(self, report):
        kinds = [{"count": kind["requests"], "p50": kind["p50_us"] / 1000,
                  "p99": kind["p99_us"] / 1000, "max": kind["max_us"] / 1000}
                 for kind in (report["reads"], report["writes"]) if kind]
        return _outcome(kinds, report["seconds"], sum(report["errors"].values()))

    def fill(self, endpoints, keys, value_bytes):
        """Writes every key once."""
        load = Load("put", 256, 16, 1800, keys, keys, value_bytes, sequential=True)
        return self.run(endpoints, load)


class Kvload(Generator):
    """kvload, which takes less CPU a request."""

    def __init__(self, binary):
        self.binary = binary

    def command(self, endpoints, load):
        length = ["--ops", str(load.requests)] if load.requests else []
        return [
            self.binary, "--endpoints", ",".join(endpoints), "--workload", load.workload,
            "--clients", str(load.clients), "--conns", str(load.conns), "--warmup", "0",
            "--duration", str(load.seconds), *length, "--key-size", "8",
            "--val-size", str(load.value_bytes), "--keyspace", str(load.keys),
            "--key-order", "seq" if load.sequential else "random", "--rate", str(load.rate),
            "--seed", str(load.seed), "--json",
            # Its compare-and-set learns the revisions of the keys by writing them.
            *([] if load.workload == "txn-cas" else ["--no-prefill"]),
        ]

    def outcome(self, report):
        kinds = [kind for kind in report["ops"] if kind["count"]]
        kinds = [{"count": kind["count"], "p50": kind["p50_ms"], "p99": kind["p99_ms"],
                  "max": kind["max_ms"]} for kind in kinds]
        return _outcome(kinds, report["elapsed_s"], report["errors_total"])

    def fill(self, endpoints, keys, value_bytes):
        """Writes every key once, in transactions of 100 puts."""
        load = Load("fill", 4, 4, 1800, 0, keys, value_bytes)
        return self.run(endpoints, load)


def _children_seconds():
    """CPU time of the processes that have ended under us; servers run on, so this is the load's."""
    times = os.times()
    return times.children_user + times.children_system


def _outcome(kinds, seconds, errors):
    requests = sum(kind["count"] for kind in kinds)

    def worst(name):
        counted = [kind[name] for kind in kinds if kind["count"] >= KIND_SHARE_MIN * requests]
        return max(counted, default=0.0)

    return Outcome(requests, requests / seconds, worst("p50"), worst("p99"), worst("max"), errors)
