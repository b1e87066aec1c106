#!/usr/bin/env python3
"""Compares Quorate (A) with etcd (B) on one machine, in runs that alternate.

    benches/compare.py run --etcd PATH                  workloads x clients, one member
    benches/compare.py run --members 3 --etcd PATH      the same on three members
    benches/compare.py offered --etcd PATH              latency at a rate that both can bear
    benches/compare.py restart --etcd PATH              a million keys: memory, time to serve again
    benches/compare.py plateau --minutes 10 --etcd PATH memory and disk under overwrites
    benches/compare.py history --etcd PATH              put latency with history, and compacting
    benches/compare.py idle --etcd PATH                 memory and CPU of members at rest
    benches/compare.py coordination --etcd PATH         watches, leases, locks, elections

Prints a Markdown table, then one line of JSON (or writes it to --json FILE). --write puts the table
into benches/README.md, which says how to read it. Servers get free loopback ports and scratch
directories; all that was started is ended, also on Ctrl-C. Python's standard library is enough.
"""

import argparse
import os
import signal
import statistics
import sys
import threading
import time
from dataclasses import asdict, replace

from harness import coordination as contests
from harness import table
from harness.grpc import CallFailed, Client
from harness.load import Kvload, Load, Quoratectl, Unsupported
from harness.server import Cluster, steal_and_total_ticks

WORKLOADS = ["put", "get", "get-serializable", "mixed", "txn-cas", "range"]
CLIENTS = [1, 64, 256, 1000]
PHASES = ["empty", "with history", "compacting"]
# Room for history on both sides; etcd's default of 2 GiB would end the long modes.
QUOTA = ["--quota-backend-bytes", str(8 << 30)]


