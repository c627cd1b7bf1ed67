"""An attacker on the LAN: between two nodes, in their names, with what they once said, and as a stranger."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kvnet.api import MemoryInfo
from kvnet.errors import PeerError, PeerNotAdded
from kvnet.identity.certificates import issue_leaf
from kvnet.identity.keys import NodeKey, short_id
from tests.identity.leaves import forged_leaf
from tests.lan.harness import Output, require_nft, stop
from tests.lan.nodes import LanDaemon, found
from tests.lan.outcomes import delivered_once
from tests.lan.scene import SEEDS, Scene

pytestmark = [pytest.mark.lan, pytest.mark.timeout(180)]

_MALLORY = str(Path(__file__).with_name("mallory.py"))
_MALLORYS_KEY = NodeKey(b"mallory".ljust(32))
_CANARY = "Zephyrine"
NUM_ADVERTS, FLOOD_S = 10_000, 15.0  # four times as fast as 10,000 a minute
MAX_GROWTH_NBYTES = 20 << 20


@dataclass(frozen=True, slots=True)
class Mallory:
    """The attacker's program at the third node, and what it said."""

    output: Output

    def said(self, key: str) -> list[dict[str, Any]]:
        """Lines that have this field."""
        return [line for line in map(json.loads, self.output.lines) if key in line]


@contextmanager
def _mallory(scene: Scene, *arguments: str) -> Iterator[Mallory]:
    """Runs within the block; ready where it serves."""
    process = scene.lan.popen(scene.lan.nodes[2], [sys.executable, _MALLORY, *arguments])
    mallory = Mallory(Output(process))
    try:
        mallory.output.wait_for(lambda line: True, 30)
        yield mallory
    finally:
        stop(process)


@contextmanager
def _diverted(scene: Scene, mallory: Mallory) -> Iterator[None]:
    """Meanwhile whatever alice sends to bob's address and port goes to the attacker's. Skips without nft."""
    require_nft()
    (serving,) = mallory.said("port")
    there = f"{scene.lan.address(scene.lan.nodes[2])}:{serving['port']}"
    rule = f"ip daddr {scene.lan.address(scene.bob.lan_node)} tcp dport {scene.bob.port} dnat to {there}"
    for command in (
        "add table ip kvdivert",
        "add chain ip kvdivert out { type nat hook output priority -100 ; }",
        f"add rule ip kvdivert out {rule}",
    ):
        done = scene.lan.run(scene.alice.lan_node, ["nft", command])
        assert done.returncode == 0, done.stderr
    try:
        yield
    finally:
        scene.lan.run(scene.alice.lan_node, ["nft", "delete table ip kvdivert"])


# --- in the middle --------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaf", ["her own", "in bob's name"])
async def test_relay_with_its_own_certificates_sees_no_byte(scene: Scene, leaf: str) -> None:
    bob = NodeKey.load_or_create(scene.bob.home.identity)
    shown = issue_leaf(_MALLORYS_KEY) if leaf == "her own" else forged_leaf(_MALLORYS_KEY, says=bob)
    file = scene.folder / "mallory.pem"
    file.write_bytes(shown.chain_pem + shown.key_pem)
    own_address = scene.lan.address(scene.lan.nodes[2])
    memory = await scene.memory()
    async with scene.alice.async_node() as alice:
        await found(alice, "bob")
        with (
            _mallory(scene, "impersonate", scene.bob.address, own_address, str(file)) as mallory,
            _diverted(scene, mallory),
        ):
            for _ in range(3):
                with pytest.raises(PeerError):
                    await alice.send(memory, "bob", codec="exact", if_off="fail")
            with pytest.raises(PeerError):
                await alice.pull(memory.id, "bob")
            (info,) = [peer for peer in await alice.peers(probe=True) if peer.name == "bob"]
            assert not info.reachable
            handshakes = mallory.said("handshake")
        # Those that came about are looks at who is there, by nobody: no certificate was shown, no byte sent.
        assert len([line for line in handshakes if not line["handshake"]]) >= 5
        assert sum(line["nbytes"] for line in handshakes) == 0
        await alice.send(memory, "bob", codec="exact", if_off="fail")
    await delivered_once(scene.alice, scene.bob, memory)


