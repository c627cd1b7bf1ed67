"""Memory stores, spools and whole nodes, and chunks as a sender signs them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kvnetd.services import Services
from kvnetd.store.bases import BasisStore
from kvnetd.store.memories import MemoryStore
from kvnetd.store.spool import Spool
from kvnetd.transfers import Transfers

from kvnet.identity.peers import AddedPeer
from tests.builders import RECEIVER, SENDER, make_memory
from tests.kvnetd.arrival import Arrival
from tests.kvnetd.nodes import Node, add, listening, services_of

ALICE = AddedPeer(SENDER.node_id, "alice", "", "")


@pytest.fixture
def arrival() -> Arrival:
    return Arrival(make_memory())


@pytest.fixture
def bases(tmp_path: Path) -> BasisStore:
    return BasisStore(tmp_path / "bases")


@pytest.fixture
def spool(tmp_path: Path, bases: BasisStore) -> Spool:
    return Spool(tmp_path / "incoming", bases)


@pytest.fixture
def memories(tmp_path: Path) -> MemoryStore:
    return MemoryStore(tmp_path / "memories")


@pytest.fixture
async def services(tmp_path: Path) -> AsyncIterator[Services]:
    """RECEIVER's node, which has added Alice."""
    async with services_of(tmp_path, RECEIVER, ALICE) as found:
        yield found


@pytest.fixture
def transfers(services: Services) -> Transfers:
    return Transfers(services)


@pytest.fixture
async def alice(tmp_path: Path) -> AsyncIterator[Node]:
    """SENDER's node, listening."""
    async with services_of(tmp_path / "alice", SENDER, name="alice") as services, listening(services) as node:
        yield node


@pytest.fixture
async def bob(tmp_path: Path, alice: Node) -> AsyncIterator[Node]:
    """RECEIVER's node, listening; he and Alice have added each other."""
    async with services_of(tmp_path / "bob", RECEIVER, name="bob") as services, listening(services) as node:
        add(alice, node)
        add(node, alice)
        yield node