def say(text):
    """Progress, apart from the result."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


class Bench:
    """What all modes share: the two programs, the generator and the time that is left."""

    def __init__(self, options):
        self.options = options
        self.deadline = time.monotonic() + options.time_limit
        self.generator = Kvload(options.kvload) if options.kvload else Quoratectl(options.ctl)

    def cluster(self, side, members=1, flags=()):
        """A cluster of A or B that has not started yet."""
        name, binary = ("quorate", self.options.quorate) if side == "A" \
            else ("etcd", self.options.etcd)
        return Cluster(name, binary, members, flags)

    def sides(self):
        """The sides that take part."""
        return [side for side in "AB" if side in self.options.only]

    def check_time(self):
        """Ends the program when its time is over; what was measured so far is lost by intent."""
        if time.monotonic() > self.deadline:
            raise RuntimeError(f"--time-limit of {self.options.time_limit} s is over")

    def caption(self, text):
        """Settings of a table in one line."""
        generator = "kvload" if self.options.kvload else "quoratectl bench"
        return f"{text}; load by {generator}; {table.machine()}."


# --- run -----------------------------------------------------------------------------------------

def run(bench):
    """The grid: each cell is a fresh pair of clusters, measured in turn."""
    options, cells = bench.options, run_cells(bench)
    columns = ["workload, clients", "A op/s", "B op/s", "A/B", "A CPU µs/op", "B CPU µs/op",
               "B/A", "A p99 ms", "B p99 ms", "A RSS MiB", "B RSS MiB"]
    rows = [cell_row(cell) for cell in cells]
    name = "one-member" if options.members == 1 else "three-members"
    steal = max((run["steal"] for cell in cells for run in cell["A"] + cell["B"]), default=0)
    caption = bench.caption(
        f"A is Quorate, B is etcd; {options.members} member(s), medians of {options.pairs} pairs "
        f"of {options.seconds:g} s, 8-byte keys out of {options.keys}, values of "
        f"{options.value_bytes} bytes; at most {steal:.1%} of the CPU withheld from the machine")
    table.publish(name, caption, table.markdown(columns, rows), {"cells": cells}, options)


def offered(bench):
    """The grid at equal rates: in each cell both get a share of what etcd reaches by itself."""
    options, cells = bench.options, run_cells(bench, bench.options.share)
    columns = ["workload, clients", "offered op/s", "A p50 ms", "B p50 ms", "A p99 ms", "B p99 ms",
               "B/A", "A CPU µs/op", "B CPU µs/op", "B/A"]
    rows = []
    for cell in cells:
        p50, p99, cpu = ([median(cell, side, name) for side in "AB"]
                         for name in ("p50", "p99", "cpu_us"))
        rows.append([f"{cell['workload']}, {cell['clients']}", cell["rate"], *p50, *p99,
                     table.ratio(p99[1], p99[0]), *cpu, table.ratio(cpu[1], cpu[0])])
    name = "offered-one" if options.members == 1 else "offered-three"
    caption = bench.caption(
        f"A is Quorate, B is etcd; {options.members} member(s), both offered {options.share:.0%} of "
        f"what etcd reaches in a closed loop; medians of {options.pairs} pairs of "
        f"{options.seconds:g} s, 8-byte keys out of {options.keys}, values of "
        f"{options.value_bytes} bytes")
    table.publish(name, caption, table.markdown(columns, rows), {"cells": cells}, options)


def run_cells(bench, share=0.0):
    """All cells that the load generator can do."""
    options, cells = bench.options, []
    for workload in options.workloads:
        for clients in options.clients:
            try:
                cells.append(run_cell(bench, workload, clients, share))
            except Unsupported as reason:
                say(f"left out: {reason}")
                break
    return cells


def run_cell(bench, workload, clients, share):
    """N pairs of runs, in a closed loop or at a share of what B reaches; each begins in turn."""
    options = bench.options
    conns = options.conns or min(clients, 16 if options.members == 1 else 15)
    load = Load(workload, clients, conns, options.seconds, keys=options.keys,
                value_bytes=options.value_bytes)
    bench.generator.command(["127.0.0.1:1"], load)  # Unsupported shows before servers start.
    runs = {"A": [], "B": []}
    with bench.cluster("A", options.members, options.flag) as a, \
            bench.cluster("B", options.members, options.flag) as b:
        clusters = {"A": a, "B": b}
        for side in bench.sides():
            bench.generator.fill(clusters[side].endpoints, options.keys, options.value_bytes)
            bench.generator.run(clusters[side].endpoints, replace(load, seconds=options.warmup))
            time.sleep(options.settle)
        if share:
            reached = bench.generator.run(b.endpoints, load).per_second
            load = replace(load, rate=int(reached * share))
        for pair in range(options.pairs):
            for side in bench.sides() if pair % 2 == 0 else reversed(bench.sides()):
                bench.check_time()
                seeded = replace(load, seed=pair + 1)
                runs[side].append(run_once(bench, clusters[side], seeded))
    cell = {"workload": workload, "clients": clients, "conns": conns, "rate": load.rate, **runs}
    row = cell_row(cell)
    say(f"{row[0]}: op/s A/B {table.cell(row[3])}, CPU B/A {table.cell(row[6])}")
    return cell


def run_once(bench, cluster, load):
    """One closed loop; the work that a server puts off until just after it counts as well."""
    steal, total = steal_and_total_ticks()
    cpu = cluster.cpu_seconds()
    outcome = bench.generator.run(cluster.endpoints, load)
    rss = cluster.rss_mib()
    time.sleep(bench.options.settle)
    cpu = cluster.cpu_seconds() - cpu
    stolen, passed = (after - before for after, before in
                      zip(steal_and_total_ticks(), (steal, total)))
    if outcome.errors:
        say(f"{cluster.name}: {outcome.errors} errors in {load.workload}")
    return {**asdict(outcome), "cpu_us": cpu * 1e6 / max(1, outcome.requests), "rss_mib": rss,
            "steal": stolen / max(1, passed)}


def median(cell, side, name):
    """Of one figure over the runs of one side."""
    values = [run[name] for run in cell[side]]
    return statistics.median(values) if values else None


def cell_row(cell):
    """Medians and their ratios."""
    rate, cpu, p99, rss = ([median(cell, side, name) for side in "AB"]
                           for name in ("per_second", "cpu_us", "p99", "rss_mib"))
    return [f"{cell['workload']}, {cell['clients']}", *rate, table.ratio(*rate), *cpu,
            table.ratio(cpu[1], cpu[0]), *p99, *rss]


# --- restart -------------------------------------------------------------------------------------

def restart(bench):
    """Loads many keys, then kills and starts the server several times."""
    results = {side: restart_side(bench, side) for side in bench.sides()}
    columns = ["", *("Quorate" if side == "A" else "etcd" for side in results)]
    names = [("load s", "loading, s"), ("rss loaded", "RSS after loading, MiB"),
             ("anon loaded", "of it anonymous, MiB"), ("disk", "disk after loading, MiB"),
             ("first read", "kill -9, start to first linearizable read, s (median)"),
             ("rss restarted", "RSS after the restart, MiB (median)")]
    rows = [[label, *(result[name] for result in results.values())] for name, label in names]
    options = bench.options
    caption = bench.caption(
        f"{options.keys} keys of 8 bytes with values of {options.value_bytes} bytes, one member, "
        f"{options.rounds} restarts")
    table.publish("restart", caption, table.markdown(columns, rows), {"sides": results}, options)


def restart_side(bench, side):
    """One server: load, look, and restart."""
    options = bench.options
    with bench.cluster(side, 1, QUOTA + options.flag) as cluster:
        say(f"{cluster.name}: loading {options.keys} keys")
        began = time.monotonic()
        bench.generator.fill(cluster.endpoints, options.keys, options.value_bytes)
        result = {"load s": time.monotonic() - began}
        time.sleep(options.rest)
        result |= {"rss loaded": cluster.rss_mib(), "anon loaded": cluster.rss_mib("RssAnon"),
                   "disk": cluster.disk_mib()}
        seconds, rss = [], []
        for _ in range(options.rounds):
            bench.check_time()
            cluster.stop(kill=True)
            began = time.monotonic()
            cluster.start(wait=False)
            cluster.await_read(seconds=600)
            seconds.append(time.monotonic() - began)
            check_keys(cluster, options.keys)
            time.sleep(options.rest)
            rss.append(cluster.rss_mib())
            say(f"{cluster.name}: first read after {seconds[-1]:.2f} s, RSS {rss[-1]:.0f} MiB")
        return result | {"first read": statistics.median(seconds), "all first reads": seconds,
                         "rss restarted": statistics.median(rss)}


def check_keys(cluster, expected):
    """A restart that is fast because it forgot something is none."""
    with Client(cluster.endpoints[0], 60) as client:
        found, _ = client.count()
    if found != expected:
        raise RuntimeError(f"{cluster.name} has {found} keys after the restart, want {expected}")


# --- plateau -------------------------------------------------------------------------------------

def plateau(bench):
    """Overwrites the same keys for minutes; memory and disk must come to rest."""
    options, series = bench.options, {}
    for side in bench.sides():
        series[side] = plateau_side(bench, side)
    columns = ["minute"]
    for side in series:
        name = "Quorate" if side == "A" else "etcd"
        columns += [f"{name} op/s", f"{name} RSS MiB", f"{name} disk MiB"]
    rows = []
    for samples in zip(*series.values()):
        row = [f"{samples[0]['minute']:g}"]
        for sample in samples:
            row += [sample["per_second"], sample["rss_mib"], sample["disk_mib"]]
        rows.append(row)
    caption = bench.caption(
        f"Overwrites at full speed by {options.clients} clients, {options.keys} keys, values of "
        f"{options.value_bytes} bytes, compaction every {options.compact_every:g} s, one member, "
        f"one server after the other")
    table.publish("plateau", caption, table.markdown(columns, rows), {"sides": series}, options)


def plateau_side(bench, side):
    """Samples of one server, one a minute."""
    options = bench.options
    load = Load("put", options.clients, min(options.clients, 16), options.minutes * 60,
                keys=options.keys, value_bytes=options.value_bytes)
    with bench.cluster(side, 1, QUOTA + options.flag) as cluster:
        bench.generator.fill(cluster.endpoints, options.keys, options.value_bytes)
        background = Background(lambda: bench.generator.run(cluster.endpoints, load))
        began, revision, samples = time.monotonic(), revision_of(cluster), []
        due, compaction = began + options.sample_seconds, began + options.compact_every
        while len(samples) * options.sample_seconds < options.minutes * 60:
            bench.check_time()
            time.sleep(max(0.0, min(due, compaction) - time.monotonic()))
            if time.monotonic() >= compaction:
                cluster.compact(physical=False)
                compaction += options.compact_every
            if time.monotonic() < due:
                continue
            now = revision_of(cluster)
            sample = {"minute": round((due - began) / 60, 2), "rss_mib": cluster.rss_mib(),
                      "per_second": (now - revision) / options.sample_seconds,
                      "disk_mib": cluster.disk_mib()}
            samples.append(sample)
            say(f"{cluster.name}: {sample}")
            revision, due = now, due + options.sample_seconds
        background.join()
    return samples


def revision_of(cluster):
    """The newest revision: the number of writes so far."""
    with Client(cluster.endpoints[0], 10) as client:
        return client.get()[1]


class Background:
    """Runs something beside the caller; join() hands over its result or its failure."""

    def __init__(self, work):
        self.result = self.error = None
        self.thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self.thread.start()

    def _run(self, work):
        try:
            self.result = work()
        except Exception as error:  # Raised again by join(), whatever it is.
            self.error = error

    def join(self):
        """Waits for the end."""
        self.thread.join()
        if self.error:
            raise self.error
        return self.result


# --- history -------------------------------------------------------------------------------------

def history(bench):
    """Put latency on an empty store, above much history, and while that is compacted."""
    results = {side: history_side(bench, side) for side in bench.sides()}
    columns = ["store"]
    for side in results:
        name = "Quorate" if side == "A" else "etcd"
        columns += [f"{name} op/s", f"{name} p50 ms", f"{name} p99 ms", f"{name} longest ms"]
    rows = []
    for phase in PHASES:
        row = [phase]
        for result in results.values():
            outcome = result[phase]
            row += [outcome["per_second"], outcome["p50"], outcome["p99"], outcome["longest"]]
        rows.append(row)
    options = bench.options
    took = ", ".join(f"{'Quorate' if side == 'A' else 'etcd'} {result['compaction s']:.1f} s"
                     for side, result in results.items())
    load = f"{options.rate} puts/s offered" if options.rate else "a closed loop"
    caption = bench.caption(
        f"Puts by {options.clients} clients ({load}) for {options.seconds:g} s, "
        f"{options.revisions} revisions of {options.keys} keys, values of {options.value_bytes} "
        f"bytes, one member; the compaction took {took}")
    table.publish("history", caption, table.markdown(columns, rows), {"sides": results}, options)


def history_side(bench, side):
    """The three phases on one server."""
    options = bench.options
    load = Load("put", options.clients, min(options.clients, 16), options.seconds,
                keys=options.keys, value_bytes=options.value_bytes, rate=options.rate)
    fill = Load("put", 256, 16, 1800, options.revisions, options.keys, options.value_bytes)
    with bench.cluster(side, 1, QUOTA + options.flag) as cluster:
        measure = lambda: asdict(bench.generator.run(cluster.endpoints, load))
        bench.generator.run(cluster.endpoints, replace(load, seconds=options.warmup))
        # The disk may still be busy with the files of the server before.
        time.sleep(options.rest)
        result = {"empty": measure()}
        say(f"{cluster.name}: writing {options.revisions} revisions")
        bench.generator.run(cluster.endpoints, fill)
        bench.check_time()
        time.sleep(options.rest)
        result["with history"] = measure()
        background = Background(measure)
        result["compaction s"] = cluster.compact()
        result["compacting"] = background.join()
        p99 = ", ".join(f"{result[phase]['p99']:.2f}" for phase in PHASES)
        say(f"{cluster.name}: p99 {p99} ms")
    return result


# --- idle ----------------------------------------------------------------------------------------

def idle(bench):
    """Members at rest, as they are after a start."""
    options, rows, data = bench.options, [], []
    for members in (1, 3):
        for side in bench.sides():
            with bench.cluster(side, members, options.flag) as cluster:
                time.sleep(options.rest)
                cpu = cluster.cpu_seconds()
                time.sleep(options.seconds)
                cpu = (cluster.cpu_seconds() - cpu) * 1000 / options.seconds / members
                rss = cluster.rss_mib() / members
                anonymous = cluster.rss_mib("RssAnon") / members
                rows.append([f"{cluster.name}, {members} member(s)", rss, anonymous, cpu])
                data.append(dict(zip(("server", "rss_mib", "anonymous_mib", "cpu_ms"), rows[-1])))
    columns = ["", "RSS MiB a member", "of it anonymous", "CPU ms a second, a member"]
    caption = f"Empty and idle for {options.seconds:g} s; {table.machine()}."
    table.publish("idle", caption, table.markdown(columns, rows), {"servers": data}, options)


# --- coordination --------------------------------------------------------------------------------

def coordination(bench):
    """Watches and leases; with kvload also locks and elections."""
    results = {"A": [], "B": []}
    for pair in range(bench.options.pairs):
        for side in "AB" if pair % 2 == 0 else "BA":
            bench.check_time()
            with bench.cluster(side, 1, bench.options.flag) as cluster:
                found = list(contests.contests(bench, cluster))
            say(f"{cluster.name}: " + ", ".join(f"{table.cell(line[2])} µs" for line in found))
            results[side].append(found)
    contests.publish(bench, results)


# --- command line --------------------------------------------------------------------------------

def add_common(parser):
    """Options that every mode takes."""
    parser.add_argument("--quorate", default="target/release/quorate", help="server A")
    parser.add_argument("--etcd", default="etcd", help="server B")
    parser.add_argument("--ctl", default="target/release/quoratectl", help="load generator")
    parser.add_argument("--kvload", help="use this load generator instead")
    parser.add_argument("--only", default="AB", choices=["A", "B", "AB"], help="sides to run")
    parser.add_argument("--flag", action="append", default=[], help="further flag for all servers")
    parser.add_argument("--time-limit", type=float, default=3 * 3600, help="seconds for all of it")
    parser.add_argument("--json", help="write the JSON to this file")
    parser.add_argument("--write", action="store_true", help="put the table into the README here")


def words(kind):
    """A comma-separated list of `kind`."""
    return lambda text: [kind(word) for word in text.split(",")]


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    modes = parser.add_subparsers(dest="mode", required=True)

    def mode(work, **defaults):
        sub = modes.add_parser(work.__name__, help=work.__doc__)
        add_common(sub)
        for name, default in defaults.items():
            kind = type(default)
            if kind is list:
                kind = words(type(default[0]))
            sub.add_argument("--" + name.replace("_", "-"), type=kind, default=default,
                             help=f"(default {default})")
        sub.set_defaults(work=work)

    mode(run, members=1, pairs=5, seconds=3.0, workloads=WORKLOADS, clients=CLIENTS, conns=0,
         keys=10_000, value_bytes=256, warmup=1.0, settle=1.5)
    mode(offered, members=1, pairs=5, seconds=3.0, workloads=WORKLOADS, clients=CLIENTS, conns=0,
         keys=10_000, value_bytes=256, warmup=1.0, settle=1.5, share=0.7)
    mode(restart, keys=1_000_000, value_bytes=100, rounds=3, rest=5.0)
    mode(plateau, minutes=10.0, clients=64, keys=200_000, value_bytes=256, compact_every=10.0,
         sample_seconds=60.0)
    mode(history, revisions=1_000_000, keys=10_000, value_bytes=256, clients=64, rate=2000,
         seconds=10.0, warmup=1.0, rest=5.0)
    mode(idle, seconds=10.0, rest=5.0)
    mode(coordination, pairs=3)
    return parser.parse_args()


def main():
    """Runs one mode and leaves nothing behind."""
    # Without this a SIGTERM would leave the servers running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = parse()
    for program in filter(None, [options.kvload or options.ctl,
                                 "A" in options.only and options.quorate,
                                 "B" in options.only and options.etcd]):
        if not os.path.exists(program):
            sys.exit(f"compare.py: there is no {program}; build it or name another")
    try:
        options.work(Bench(options))
    except (RuntimeError, CallFailed) as error:
        sys.exit(f"compare.py: {error}")


if __name__ == "__main__":
    main()