@dataclass(frozen=True, slots=True)
class Tapped:
    """A handover that went through the attacker's hands, and what she kept of it."""

    memory: MemoryInfo
    folder: Path

    def kept(self) -> dict[str, bytes]:
        """File name -> bytes; `*.up` went to bob."""
        return {path.name: path.read_bytes() for path in sorted(self.folder.iterdir())}


@pytest.fixture(scope="session")
def tapped(scene: Scene) -> Tapped:
    """A memory with its text, a note and agents' names, all with the canary in them, sent through a relay."""
    folder = scene.folder / "tap"
    folder.mkdir()
    at = (scene.bob.address, scene.lan.address(scene.lan.nodes[2]))
    with scene.alice.node(f"{_CANARY}-agent") as alice:
        memory = alice.remember(f"{_CANARY}'s dog is called {_CANARY}.", keep_text=True)
        with _mallory(scene, "relay", *at, str(folder)) as mallory, _diverted(scene, mallory):
            options = {"note": f"{_CANARY}'s dog", "codec": "exact", "with_text": True, "if_off": "fail"}
            alice.send(memory, f"bob/{_CANARY}", **options)
            mallory.output.wait_for(lambda line: json.loads(line).get("up", 0) > memory.stored_nbytes, 10)
    return Tapped(memory, folder)


async def test_who_listens_in_between_gets_no_plaintext(scene: Scene, tapped: Tapped, tmp_path: Path) -> None:
    await delivered_once(scene.alice, scene.bob, tapped.memory)
    file = tmp_path / "memory.awkg"
    async with scene.alice.async_node() as alice:
        await alice.export_memory(tapped.memory, file)
    exported = file.read_bytes()
    digest = bytes.fromhex(tapped.memory.header.content_digest.removeprefix("sha256:"))
    secrets = {
        "the canary": _CANARY.encode(),
        "the memory's id": tapped.memory.id.encode(),
        "its digest": digest,
        "its digest in hex": digest.hex().encode(),
        **{f"its file at {at}": exported[at : at + 32] for at in range(4096, len(exported) - 32, 4096)},
    }
    kept = b"".join(tapped.kept().values())
    assert len(kept) > tapped.memory.stored_nbytes
    assert len(secrets) > 10
    assert [what for what, secret in secrets.items() if secret in kept] == []


@pytest.fixture(scope="session")
def carol(scene: Scene) -> Iterator[LanDaemon]:
    """A peer of alice's whom bob does not know."""
    daemon = LanDaemon(scene.lan, scene.lan.nodes[3], scene.folder / "carol")
    try:
        daemon.start()
        with scene.alice.node() as alice, daemon.node() as node:
            node.add_peer(node_id=scene.alice.node_id, name="alice")
            node.add_peer(node_id=scene.bob.node_id, name="bob")
            alice.add_peer(node_id=daemon.node_id, name="carol")
        yield daemon
    finally:
        daemon.stop()


def _got(daemon: LanDaemon) -> tuple[object, ...]:
    """All that a transfer could have changed."""
    with daemon.node() as node:
        inbox = [message.id for message in node.inbox(every_agent=True)]
        memories = [memory.id for memory in node.memories(all=True)]
    return inbox, memories, daemon.events("transfer")


@pytest.mark.parametrize("at", ["the same peer", "another peer", "the same peer after a restart"])
async def test_what_was_recorded_is_not_taken_again(
    scene: Scene, tapped: Tapped, carol: LanDaemon, at: str
) -> None:
    target = carol if at == "another peer" else scene.bob
    if at.endswith("restart"):
        target.stop()
        target.launch(*scene.clock.wrapper)
        await asyncio.to_thread(target.wait_until_ready)
    before = _got(target)
    recorded = [path for path in sorted(tapped.folder.glob("*.up")) if path.stat().st_size]
    assert sum(path.stat().st_size for path in recorded) > tapped.memory.stored_nbytes
    for path in recorded:
        with _mallory(scene, "replay", target.address, str(path)) as mallory:
            (answer,) = mallory.said("answered")
            # A server's half of a handshake, and then at most the alert that ends it.
            assert 0 < answer["answered"] < 8192
            assert answer["more"] < 64
    assert _got(target) == before


