"""Two nodes on one machine: Bob listens on a loopback port, Alice knows where."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest

from kvnet.transport.server import PeerServer
from tests.builders import (
    RECEIVER,
    SENDER,
)
from tests.gates import gate_of
from tests.transport.backend import MemoryNode, Pair


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as found:
        yield found


@pytest.fixture
async def pair(pool: Executor) -> AsyncIterator[Pair]:
    bob = MemoryNode(RECEIVER, pool)
    server = PeerServer(bob, gate_of(RECEIVER, SENDER))
    port = await server.start(host="127.0.0.1", port=0)
    yield Pair(MemoryNode(SENDER, pool), bob, f"127.0.0.1:{port}")
    await server.stop(0)
