"""Real daemons as separate processes, the CLI as a caller sees it, and questions to ask them.

alice = Daemon(folder, "alice")
alice.start()
with alice.node() as node: ...
alice.kill(); alice.start()     # same home, same port
alice.stop()
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kvnetd.store.vault import Vault

from kvnet.api import Answer, MemoryInfo, NodeStatus
from kvnet.client import AsyncNode, Node
from kvnet.errors import NotRunning, StateCorrupt, TooBusy
from kvnet.model.reference.world import Question, ask, sample_context
from kvnet.paths import Home

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
READY_S = 90.0
STOP_S = 20.0
POLL_S = 0.05
LONG_TEXT_FACTS = 60  # about 500 tokens: eight chunks of some 130 kB in ref-a
SOME_CHUNKS_NBYTES = 600_000  # four whole chunks of `long_text` and a part of the fifth


class Daemon:
    """One `kvnetd` process on a home of its own. The first start picks its port, later ones keep it."""

    def __init__(self, folder: Path, name: str, *, inside: Sequence[str] = (), **flags: str) -> None:
        self.home = Home(folder)
        self.name = name
        self.inside = tuple(inside)  # a command that runs the rest, such as `ip netns exec NAME`
        self.flags = {"name": name, "model": "ref-a", "listen": "127.0.0.1:0", "mdns": "0", **flags}
        self.process: subprocess.Popen[bytes] | None = None
        self.node_id = ""
        self.grpc = ""

    def launch(self) -> None:
        """Start the process and do not wait: two can import torch at the same time."""
        pairs = [part for key, value in self.flags.items() for part in (f"--{key}", value)]
        run = [*self.inside, sys.executable, "-m", "kvnetd.main", "--home", str(self.home.root), *pairs]
        self.home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.home.root / "stderr.txt").open("ab") as said:
            self.process = subprocess.Popen(
                run, env=environment(self.home), stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )

    def wait_until_ready(self) -> NodeStatus:
        """Wait until the daemon answers; remember its id and its port."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended while starting: {self.said()}")
            try:
                with self.node() as node:
                    status = node.status()
            except NotRunning:
                time.sleep(POLL_S)
                continue
            if status.pid == self.process.pid:
                self.node_id, self.grpc = status.node_id, status.grpc
                self.flags["listen"] = status.grpc
                return status
        raise AssertionError(f"{self.name} was not ready after {READY_S} s: {self.said()}")

    def start(self) -> NodeStatus:
        """`launch` and `wait_until_ready`."""
        self.launch()
        return self.wait_until_ready()

    def stop(self) -> int:
        """SIGTERM, and the exit status; harmless when it does not run."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        self._end(signal.SIGKILL)

    def node(self, agent: str = "") -> Node:
        """A new SDK connection; use it in a `with`."""
        return Node(agent=agent, home=self.home.root)

    def async_node(self, agent: str = "") -> AsyncNode:
        """The same for `async with`."""
        return AsyncNode(agent=agent, home=self.home.root)

    def said(self) -> str:
        """The end of what the process printed."""
        path = self.home.root / "stderr.txt"
        return path.read_text(encoding="utf-8", errors="replace")[-2000:] if path.exists() else ""

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """Lines of the event log whose event starts with `name`."""
        lines = self.home.events.read_text(encoding="utf-8").splitlines()
        return [line for line in map(json.loads, lines) if line["event"].startswith(name)]

    def _end(self, with_signal: signal.Signals) -> int:
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(with_signal)
        try:
            status = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait(STOP_S)
        self.process = None
        return status


@dataclass(frozen=True, slots=True)
class Said:
    """What a command printed and how it ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.stdout)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two nodes with the same model that know each other; bob holds a memory and its question."""

    alice: Daemon
    bob: Daemon
    memory: MemoryInfo
    prompt: str
    expected: tuple[str, int, str]

    def check(self) -> None:
        """Both still answer an honest request, and right."""
        for daemon in (self.alice, self.bob):
            with daemon.node() as node:
                answer = node.ask(self.prompt, self.memory)
                assert reply(answer) == self.expected
                assert answer.kv.reused_tokens == self.memory.tokens


MakeHome = Callable[[str], Path]
MakeDaemon = Callable[..., Daemon]
Kvnet = Callable[..., Said]


def environment(home: Home, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours with KVNET_HOME set, no other KVNET_* setting, and no model hub."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("KVNET_")}
    return {**kept, "KVNET_HOME": str(home.root), "HF_HUB_OFFLINE": "1", **(extra or {})}


def cli_command(*arguments: str) -> list[str]:
    """`kvnet` with these arguments, run by this interpreter."""
    return [sys.executable, "-m", "kvnet.cli.main", *arguments]


def kvnet(home: Path, *arguments: str, stdin: str = "", timeout_s: float = 120) -> Said:
    """Run `kvnet` to its end, as a process of its own."""
    ended = subprocess.run(
        cli_command(*arguments),
        env=environment(Home(home)),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return Said(ended.returncode, ended.stdout, ended.stderr)


def introduce(one: Daemon, other: Daemon, address: str | None = None) -> None:
    """Each adds the other; `one` dials the other at `address`, if given."""
    with one.node() as node:
        node.add_peer(address or other.grpc, node_id=other.node_id, name=other.name)
    with other.node() as node:
        node.add_peer(one.grpc, node_id=one.node_id, name=one.name)


@asynccontextmanager
async def dialled_at(sender: Daemon, receiver: Daemon, port: int) -> AsyncIterator[None]:
    """Meanwhile the sender reaches the receiver through 127.0.0.1:`port` only."""
    # In a thread: the proxy at that port lives on this loop, and the sender probes what it adds.
    await asyncio.to_thread(introduce, sender, receiver, f"127.0.0.1:{port}")
    try:
        yield
    finally:
        await asyncio.to_thread(introduce, sender, receiver)


async def when_free(call: Callable[[], Awaitable[T]], timeout_s: float = 30.0) -> T:
    """`await call()`, again while the receiver has not yet noticed that the last attempt is dead."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return await call()
        except TooBusy:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


