"""A complete transfer becomes the memory that was offered, whole, or none; and a power cut loses nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from kvnetd.store.memories import MemoryStore
from kvnetd.store.records import SECTIONS_FILE
from kvnetd.store.spool import Spool

from kvnet.errors import BadSignature
from kvnet.identity.seal import seal_head, verify_head
from kvnet.types import Compression, MemoryHeader, TransferId
from tests.builders import SENDER, make_offer
from tests.kvnetd.conftest import Arrival
from tests.kvnetd.stores import begin, crashed, finish, held

AT = "2026-01-01T00:00:00Z"


def test_transfer_becomes_the_memory_that_was_offered(
    spool: Spool, arrival: Arrival, memories: MemoryStore
) -> None:
    finish(spool, arrival, memories)


@pytest.mark.parametrize("order", [[5, 4, 3, 2, 1, 0], [3, 0, 5, 1, 4, 2], [0, 1, 2, 3, 5, 4]])
def test_chunks_in_any_order_and_batch_become_the_same_file(
    spool: Spool, arrival: Arrival, memories: MemoryStore, order: list[int]
) -> None:
    crashed(spool, arrival, order[:1], order[1:4], order[4:])
    assert held(spool, arrival) == set(order)
    finish(spool, arrival, memories)
    sections = memories.root / arrival.offer.memory.id / SECTIONS_FILE
    assert sections.read_bytes() == b"".join(chunk.signed.payload for chunk in arrival.chunks)


def test_contents_that_belie_the_offer_are_refused_and_make_no_memory(
    spool: Spool, arrival: Arrival, memories: MemoryStore
) -> None:
    header: MemoryHeader = replace(arrival.memory.header, content_digest="sha256:" + "0" * 64)
    liar = Arrival(arrival.memory, offer=make_offer(header))
    liar_head = verify_head(seal_head(SENDER, replace(arrival.head.header, memory=header, repeated=None)))
    incoming = begin(spool, liar)
    incoming.store(liar.chunks)
    with pytest.raises(BadSignature, match="not the memory offered"):
        incoming.finish(memories, liar_head, stored_at=AT)
    assert list(memories.root.iterdir()) == []
    assert list(spool.root.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"compression": Compression.ZSTD},
        {"compression": Compression.SPLIT},
        {"wire_nbytes": 1},
        {"wire_digest": b"d" * 32},
    ],
    ids=str,
)
def test_seal_that_belies_a_chunk_is_refused_and_makes_no_memory(
    spool: Spool, arrival: Arrival, memories: MemoryStore, changes: dict[str, Any]
) -> None:
    header = arrival.head.header
    first = replace(header.sections[0], **changes)
    rest = [
        replace(s, offset=s.offset + first.wire_nbytes - header.sections[0].wire_nbytes)
        for s in header.sections[1:]
    ]
    sealed = seal_head(SENDER, replace(header, sections=(first, *rest), repeated=None))
    incoming = begin(spool, arrival)
    incoming.store(arrival.chunks)
    with pytest.raises(BadSignature, match="chunk 0 is not as its seal says"):
        incoming.finish(memories, verify_head(sealed), stored_at=AT)
    assert (list(memories.root.iterdir()), list(spool.root.iterdir())) == ([], [])


class PowerCut(BaseException):
    """Nothing runs after it."""


def cut_power(*args: Any, **kwargs: Any) -> None:
    raise PowerCut


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]])
@pytest.mark.parametrize(
    "where",
    [
        "kvnetd.store.memories.MemoryStore.new_folder",
        "kvnetd.store.unfinished.IncomingTransfer._lay_out",
        "kvnetd.store.memories.MemoryStore.adopt",
        "kvnetd.store.memories.put_in_place",
        "kvnetd.store.unfinished.IncomingTransfer.discard",
    ],
)
def test_power_cut_on_the_way_to_a_memory_loses_nothing_that_was_acknowledged(
    spool: Spool,
    arrival: Arrival,
    memories: MemoryStore,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    order: list[int],
) -> None:
    incoming = begin(spool, arrival)
    incoming.store([arrival.chunks[index] for index in order])
    with monkeypatch.context() as patched:
        patched.setattr(where, cut_power)
        patched.setattr("shutil.rmtree", lambda *args, **kwargs: None)
        with pytest.raises(PowerCut):
            incoming.finish(memories, arrival.head, stored_at=AT)
    incoming.close()
    restarted = MemoryStore(memories.root)
    assert (restarted.damaged, [f for f in memories.root.iterdir() if f.name.startswith(".")]) == ({}, [])
    assert held(spool, arrival) == set(range(6))
    finish(spool, arrival, restarted)


def test_memory_that_is_here_already_is_not_stored_twice(
    spool: Spool, arrival: Arrival, memories: MemoryStore
) -> None:
    finish(spool, arrival, memories)
    again = Arrival(arrival.memory, offer=replace(arrival.offer, transfer_id=TransferId("ee" * 16)))
    finish(spool, again, memories)
    assert len(list(memories.root.iterdir())) == 1
