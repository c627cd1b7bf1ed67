"""A LAN in a box: network namespaces on one switch, with faults. Linux, root and iproute2 only.

Every node is a namespace whose `eth0` is a veth to a bridge that sits in a namespace of its own,
so nothing touches the machine's own network and runs in parallel do not meet.

    with Lan(2) as lan:
        left, right = lan.nodes
        lan.run(left, ["ping", "-c1", lan.address(right)])
        lan.unplug(right)
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_COMMAND_TIMEOUT_S = 20.0
INTERFACE = "eth0"


def require_lan() -> None:
    """Skip the running test where a LAN in a box cannot be built, and say what would run it."""
    if shutil.which("ip") is None:
        pytest.skip("no `ip` here; install iproute2 and run as root")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root; run pytest -m lan as root")
    probe = f"kvlan-probe-{secrets.token_hex(4)}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no network namespaces here ({made.stderr.strip()}); run in a privileged container")
    _ip("netns", "del", probe)


def require_nft() -> None:
    """Skip the running test where packets cannot be dropped at random."""
    if shutil.which("nft") is None:
        pytest.skip("no `nft` here; install nftables")


class Lan:
    """`size` nodes on one switch, at 10.77.<n>.1, .2, ...; a context manager that leaves nothing behind."""

    def __init__(self, size: int = 2) -> None:
        tag = secrets.token_hex(4)
        self._subnet = f"10.77.{secrets.randbelow(254) + 1}"
        self._switch = f"kvlan-{tag}-sw"
        self.nodes = tuple(f"kvlan-{tag}-{index + 1}" for index in range(size))
        self._addresses = {node: f"{self._subnet}.{index + 1}" for index, node in enumerate(self.nodes)}
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def address(self, node: str) -> str:
        """IPv4 address of a node."""
        return self._addresses[node]

    def run(
        self,
        node: str,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        timeout_s: float = _COMMAND_TIMEOUT_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside a node to its end; `env` is added to ours. Does not check its status."""
        return subprocess.run(
            self._argv(node, argv),
            env=_environment(env),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def popen(
        self,
        node: str,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        stdout: int | IO[str] | None = subprocess.PIPE,
        stderr: int | IO[str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a command inside a node; `close` kills it if it still runs. Its pid is the command's own.

        Read a piped stdout all the time (see `Output`), or give a file: a full pipe stops the command.
        """
        process = subprocess.Popen(
            self._argv(node, argv), env=_environment(env), stdout=stdout, stderr=stderr, text=True
        )
        self._processes.append(process)
        return process

    def link_down(self, node: str) -> None:
        """The node switches its own interface off: it sees it go."""
        _ip("-n", node, "link", "set", INTERFACE, "down")

    def link_up(self, node: str) -> None:
        """Inverse of `link_down`."""
        _ip("-n", node, "link", "set", INTERFACE, "up")

    def unplug(self, node: str) -> None:
        """Pull the cable at the switch: the node keeps its address and loses the carrier."""
        _ip("-n", self._switch, "link", "set", self._port(node), "down")

    def plug(self, node: str) -> None:
        """Inverse of `unplug`."""
        _ip("-n", self._switch, "link", "set", self._port(node), "up")

    def isolate(self, node: str) -> None:
        """Partition a node without a sign on either side: its port stays up and forwards nothing."""
        _ip("-n", self._switch, "link", "set", self._port(node), "nomaster")

    def rejoin(self, node: str) -> None:
        """Inverse of `isolate`."""
        _ip("-n", self._switch, "link", "set", self._port(node), "master", "br0")

    def lose_route(self, node: str, other: str) -> None:
        """The node is told at once that it cannot reach the other: nothing is sent, nobody is waited for."""
        _ip("-n", node, "route", "add", "unreachable", f"{self._addresses[other]}/32")

    def find_route(self, node: str, other: str) -> None:
        """Inverse of `lose_route`."""
        _ip("-n", node, "route", "del", "unreachable", f"{self._addresses[other]}/32")

    def change_address(self, node: str, host: int) -> str:
        """Give the node 10.77.<n>.<host> instead of its address; returns the new one."""
        old, new = self._addresses[node], f"{self._subnet}.{host}"
        # In this order: deleting the first address of a subnet takes the others with it.
        _ip("-n", node, "addr", "del", f"{old}/24", "dev", INTERFACE)
        _ip("-n", node, "addr", "add", f"{new}/24", "dev", INTERFACE)
        self._addresses[node] = new
        return new

    def limit_rate(self, node: str, mbit: float, *, queue_ms: int = 200) -> None:
        """Limit what the node sends and receives, each, to `mbit` Mbit/s (tbf)."""
        # A bucket of 10 ms, but never smaller than a few full packets, offloaded ones included.
        burst_nbytes = max(int(mbit * 1e6 / 8 * 0.01), 128 * 1024)
        for namespace, device in ((node, INTERFACE), (self._switch, self._port(node))):
            qdisc = ["tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", "tbf"]
            rate = ["rate", f"{mbit}mbit", "burst", f"{burst_nbytes}b", "latency", f"{queue_ms}ms"]
            _check([*qdisc, *rate])

    def unlimit_rate(self, node: str) -> None:
        """Inverse of `limit_rate`."""
        for namespace, device in ((node, INTERFACE), (self._switch, self._port(node))):
            _check(["tc", "-n", namespace, "qdisc", "del", "dev", device, "root"])

    def drop_packets(self, node: str, ratio: float) -> None:
        """Drop this share of what the node receives and of what it sends, at random. Skips without nft."""
        require_nft()
        self.keep_packets(node)
        rule = f"oifname != lo numgen random mod 10000 < {round(ratio * 10000)} drop"
        rules = (
            "table ip kvlan {\n"
            "chain in { type filter hook input priority 0; " + rule.replace("oifname", "iifname") + "; }\n"
            "chain out { type filter hook output priority 0; " + rule + "; }\n"
            "}\n"
        )
        _check(self._argv(node, ["nft", "-f", "-"]), stdin=rules)

    def keep_packets(self, node: str) -> None:
        """Inverse of `drop_packets`; harmless without it."""
        self.run(node, ["nft", "delete", "table", "ip", "kvlan"])

    def has_multicast_route(self, node: str) -> bool:
        """Whether the node can send to the mDNS group from its interface."""
        found = self.run(node, ["ip", "route", "get", "224.0.0.251", "oif", INTERFACE])
        return found.returncode == 0 and found.stdout.startswith("multicast")

    def close(self) -> None:
        """Kill what was started inside and remove the namespaces; never raises for what is gone."""
        for process in self._processes:
            stop(process, signal.SIGKILL)
        for node in (*self.nodes, self._switch):
            # What the commands themselves started and left behind.
            pids = subprocess.run(["ip", "netns", "pids", node], capture_output=True, text=True, check=False)
            for pid in pids.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", node], capture_output=True, check=False)
        for process in self._processes:
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()

    def _build(self) -> None:
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        _ip("-n", self._switch, "link", "set", "br0", "up")
        for node in self.nodes:
            port = self._port(node)
            _ip("netns", "add", node)
            veth = ["link", "add", INTERFACE, "type", "veth", "peer", "name", port, "netns", self._switch]
            _ip("-n", node, *veth)
            _ip("-n", node, "addr", "add", f"{self._addresses[node]}/24", "dev", INTERFACE)
            _ip("-n", node, "link", "set", "lo", "up")
            _ip("-n", node, "link", "set", INTERFACE, "up")
            _ip("-n", self._switch, "link", "set", port, "master", "br0", "up")

    def _port(self, node: str) -> str:
        return f"port{self.nodes.index(node) + 1}"

    def _argv(self, node: str, argv: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", node, *argv]


class Output:
    """Reads a process's stdout in the background and waits for lines of it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        if process.stdout is None:
            raise ValueError("the process has no stdout pipe")
        self.lines: list[str] = []
        self._stdout = process.stdout
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, matches: Callable[[str], bool], timeout_s: float, *, after: int = 0) -> int:
        """Wait for a line that matches, from line `after` on; returns the number of the line after it.

        Raises AssertionError, with everything that was read, when the time is over.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                for index in range(after, len(self.lines)):
                    if matches(self.lines[index]):
                        return index + 1
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise AssertionError(f"no such line in {timeout_s} s; read: {self.lines}")
                self._changed.wait(left_s)

    def _read(self) -> None:
        with contextlib.suppress(ValueError):  # the pipe was closed under us: the LAN is being removed
            for line in self._stdout:
                with self._changed:
                    self.lines.append(line.rstrip("\n"))
                    self._changed.notify_all()


def stop(process: subprocess.Popen[str], with_signal: signal.Signals = signal.SIGTERM) -> int:
    """Signal a process and wait for its end, killing it after 10 s; returns its status."""
    if process.poll() is None:
        process.send_signal(with_signal)
    try:
        return process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait(timeout=10)


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    path = os.pathsep.join((str(_ROOT), str(_ROOT / "daemon"), os.environ.get("PYTHONPATH", "")))
    return {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), **(extra or {})}


def _ip(*arguments: str) -> None:
    _check(["ip", *arguments])


def _check(argv: Sequence[str], *, stdin: str | None = None) -> None:
    done = subprocess.run(
        argv, input=stdin, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")
