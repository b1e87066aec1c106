"""Watches, leases, locks and elections, each a contest between two servers that are freshly started."""

import json
import statistics
import subprocess
import time

from . import table

WATCHERS, STREAMS, WATCH_CONNS = 10_000, 100, 20
# Half of the puts match; each of those has 100 watchers.
WATCHED_KEYS, WRITTEN_KEYS, PUTS, PUTS_A_SECOND = 100, 200, 5_000, 500
# Leases that live on while the others are measured.
LEASES, KEEP_ALIVES, KEEP_ALIVES_A_SECOND = 100_000, 200_000, 20_000
SHORT_LEASES = 20_000
IN_LINE, LINE_SECONDS = 10, 5
COMMAND_SECONDS = 120
# CPU that a server spends on a contest just after it.
SETTLE_SECONDS = 1.0


def contests(bench, cluster):
    """Runs all contests on one cluster; yields name, rate, CPU in microseconds, p50 and p99 in ms."""
    lease = lambda *args: _quoratectl(bench, cluster, "lease", "--ttl", "3600", "--conns", "8", *args)

    cpu = _Cpu(cluster)
    report = _quoratectl(
        bench, cluster, "watch", "--watchers", str(WATCHERS), "--streams", str(STREAMS),
        "--conns", str(WATCH_CONNS), "--watched-keys", str(WATCHED_KEYS),
        "--key-space-size", str(WRITTEN_KEYS), "--total", str(PUTS), "--rate", str(PUTS_A_SECOND))
    if report["events_lost"] or report["events_disordered"] or report["errors"]:
        raise RuntimeError(f"{cluster.name}: the watchers did not see what was put: {report}")
    events = report["events_received"]
    yield ("event to one of 10 000 watchers, its put included", events / report["seconds"],
           cpu.micros(events), *_latencies(report["events"]))

    cpu = _Cpu(cluster)
    report = lease("--leases", str(LEASES), "--keep-alives", "0", "--keep", "--clients", "64")
    a_grant = cpu.micros(LEASES)
    yield "grant, 64 clients", _rate(report, "grants"), a_grant, *_latencies(report["grants"])

    cpu = _Cpu(cluster)
    report = lease("--leases", str(SHORT_LEASES), "--keep-alives", "0", "--clients", "64")
    yield ("grant and revoke, 64 clients", _rate(report, "revokes"), cpu.micros(SHORT_LEASES),
           *_latencies(report["revokes"]))

    for name, clients, leases, keep_alives, rate in [
            ("keep-alive, 64 leases on 64 streams", 64, 64, KEEP_ALIVES, 0),
            ("keep-alive, 20 000/s, 50 000 leases on 400 streams, 150 000 in all", 400,
             LEASES // 2, KEEP_ALIVES, KEEP_ALIVES_A_SECOND)]:
        cpu = _Cpu(cluster)
        report = lease("--leases", str(leases), "--keep-alives", str(keep_alives), "--keep",
                       "--rate", str(rate), "--clients", str(clients))
        # The grants before have their price, which is known.
        micros = cpu.micros(keep_alives) - a_grant * leases / keep_alives
        yield name, _rate(report, "keep_alives"), micros, *_latencies(report["keep_alives"])

    if bench.options.kvload:
        for workload, kind in [("lock", "lock"), ("election", "campaign")]:
            cpu = _Cpu(cluster)
            report = _kvload(bench, cluster, workload)
            turns = next(op for op in report["ops"] if op["op"] == kind)
            rate = turns["count"] / report["elapsed_s"]
            # From one holder to the next; a client itself waits for all that stand before it.
            yield (f"{workload}, {IN_LINE} in line, a hand-over", rate, cpu.micros(turns["count"]),
                   turns["p50_ms"] / IN_LINE, turns["p99_ms"] / IN_LINE)


def publish(bench, results):
    """The table: medians of all pairs; `results` has, for each side, a list of lists of contests."""
    columns = ["", "A /s", "B /s", "A CPU µs", "B CPU µs", "B/A", "A p50 ms", "B p50 ms",
               "A p99 ms", "B p99 ms"]
    medians = {side: [_median(runs) for runs in zip(*lists)] for side, lists in results.items()}
    rows = []
    for a, b in zip(medians["A"], medians["B"]):
        (name, rate_a, cpu_a, p50_a, p99_a), (_, rate_b, cpu_b, p50_b, p99_b) = a, b
        rows.append([name, rate_a, rate_b, cpu_a, cpu_b, table.ratio(cpu_b, cpu_a), p50_a, p50_b,
                     p99_a, p99_b])
    caption = (f"A is Quorate, B is etcd; one member, medians of {bench.options.pairs} pairs; "
               f"{table.machine()}.")
    table.publish("coordination", caption, table.markdown(columns, rows), {"sides": results},
                  bench.options)


class _Cpu:
    """CPU of a cluster from now on."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.begin = cluster.cpu_seconds()

    def micros(self, count):
        """For each of `count`, with what the servers put off."""
        time.sleep(SETTLE_SECONDS)
        return (self.cluster.cpu_seconds() - self.begin) * 1e6 / max(1, count)


def _median(runs):
    """The median of each figure of one contest."""
    return (runs[0][0], *(statistics.median(figures) for figures in list(zip(*runs))[1:]))


def _rate(report, phase):
    return report[phase]["requests_per_second"]


def _latencies(histogram):
    return histogram["p50_us"] / 1000, histogram["p99_us"] / 1000


def _quoratectl(bench, cluster, *args):
    return _json([bench.options.ctl, "--endpoints", ",".join(cluster.endpoints), "-w", "json",
                  "bench", *args])


def _kvload(bench, cluster, workload):
    return _json([bench.options.kvload, "--endpoints", ",".join(cluster.endpoints), "--workload",
                  workload, "--clients", str(IN_LINE), "--conns", "5", "--locks", "1", "--warmup",
                  "0", "--duration", str(LINE_SECONDS), "--json"])


def _json(command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS,
                          stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\nfailed: {done.stderr.strip()}")
    return json.loads(done.stdout.strip().splitlines()[-1])
