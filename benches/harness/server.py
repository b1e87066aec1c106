"""Servers under test: started on free loopback ports in scratch directories, ended by pid."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from .grpc import CallFailed, Client

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Cluster:
    """One, three or more members of one program; a context that removes all it made."""

    def __init__(self, name, binary, members=1, flags=()):
        self.name, self.binary, self.flags = name, os.path.abspath(binary), list(flags)
        self.directory = tempfile.mkdtemp(prefix=f"compare-{name}-")
        ports = free_ports(2 * members)
        self.clients, self.peers = ports[:members], ports[members:]
        self.processes = [None] * members

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def endpoints(self):
        """host:port of every member."""
        return [f"127.0.0.1:{port}" for port in self.clients]

    @property
    def pids(self):
        """Processes that were started."""
        return [process.pid for process in self.processes if process]

    def start(self, wait=True):
        """Starts all members; with `wait` returns once each answers a linearizable read."""
        names = [f"m{number + 1}" for number in range(len(self.clients))]
        peers = [f"http://127.0.0.1:{port}" for port in self.peers]
        initial = ",".join(f"{name}={peer}" for name, peer in zip(names, peers))
        # Variables of the caller would configure both servers behind our back.
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("ETCD_", "QUORATE_"))}
        for number, name in enumerate(names):
            client = f"http://127.0.0.1:{self.clients[number]}"
            log = open(os.path.join(self.directory, f"{name}.log"), "ab")
            command = [
                self.binary, "--name", name, "--data-dir", os.path.join(self.directory, name),
                "--listen-client-urls", client, "--advertise-client-urls", client,
                "--listen-peer-urls", peers[number],
                "--initial-advertise-peer-urls", peers[number],
                "--initial-cluster", initial, *self.flags,
            ]
            with log:
                self.processes[number] = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=clean)
        if wait:
            for endpoint in self.endpoints:
                self.await_read(endpoint)

    def await_read(self, endpoint=None, seconds=60.0):
        """Waits for the first linearizable read that succeeds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                with Client(endpoint or self.endpoints[0], 1.0) as client:
                    return client.get()
            except CallFailed:
                time.sleep(0.002)
            if any(process and process.poll() is not None for process in self.processes):
                break
        raise RuntimeError(f"{self.name} does not answer; its log ends with:\n{self.log_end()}")

    def log_end(self):
        """The last lines of the first member's log."""
        with open(os.path.join(self.directory, "m1.log"), encoding="utf-8") as log:
            return "".join(log.readlines()[-5:])

    def stop(self, kill=False):
        """Ends the members: asks first, unless `kill`."""
        for process in filter(None, self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        deadline = time.monotonic() + 15
        for number, process in enumerate(self.processes):
            if process is None:
                continue
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self.processes[number] = None

    def cpu_seconds(self):
        """User and system time of all members so far."""
        return sum(_cpu_ticks(pid) for pid in self.pids) / TICKS_PER_SECOND

    def rss_mib(self, kind="VmRSS"):
        """Resident memory of all members; `kind` is a line of /proc/PID/status."""
        return sum(_status_kib(pid, kind) for pid in self.pids) / 1024

    def disk_mib(self):
        """Allocated blocks of all files below the data directories, logs of text left out."""
        total = 0
        for folder, _, files in os.walk(self.directory):
            if folder == self.directory:
                continue
            for file in files:
                try:
                    total += os.lstat(os.path.join(folder, file)).st_blocks * 512
                except FileNotFoundError:
                    pass  # Removed while we looked.
        return total / (1 << 20)

    def compact(self, physical=True):
        """Compacts at the newest revision; returns the seconds it took."""
        with Client(self.endpoints[0], 10.0) as client:
            _, revision = client.get()
            began = time.monotonic()
            client.compact(revision, physical)
            return time.monotonic() - began


def _cpu_ticks(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
        # The name in parentheses may hold spaces; utime and stime are fields 14 and 15.
        fields = stat.read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def _status_kib(pid, kind):
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        for line in status:
            if line.startswith(kind + ":"):
                return int(line.split()[1])
    return 0


def steal_and_total_ticks():
    """What the hypervisor withheld from this machine so far, and all time there was."""
    with open("/proc/stat", encoding="utf-8") as stat:
        ticks = [int(number) for number in stat.readline().split()[1:9]]
    return ticks[7], sum(ticks)


def free_ports(count):
    """Ports that nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
