"""A transform-coded memory on its way in: its basis comes along where it is lacking, and no other."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kvnetd.store.bases import BasisStore
from kvnetd.store.memories import MemoryStore
from kvnetd.store.records import SECTIONS_FILE
from kvnetd.store.spool import Spool

from kvnet.errors import BadSignature
from kvnet.types import TransferId
from tests.builders import make_basis, make_memory, make_offer
from tests.kvnetd.conftest import Arrival
from tests.kvnetd.nodes import AT

CODING, BASIS = make_basis()
COMPACT = make_memory(coding=CODING, attention_heads=4)
OF_MEMORY = set(range(9))
OF_BASIS = {9}


@pytest.fixture
def arrival() -> Arrival:
    return Arrival(COMPACT, basis=BASIS)


def test_receiver_that_lacks_the_basis_gets_it_with_the_memory(
    spool: Spool, arrival: Arrival, memories: MemoryStore, bases: BasisStore
) -> None:
    incoming = spool.open(arrival.offer, arrival.sealed)
    assert incoming.held == {}
    incoming.store(arrival.chunks)
    assert set(incoming.held) == OF_MEMORY | OF_BASIS
    record = incoming.finish(memories, arrival.head, stored_at=AT)
    assert memories.load(record) == COMPACT
    assert bases.get(CODING.basis) == BASIS
    sections = memories.root / record.id / SECTIONS_FILE
    assert sections.stat().st_size == arrival.head.header.sections_nbytes  # the basis is not among them
    assert list(spool.root.iterdir()) == []


def test_receiver_that_has_the_basis_marks_its_chunks_as_held(
    spool: Spool, arrival: Arrival, memories: MemoryStore, bases: BasisStore
) -> None:
    bases.put(BASIS)
    incoming = spool.open(arrival.offer, arrival.sealed)
    assert incoming.held == {index: arrival.digests[index] for index in OF_BASIS}
    incoming.store(arrival.chunks[:9])
    assert incoming.held == arrival.digests
    assert memories.load(incoming.finish(memories, arrival.head, stored_at=AT)) == COMPACT


def test_basis_of_several_pieces_is_put_together_in_order(
    spool: Spool, memories: MemoryStore, bases: BasisStore
) -> None:
    coding, basis = make_basis((2 << 20) + 5)
    arrival = Arrival(make_memory(coding=coding, num_kv_heads=64), basis=basis)
    incoming = spool.open(arrival.offer, arrival.sealed)
    for index in (8, 0, 7, 2, 6, 1, 5, 3, 4):
        incoming.store([arrival.chunks[index]])
    record = incoming.finish(memories, arrival.head, stored_at=AT)
    assert (bases.get(coding.basis), memories.load(record)) == (basis, arrival.memory)


def test_piece_of_the_basis_survives_a_restart(
    spool: Spool, arrival: Arrival, memories: MemoryStore, bases: BasisStore
) -> None:
    first = spool.open(arrival.offer, arrival.sealed)
    first.store([arrival.chunks[9], arrival.chunks[0]])
    first.close()
    again = Spool(spool.root, bases).open(arrival.offer, arrival.sealed)
    assert set(again.held) == {0, 9}
    again.store(arrival.chunks[1:9])
    assert memories.load(again.finish(memories, arrival.head, stored_at=AT)) == COMPACT
    assert bases.get(CODING.basis) == BASIS


def test_basis_that_came_by_another_transfer_meanwhile_is_not_asked_for_again(
    spool: Spool, arrival: Arrival, memories: MemoryStore, bases: BasisStore
) -> None:
    first = spool.open(arrival.offer, arrival.sealed)
    first.store(arrival.chunks[:2])
    first.close()
    bases.put(BASIS)
    again = spool.open(arrival.offer, arrival.sealed)
    assert set(again.held) == {0, 1} | OF_BASIS
    again.store(arrival.chunks[2:9])
    assert memories.load(again.finish(memories, arrival.head, stored_at=AT)) == COMPACT


def test_damaged_basis_is_asked_for_again(
    spool: Spool, arrival: Arrival, memories: MemoryStore, bases: BasisStore
) -> None:
    bases.put(BASIS)
    (path,) = bases.root.iterdir()
    path.write_bytes(BASIS[:-1])
    incoming = spool.open(arrival.offer, arrival.sealed)
    assert incoming.held == {}
    incoming.store(arrival.chunks)
    incoming.finish(memories, arrival.head, stored_at=AT)
    assert bases.get(CODING.basis) == BASIS


def test_another_basis_than_the_one_named_is_refused_and_nothing_stays(
    spool: Spool, memories: MemoryStore, bases: BasisStore
) -> None:
    liar = Arrival(COMPACT, basis=bytes(len(BASIS)))
    incoming = spool.open(liar.offer, liar.sealed)
    incoming.store(liar.chunks)
    with pytest.raises(BadSignature, match="the calibration is not the one offered"):
        incoming.finish(memories, liar.head, stored_at=AT)
    assert [list(folder.iterdir()) for folder in (memories.root, bases.root, spool.root)] == [[], [], []]


@pytest.mark.parametrize("more", [-1, 1, 1 << 16])
def test_known_basis_of_another_length_than_offered_holds_nothing(
    spool: Spool, bases: BasisStore, more: int
) -> None:
    """Else a sender could make a receiver count pieces that there are not."""
    bases.put(BASIS)
    coding = replace(CODING, basis_nbytes=len(BASIS) + more)
    memory = make_memory(coding=coding)
    offer = make_offer(memory, transfer_id=TransferId("ee" * 16))
    arrival = Arrival(memory, offer=offer, basis=BASIS + bytes(max(0, more)))
    incoming = spool.open(offer, arrival.sealed)
    assert incoming.held == {}
    incoming.discard()
