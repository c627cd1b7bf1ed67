"""Which offer a message goes out under, and what a peer that pulls gets to see."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from kvnetd.outgoing import OutboundTransfer, StoredParts, open_parts
from kvnetd.services import Services
from kvnetd.store.records import HEAD_FILE, MemoryRecord, read_head
from kvnetd.store.sections import sections_place
from kvnetd.transfers import Transfers

from kvnet.errors import (
    BadSignature,
    IncompatibleModel,
    KvnetError,
    PeerNotAdded,
    PeerUnreachable,
    StateCorrupt,
    StoreFull,
    TooBusy,
    TransferIncomplete,
    UnknownBasis,
    UnknownMemory,
)
from kvnet.types import Compression, MemoryId, chunk_digest
from tests.builders import SENDER, STRANGER, make_basis, make_memory
from tests.kvnetd.nodes import MEMORY, events, making, offer, pull

Prepare = Callable[..., Awaitable[OutboundTransfer]]


@pytest.fixture
def record(services: Services) -> MemoryRecord:
    return services.memories.put(MEMORY, making(), services.key)


@pytest.fixture
def prepare(services: Services, transfers: Transfers, record: MemoryRecord) -> Prepare:
    """The message to Alice that every test here sends, or the like."""
    peer = services.peers.find("alice")

    async def act(found: MemoryRecord = record, note: str = "", agent: str = "") -> OutboundTransfer:
        return await transfers.prepare(found, peer, note=note, agents=("", agent))

    return act


async def attempt(prepare: Prepare, failure: BaseException | None) -> str:
    """Send, end so; returns the transfer id."""
    outbound = await prepare()
    await outbound.close(failure)
    return outbound.session.offer.transfer_id


def set_clock(monkeypatch: pytest.MonkeyPatch, now: int) -> None:
    monkeypatch.setattr("kvnetd.departures.time", SimpleNamespace(time=lambda: now))


@pytest.mark.parametrize("wanted", [MEMORY.header.id[:8], MEMORY.header.id[:-1], "mem_", "", "mem_x", "/"])
async def test_pull_by_less_than_the_full_id_tells_nothing(
    transfers: Transfers, services: Services, record: MemoryRecord, wanted: str
) -> None:
    services.ledger.name("mem_x", record.id)
    with pytest.raises(UnknownMemory) as refused:
        await transfers.open_outbound(pull(MemoryId(wanted)))
    assert refused.value.message == "no such memory here"
    assert refused.value.details == {}


async def test_pull_by_a_stranger_is_refused_and_logged(transfers: Transfers, services: Services) -> None:
    with pytest.raises(PeerNotAdded):
        await transfers.open_outbound(pull(MEMORY.header.id, STRANGER))
    started, failed = events(services)
    assert (started["event"], failed["event"]) == ("transfer.started", "transfer.failed")
    assert (failed["error"], failed["direction"]) == ("peer_not_added", "out")


async def test_pull_of_a_memory_that_cannot_be_opened_is_logged_as_failed(
    transfers: Transfers, services: Services, record: MemoryRecord
) -> None:
    sections_place(services.memories.root / record.id).unlink()
    with pytest.raises(StateCorrupt):
        await transfers.open_outbound(pull(record.id))
    assert [line["event"] for line in events(services)] == ["transfer.started", "transfer.failed"]
    assert events(services)[-1]["error"] == "state_corrupt"


async def test_compact_memory_goes_out_with_the_pieces_of_its_basis(
    services: Services, prepare: Prepare
) -> None:
    coding, basis = make_basis((1 << 20) + 5)
    services.bases.put(basis)
    record = services.memories.put(make_memory(coding=coding, num_kv_heads=64), making(), services.key)
    outbound = await prepare(record)
    chunks = outbound.session.chunks
    assert outbound.session.offer.chunk_count == len(chunks) == 6 + 2
    pieces = [bytes(wire) async for _, wire in outbound.parts(outbound.session.plan)]
    assert b"".join(pieces[6:]) == basis
    assert [chunk_digest(piece) for piece in pieces] == [chunk.wire_digest for chunk in chunks]
    assert await outbound.sealed_head() == read_head(services.memories.root / record.id).sealed
    await outbound.close(None)


async def test_compact_memory_whose_basis_is_gone_is_not_offered(
    services: Services, transfers: Transfers, prepare: Prepare
) -> None:
    record = services.memories.put(make_memory(coding=make_basis()[0]), making(), services.key)
    with pytest.raises(UnknownBasis, match="not here"):
        await prepare(record)
    with pytest.raises(UnknownBasis):
        await transfers.open_outbound(pull(record.id))
    assert events(services)[-1]["error"] == "unknown_basis"
    services.bases.put(make_basis()[1])
    await (await prepare(record)).close(None)


async def test_memory_that_is_written_anew_meanwhile_is_too_busy_and_not_damaged(
    services: Services, transfers: Transfers, prepare: Prepare, record: MemoryRecord
) -> None:
    services.memories.put(MEMORY, making(Compression.NONE), services.key)
    with pytest.raises(TooBusy, match="written anew meanwhile; try again"):
        await prepare(record)
    assert services.memories.damaged == {}
    await (await prepare(services.memories.get(record.id))).close(None)
    await (await transfers.open_outbound(pull(record.id))).close(None)


@pytest.mark.parametrize("is_pull", [False, True])
async def test_transfer_that_cannot_begin_gives_back_its_slot_and_its_file(
    services: Services,
    transfers: Transfers,
    prepare: Prepare,
    record: MemoryRecord,
    monkeypatch: pytest.MonkeyPatch,
    is_pull: bool,
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise TransferIncomplete("no session")

    opened: list[StoredParts] = []

    def keep(*args: Any) -> StoredParts:
        opened.append(open_parts(*args))  # kept here, so that nothing closes it by chance
        return opened[-1]

    with monkeypatch.context() as patched:
        patched.setattr("kvnetd.outgoing.SenderSession", fail)
        patched.setattr("kvnetd.departures.open_parts", keep)
        with pytest.raises(TransferIncomplete):
            await (transfers.open_outbound(pull(record.id)) if is_pull else prepare())
    assert [parts.sections.closed for parts in opened] == [True]
    assert [line["event"] for line in events(services)] == ["transfer.started", "transfer.failed"]
    await (await prepare()).close(None)


async def test_caller_that_leaves_while_a_memory_is_opened_leaves_no_file_open(
    services: Services, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    opened: list[StoredParts] = []

    def slow(*args: Any) -> StoredParts:
        begun.set()
        assert go_on.wait(30)
        opened.append(open_parts(*args))
        return opened[-1]

    with monkeypatch.context() as patched:
        patched.setattr("kvnetd.departures.open_parts", slow)
        preparing = asyncio.ensure_future(prepare())
        assert await asyncio.to_thread(begun.wait, 30)  # the event loop goes on while the disk is read
        with pytest.raises(TooBusy, match="already on its way"):
            await prepare()
        preparing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await preparing
        go_on.set()
        await services.in_pool(lambda: None)
    async with asyncio.timeout(10):
        while not opened[0].sections.closed:  # noqa: ASYNC110  # by the loop, once it hears of it
            await asyncio.sleep(0.01)
    await (await prepare()).close(None)


async def test_memory_whose_head_is_damaged_is_not_offered(
    services: Services, prepare: Prepare, record: MemoryRecord
) -> None:
    (services.memories.root / record.id / HEAD_FILE).write_bytes(b"AWKG")
    with pytest.raises(StateCorrupt, match=HEAD_FILE):
        await prepare()


@pytest.mark.parametrize("ended", [None, PeerUnreachable("gone"), BadSignature("no")])
async def test_served_pull_never_uses_up_the_offer_of_a_message(
    transfers: Transfers, prepare: Prepare, record: MemoryRecord, ended: BaseException | None
) -> None:
    message = await attempt(prepare, PeerUnreachable("gone"))
    served = await transfers.open_outbound(pull(record.id))
    assert served.session.offer.transfer_id != message
    assert served.session.offer.note == ""
    assert await attempt(prepare, PeerUnreachable("gone")) == message  # while it is served, and after
    await served.close(ended)
    assert await attempt(prepare, None) == message


async def test_same_message_twice_at_once_is_too_busy(prepare: Prepare) -> None:
    first = await prepare()
    with pytest.raises(TooBusy, match="already on its way to alice"):
        await prepare()
    for other in (await prepare(note="other"), await prepare(agent="reader")):
        assert other.session.offer.transfer_id != first.session.offer.transfer_id
        await other.close(None)
    await first.close(None)
    await (await prepare()).close(None)


@pytest.mark.parametrize(
    "failure",
    [
        PeerUnreachable("gone"),
        TransferIncomplete("cut"),
        StoreFull("full"),
        TooBusy("busy"),
        asyncio.CancelledError(),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_failure_that_can_be_resumed_keeps_the_offer(prepare: Prepare, failure: BaseException) -> None:
    assert await attempt(prepare, failure) == await attempt(prepare, failure)


@pytest.mark.parametrize(
    "failure",
    [
        None,
        IncompatibleModel("other"),
        BadSignature("altered"),
        PeerNotAdded("who"),
        KvnetError("bug"),
        ValueError("bug"),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_end_that_is_final_drops_the_offer(prepare: Prepare, failure: BaseException | None) -> None:
    assert await attempt(prepare, failure) != await attempt(prepare, failure)


@pytest.mark.parametrize(("later_s", "is_same"), [(-1, False), (0, True), (599, True), (600, False)])
async def test_offer_is_used_again_between_its_making_and_its_end(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch, later_s: int, is_same: bool
) -> None:
    now = offer().created_at
    set_clock(monkeypatch, now)
    first = await attempt(prepare, PeerUnreachable("gone"))
    set_clock(monkeypatch, now + later_s)
    assert (await attempt(prepare, PeerUnreachable("gone")) == first) is is_same


async def test_memory_made_again_with_other_sections_is_a_new_offer(
    services: Services, prepare: Prepare, record: MemoryRecord
) -> None:
    first = await attempt(prepare, PeerUnreachable("gone"))
    services.memories.forget(record.id)
    again = services.memories.put(MEMORY, making(Compression.NONE), services.key)
    assert again.id == record.id
    outbound = await prepare(again)
    await outbound.close(PeerUnreachable("gone"))
    assert outbound.session.offer.transfer_id != first
    assert outbound.session.offer.receiver == SENDER.node_id