# --- in others' names -----------------------------------------------------------------------------------


def _rss_nbytes(daemon: LanDaemon) -> int:
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text(encoding="ascii")
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


@asynccontextmanager
async def _flood(scene: Scene, port: int) -> AsyncIterator[Mallory]:
    """Within the block the LAN is flooded with adverts; it ends when they end."""
    own_address = scene.lan.address(scene.lan.nodes[2])
    arguments = (own_address, str(NUM_ADVERTS), str(FLOOD_S), short_id(scene.bob.node_id), str(port))
    process = scene.lan.popen(scene.lan.nodes[2], [sys.executable, _MALLORY, "advertise", *arguments])
    flood = Mallory(Output(process))
    try:
        yield flood
        await asyncio.to_thread(flood.output.wait_for, lambda line: "sent" in line, 60)
    finally:
        stop(process)


async def test_flood_of_adverts_hides_nobody_and_takes_no_memory(scene: Scene) -> None:
    """Some claim bob's id; in its midst bob comes back at another port, and is found there."""
    shown, file = issue_leaf(_MALLORYS_KEY), scene.folder / "mallory.pem"
    file.write_bytes(shown.chain_pem + shown.key_pem)
    own_address = scene.lan.address(scene.lan.nodes[2])
    memory = await scene.memory()
    before_nbytes = _rss_nbytes(scene.alice)
    with _mallory(scene, "impersonate", scene.bob.address, own_address, str(file)) as mallory:
        (serving,) = mallory.said("port")
        async with _flood(scene, serving["port"]), scene.alice.async_node() as alice:
            await found(alice, "bob", f"{own_address}:{serving['port']}")
            scene.bob.stop()
            scene.bob.flags["listen"] = "0.0.0.0:0"
            scene.bob.launch(*scene.clock.wrapper)
            await asyncio.to_thread(scene.bob.wait_until_ready)
            ready_at = time.monotonic()
            await alice.send(memory, "bob", codec="exact", if_off="wait")
            await delivered_once(scene.alice, scene.bob, memory, healed_at=ready_at)
            assert len(await alice.peers()) > 500  # the table is full of strangers
        assert sum(line["nbytes"] for line in mallory.said("handshake")) == 0
    assert _rss_nbytes(scene.alice) - before_nbytes < MAX_GROWTH_NBYTES


# --- as a stranger --------------------------------------------------------------------------------------


async def test_node_that_is_not_paired_gets_nothing(scene: Scene, carol: LanDaemon) -> None:
    before = _got(scene.bob)
    async with scene.alice.async_node() as alice, carol.async_node() as node:
        wanted = await alice.remember(f"Petra's drink is tea number {next(SEEDS)}.")
        await alice.send(wanted, "bob", codec="exact")
        before = _got(scene.bob)
        own = await node.remember("Omar's city is Lisbon.")
        await found(node, "bob")
        with pytest.raises(PeerNotAdded):
            await node.send(own, "bob", codec="exact", if_off="fail")
        with pytest.raises(PeerNotAdded):
            await node.pull(wanted.id, "bob")
        (info,) = [peer for peer in await node.peers(probe=True) if peer.name == "bob"]
        assert (info.reachable, info.model) == (False, "")
    with _mallory(scene, "poke", scene.bob.address) as mallory:
        with contextlib.suppress(AssertionError):
            mallory.output.wait_for(lambda line: '"tls": false' in line, 10)
        answers = {line["tls"]: line["answer"] for line in mallory.said("tls")}
    assert answers == {True: "", False: ""}
    assert _got(scene.bob) == before
