"""Two daemons that host one model, on a link of a known rate where that can be made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import harness
from stream_trace import VARIABLE, Stamp, read_trace

from kvnet.cli import spawn
from kvnet.client import Node
from kvnet.paths import Home
from tests.lan.harness import Lan

GEOMETRY = "tinyllama"
MODEL_FLAGS = {"quantization": "nf4", "dtype": "float16"}
MBIT = 1000.0
PORT = 7447
_READY_S, _STOP_S, _POLL_S = 120.0, 20.0, 0.05
_TRACER = Path(__file__).resolve().parent / "stream_trace.py"


@dataclass(frozen=True, slots=True)
class Link:
    """Two machines, or what stands for them: alice's commands and bob's run `inside` their own."""

    hosts: tuple[str, str]  # addresses
    inside: tuple[tuple[str, ...], tuple[str, ...]]
    mbit: float | None  # None: loopback, as fast as it is

    @property
    def note(self) -> str:
        """In words."""
        if self.mbit is None:
            return "loopback, no limit (a link of 1 Gbit/s needs root): wire times are of 1 Gbit/s, reckoned"
        return f"two network namespaces, {self.mbit:.0f} Mbit/s by tbf"

    def wire_s(self, nbytes: int) -> float:
        """How long so many bytes take at the link's rate; at MBIT on a loopback."""
        return nbytes * 8 / ((self.mbit or MBIT) * 1e6)


LOOPBACK = Link(("127.0.0.1", "127.0.0.1"), ((), ()), None)


@contextmanager
def new_link(mbit: float = MBIT) -> Iterator[Link]:
    """Two namespaces on one switch, as root; else loopback."""
    if not _can_make_namespaces():
        yield LOOPBACK
        return
    with Lan(2) as lan:
        for node in lan.nodes:
            lan.limit_rate(node, mbit)
        left, right = (lan.address(node) for node in lan.nodes)
        inside = [("ip", "netns", "exec", node) for node in lan.nodes]
        yield Link((left, right), (inside[0], inside[1]), mbit)


def _can_make_namespaces() -> bool:
    """Root alone is not enough: containers often may not make any."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc"):
        return False
    made = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return made.returncode == 0


class Hosts:
    """Both daemons while they are up."""

    def __init__(self, alice: Node, bob: Node, traces: tuple[Path, Path]) -> None:
        self.alice = alice
        self.bob = bob
        self._traces = traces

    def stamps(self) -> list[Stamp]:
        """What both said since they were last asked."""
        found = read_trace(*(path for path in self._traces if path.exists()))
        for path in self._traces:
            if path.exists():
                os.truncate(path, 0)
        return found


@contextmanager
def two_hosts(link: Link, *, traced: bool = False, small: bool = False) -> Iterator[Hosts]:
    """Alice and bob, introduced to each other. With `traced` they say what they do when.

    They host TinyLlama's geometry in NF4, or with `small` the reference model, which is there in seconds.
    """
    large = {} if small else {"model": harness.random_checkpoint(GEOMETRY), **MODEL_FLAGS}
    flags = {"model": "ref-a", **large, "mdns": "0"}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvnet-bench-")))
        traces = folder / "alice.jsonl", folder / "bob.jsonl"
        homes = Home(folder / "alice"), Home(folder / "bob")
        for end, home in enumerate(homes):
            home.root.mkdir()
            port = PORT if link.mbit else 0
            listen = {"name": home.root.name, "listen": f"{link.hosts[end]}:{port}"}
            process = _launch(home, {**flags, **listen}, link.inside[end], traces[end] if traced else None)
            stack.callback(_end, process)
        alice, bob = (stack.enter_context(_ready(home)) for home in homes)
        a, b = alice.status(), bob.status()
        alice.add_peer(b.grpc, node_id=b.node_id, name="bob")
        bob.add_peer(a.grpc, node_id=a.node_id, name="alice")
        yield Hosts(alice, bob, traces)


def _launch(
    home: Home, flags: dict[str, str], inside: Sequence[str], trace: Path | None
) -> subprocess.Popen[bytes]:
    command = spawn.daemon_command(home, flags)
    environment = dict(os.environ)
    if trace is not None:
        command[1:3] = [str(_TRACER)]  # for `-m kvnetd.main`
        environment[VARIABLE] = str(trace)
    with (home.root / "stderr.txt").open("ab") as said:
        return subprocess.Popen(
            [*inside, *command], env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _ready(home: Home) -> Node:
    """A connection, once the daemon answers."""
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if spawn.running(home) is not None:
            return Node(home=home.root)
        time.sleep(_POLL_S)
    said = (home.root / "stderr.txt").read_text(encoding="utf-8", errors="replace")[-500:]
    raise AssertionError(f"{home.root.name} was not ready after {_READY_S:.0f} s: {said}")
