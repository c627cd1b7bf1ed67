"""A node without a model keeps memories and passes them on; what needs a model it refuses in one sentence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from kvnetd.config import load_config
from kvnetd.no_model import NONE, no_host
from kvnetd.services import Services

from kvnet.compat import NO_MODEL, Side, decide_tier, reach, require_tier
from kvnet.errors import NoModelHosted, RequestError
from kvnet.identity.keys import NodeKey
from kvnet.types import Tier
from tests.builders import RECEIVER, SENDER, make_fingerprint, make_geometry
from tests.e2e.daemons import Daemon
from tests.kvnetd.exchange import pull_memory, send_memory
from tests.kvnetd.nodes import MEMORY, Node, add, inbox, listening, services_of

MAX_RESIDENT_NBYTES = 80 << 20


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[tuple[Node, Node, Node]]:
    """Alice and Carol host models, Bob between them does not; each knows its neighbours."""
    async with AsyncExitStack() as stack:
        found = []
        for name, key in (("alice", SENDER), ("bob", RECEIVER), ("carol", NodeKey.generate())):
            services = await stack.enter_async_context(services_of(tmp_path / name, key, name=name))
            if name == "bob":
                services = without_model(services)
            found.append(await stack.enter_async_context(listening(services)))
        alice, bob, carol = found
        for one, other in ((alice, bob), (bob, alice), (bob, carol), (carol, bob)):
            add(one, other)
        yield alice, bob, carol


def without_model(services: Services) -> Services:
    config = load_config(services.config.home, {"model": NONE, "name": services.config.name}, {})
    return replace(services, config=config, host=no_host())


async def test_memory_is_kept_by_a_node_without_a_model_and_passed_on_as_it_is(
    nodes: tuple[Node, Node, Node],
) -> None:
    alice, bob, carol = nodes
    alice.remember()
    report = await send_memory(alice)
    assert report.tier == Tier.KEPT
    assert [message.memory for message in inbox(bob.services)] == [MEMORY.header.id]
    passed_on = await send_memory(bob, to="carol", codec="")
    assert (passed_on.tier, passed_on.memory) == (Tier.EXACT, MEMORY.header.id)
    kept = carol.services.memories
    assert kept.load(kept.find(MEMORY.header.id)) == MEMORY


async def test_memory_is_pulled_from_a_node_without_a_model(nodes: tuple[Node, Node, Node]) -> None:
    alice, _, carol = nodes
    alice.remember()
    await send_memory(alice)
    assert (await pull_memory(carol, "bob")).memory == MEMORY.header.id


async def test_hello_of_a_node_without_a_model_says_so(nodes: tuple[Node, Node, Node]) -> None:
    assert nodes[1].transfers.hello(b"n" * 16).fingerprint == NO_MODEL


async def test_coding_that_only_a_model_can_make_is_refused(nodes: tuple[Node, Node, Node]) -> None:
    alice, bob, _ = nodes
    alice.remember()
    await send_memory(alice)
    with pytest.raises(NoModelHosted):
        await send_memory(bob, to="carol", codec="int8")


def test_every_tier_towards_no_model_is_kept_and_none_is_refused() -> None:
    nowhere: Side = (NO_MODEL, make_geometry())
    source: Side = (make_fingerprint(), make_geometry())
    for has_map in (True, False):
        for in_coordinates in (True, False):
            tier = decide_tier(source, nowhere, has_map=has_map, in_coordinates=in_coordinates)
            assert tier is Tier.KEPT
            assert require_tier(source, nowhere, has_map=has_map, in_coordinates=in_coordinates) is tier
    assert reach(Tier.KEPT, has_text=True) is Tier.KEPT


def test_daemon_imports_nothing_that_computes_before_a_model_is_wanted() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import sys, kvnetd.app; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert not {"torch", "transformers", "numpy", "safetensors"} & set(found.stdout.split())


def test_daemon_without_a_model_refuses_what_needs_one_and_stays_small(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "bob", model=NONE)
    status = daemon.start()
    with daemon.node() as client:
        assert (status.model, status.fingerprint) == (NONE, NO_MODEL)
        for ask in (
            lambda: client.remember("a text"),
            lambda: client.ask("a question"),
            lambda: client.make_port(),
            lambda: client.calibrate("a text"),
        ):
            with pytest.raises(RequestError, match="hosts no model") as refused:
                ask()
            assert refused.value.code == "no_model"
        assert client.memories() == []
        assert resident_nbytes(status.pid) < MAX_RESIDENT_NBYTES
    daemon.stop()


def resident_nbytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024