async def memory_nobody_has(sender: AsyncNode, seed: int) -> MemoryInfo:
    """The sender's new memory of `long_text(seed)`, long enough to be cut in the middle."""
    memory = await sender.remember(long_text(seed))
    assert memory.nbytes > 1.5 * SOME_CHUNKS_NBYTES
    return memory


async def chunks_arrived(receiver: Daemon, memory: MemoryInfo, timeout_s: float = 20.0) -> None:
    """Wait until the receiver's spool holds a durable chunk of this memory."""
    deadline = time.monotonic() + timeout_s
    spool, vault = receiver.home.store / "incoming", Vault(receiver.home.vault_key.read_bytes())
    while not any(_has_chunks(folder, memory, vault) for folder in spool.iterdir()):
        assert time.monotonic() < deadline, f"no chunk became durable at {receiver.name}"
        await asyncio.sleep(0.02)


def spooled(receiver: Daemon, transfer_id: str) -> list[Path]:
    """What the receiver still keeps of a transfer on its way in."""
    return list((receiver.home.store / "incoming").glob(f"*{transfer_id}*"))


def _has_chunks(transfer: Path, memory: MemoryInfo, vault: Vault) -> bool:
    log = transfer / "chunks.log"
    try:
        offer = vault.read(transfer / "offer.bin")
        return log.stat().st_size > 0 and memory.header.content_digest.encode() in offer
    except (FileNotFoundError, StateCorrupt):  # half made
        return False


def questions(count: int, *, seed: int = 7) -> list[tuple[str, Question]]:
    """(text, question about it) with names and values that no reference model was trained on."""
    rng = random.Random(seed)
    found: list[tuple[str, Question]] = []
    while len(found) < count:
        context = sample_context(rng, 8, "heldout")
        found += [(context.text, ask(fact, "question", rng)) for fact in rng.sample(context.facts, 5)]
    return found[:count]


def long_text(seed: int) -> str:
    """A text of some 500 tokens; another one for every seed."""
    return sample_context(random.Random(seed), LONG_TEXT_FACTS, "train").text


def reply(answer: Answer) -> tuple[str, int, str]:
    """What of an answer must be the same wherever it is computed."""
    return answer.text, answer.tokens, answer.finish_reason
