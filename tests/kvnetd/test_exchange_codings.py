"""Two nodes over loopback and memories in other codings: one file on both sides, the basis once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from kvnetd.outgoing import OutboundTransfer
from kvnetd.parties import this_receiver
from kvnetd.services import Services

from kvnet.errors import (
    IncompatibleModel,
    PeerUnreachable,
)
from kvnet.plan import ChunkKey
from kvnet.transfer.admission import Receiver
from kvnet.transfer.sender import Part
from kvnet.types import Compression, Kind, RawMemory
from tests.builders import INT8, make_basis, make_memory
from tests.kvnetd.exchange import failure_at, pull_memory, send_memory
from tests.kvnetd.nodes import MEMORY, Node, events, widen


def exported(node: Node, memory: RawMemory) -> bytes:
    """The memory's file as this node would write it."""
    memories = node.services.memories
    return b"".join(memories.export(memories.get(memory.header.id)))


@pytest.mark.parametrize("wanted", Compression)
async def test_both_sides_export_the_same_file(alice: Node, bob: Node, wanted: Compression) -> None:
    memory = make_memory(coding=INT8, attention_heads=4)
    alice.remember(memory, wanted)
    report = await send_memory(alice, memory=memory.header.id, codec="")
    assert (report.memory, report.chunks) == (memory.header.id, 9)
    assert exported(bob, memory) == exported(alice, memory)


async def test_memory_of_another_node_is_passed_on_under_its_makers_seal(alice: Node, bob: Node) -> None:
    alice.remember()
    await send_memory(alice)
    alice.services.memories.forget(MEMORY.header.id)
    await pull_memory(alice, "bob")
    record = alice.services.memories.get(MEMORY.header.id)
    assert (record.origin, record.head.signed_by) == (bob.services.key.node_id, alice.services.key.node_id)
    assert exported(alice, MEMORY) == exported(bob, MEMORY)


async def test_basis_goes_with_the_first_compact_memory_and_not_with_the_next(alice: Node, bob: Node) -> None:
    coding, basis = make_basis((1 << 20) + 5)
    widen(alice, bob)
    first, second = (make_memory(seed, coding=coding, num_kv_heads=64) for seed in (1, 2))
    alice.services.bases.put(basis)
    for memory in (first, second):
        alice.remember(memory)
    sent = await send_memory(alice, memory=first.header.id, codec="")
    assert (sent.chunks, sent.resumed_chunks, sent.wire_bytes > len(basis)) == (8, 0, True)
    assert bob.services.bases.get(coding.basis) == basis
    sent = await send_memory(alice, memory=second.header.id, codec="")
    assert (sent.chunks, sent.resumed_chunks, sent.wire_bytes < len(basis)) == (8, 2, True)
    for memory in (first, second):
        assert bob.services.memories.load(bob.services.memories.get(memory.header.id)) == memory
        assert exported(bob, memory) == exported(alice, memory)


async def test_compact_message_that_broke_off_in_its_basis_is_resumed(
    alice: Node, bob: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    coding, basis = make_basis((1 << 20) + 5)
    widen(alice, bob)
    memory = make_memory(coding=coding, num_kv_heads=64)
    alice.services.bases.put(basis)
    alice.remember(memory)
    parts = OutboundTransfer.parts

    async def cut(outbound: OutboundTransfer, missing: Sequence[ChunkKey]) -> AsyncGenerator[Part, None]:
        async with aclosing(parts(outbound, missing)) as given:
            async for chunk, wire in given:
                if chunk.key.kind is Kind.BASIS and chunk.key.start:
                    async with asyncio.timeout(10):
                        while not outbound.session.acked_count:  # noqa: ASYNC110  # for something to resume
                            await asyncio.sleep(0.01)
                    raise PeerUnreachable("the link broke")
                yield chunk, wire

    with monkeypatch.context() as patched:
        patched.setattr(OutboundTransfer, "parts", cut)
        async with failure_at(bob):
            with pytest.raises(PeerUnreachable):
                await send_memory(alice, memory=memory.header.id, codec="")
    assert bob.services.bases.get(coding.basis) is None
    sent = await send_memory(alice, memory=memory.header.id, codec="")
    assert 0 < sent.resumed_chunks <= 7
    assert bob.services.bases.get(coding.basis) == basis


@pytest.mark.parametrize(
    ("limits", "missing"),
    [({"schemes": ("raw",)}, "int8"), ({"compressions": ("none", "zstd")}, "lz4")],
)
async def test_memory_that_the_peer_does_not_decode_is_not_sent(
    alice: Node, bob: Node, monkeypatch: pytest.MonkeyPatch, limits: dict[str, Any], missing: str
) -> None:
    memory = make_memory(coding=INT8)
    alice.remember(memory)

    def narrow(services: Services, **options: Any) -> Receiver:
        receiver = this_receiver(services, **options)
        return replace(receiver, limits=replace(receiver.limits, **limits))

    monkeypatch.setattr("kvnetd.transfers.this_receiver", narrow)
    with pytest.raises(IncompatibleModel, match=f"bob: does not decode {missing}, only .*another codec"):
        await send_memory(alice, memory=memory.header.id, codec="")
    assert (events(alice.services), events(bob.services)) == ([], [])
