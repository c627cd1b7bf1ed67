"""Transfers on their way in: resumed, repeated, refused or given up, each leaving what it should."""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kvnetd.incoming import InboundTransfer
from kvnetd.services import Services
from kvnetd.store.records import read_head
from kvnetd.store.spool import folder_name
from kvnetd.transfers import Transfers

from kvnet.errors import (
    BadSignature,
    KvnetError,
    MalformedChunk,
    MalformedFile,
    MalformedMessage,
    PeerNotAdded,
    PeerUnreachable,
    ReplayedMessage,
    StateCorrupt,
    StoreFull,
    TooBusy,
)
from kvnet.identity.peers import AddedPeer
from kvnet.identity.signing import MAX_BODY_NBYTES, sign_message
from kvnet.transfer.messages import MAX_OFFER_NBYTES, Offer, PullRequest, seal
from kvnet.types import Compression
from tests.builders import SENDER, STRANGER, make_basis, make_head, make_memory
from tests.kvnetd.nodes import MEMORY, complete, deliver, events, inbox, offer, receipts, set_room, spooled

CAROL = AddedPeer(STRANGER.node_id, "carol", "", "")
RAW_NBYTES = MEMORY.header.raw_nbytes
CLOSED = PeerUnreachable("the link broke")


async def interrupted(transfers: Transfers, sent: Offer, *indices: int, **options: Any) -> None:
    """A transfer that ended after these chunks were durable."""
    inbound = await transfers.open_inbound(seal(options.get("key", SENDER), sent))
    await deliver(inbound, *indices, **options)
    await inbound.close(CLOSED)


async def test_another_peer_with_the_same_transfer_id_does_not_touch_the_chunks_of_the_first(
    transfers: Transfers, services: Services
) -> None:
    services.peers.add(CAROL)
    sent, hers = offer(), offer(memory=make_memory(1), sender=STRANGER.node_id)
    assert sent.transfer_id == hers.transfer_id
    await interrupted(transfers, sent, 0, 1, 2)
    await complete(await transfers.open_inbound(seal(STRANGER, hers)), key=STRANGER, memory=make_memory(1))
    assert spooled(services) == [folder_name(sent)]
    inbound = await transfers.open_inbound(seal(SENDER, sent))
    assert inbound.resumed_chunks == 3
    await complete(inbound)


async def test_two_peers_with_the_same_transfer_id_send_at_once_and_both_arrive(
    transfers: Transfers, services: Services
) -> None:
    services.peers.add(CAROL)
    first = await transfers.open_inbound(seal(SENDER, offer()))
    await deliver(first, 0, 1, 2)
    second = await transfers.open_inbound(
        seal(STRANGER, offer(memory=make_memory(1), sender=STRANGER.node_id))
    )
    await deliver(second, 0, key=STRANGER, memory=make_memory(1))
    await complete(second, key=STRANGER, memory=make_memory(1))
    await complete(first)
    assert [services.memories.load(record) for record in services.memories.all()] == [
        make_memory(1),
        MEMORY,
    ]
    assert {(peer, transfer) for _, peer, transfer, _ in receipts(services)} == {
        (STRANGER.node_id, offer().transfer_id),
        (SENDER.node_id, offer().transfer_id),
    }
    assert len(inbox(services)) == 2


async def test_pull_that_broke_leaves_nothing_behind(transfers: Transfers, services: Services) -> None:
    """The next answer to a pull has an offer of its own."""
    inbound = await transfers.open_pulled(seal(SENDER, offer()), wanted=MEMORY.header.id)
    await deliver(inbound, 0, 1, 2)
    await inbound.close(PeerUnreachable("gone"))
    assert spooled(services) == []


async def test_expire_removes_what_nobody_can_resume_and_keeps_what_is_on_its_way(
    transfers: Transfers, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, kept = offer(1), offer(2)
    await interrupted(transfers, gone, 0)
    busy = await transfers.open_inbound(seal(SENDER, kept))
    await transfers.expire()
    assert spooled(services) == sorted(map(folder_name, (gone, kept)))
    later = gone.created_at + services.config.unfinished_life_s + 1
    monkeypatch.setattr("kvnetd.arrivals.time", SimpleNamespace(time=lambda: later))
    await transfers.expire()
    assert spooled(services) == [folder_name(kept)]
    await complete(busy)


async def test_offer_that_was_admitted_resumes_when_its_time_is_over_and_no_other_does(
    transfers: Transfers, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = offer(1)
    await interrupted(transfers, begun, 0)
    later = begun.expires_at + 3600
    monkeypatch.setattr("kvnetd.arrivals.time", SimpleNamespace(time=lambda: later))
    with pytest.raises(ReplayedMessage, match="set the clocks"):
        await transfers.open_inbound(seal(SENDER, offer(2)))
    with pytest.raises(ReplayedMessage):  # the same transfer, but not the very offer
        await transfers.open_inbound(seal(SENDER, replace(begun, note="other")))
    resumed = await transfers.open_inbound(seal(SENDER, begun))
    assert resumed.resumed_chunks == 1
    receipt = await complete(resumed)
    again = await transfers.open_inbound(seal(SENDER, begun))  # and the receipt can be had for good
    assert await complete(again) == receipt
    assert len(inbox(services)) == 1


@pytest.mark.parametrize("type_", [Offer.TYPE, PullRequest.TYPE])
async def test_message_of_a_stranger_is_refused_before_its_body_is_parsed(
    transfers: Transfers, type_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = transfers.open_inbound if type_ == Offer.TYPE else transfers.open_outbound
    body = b"[" * 60_000
    with pytest.raises(MalformedMessage):
        await take(sign_message(SENDER, type_, body))
    parsed: list[Any] = []
    monkeypatch.setattr("kvnet.format.strict_json.decode", lambda *args, **kwargs: parsed.append(args))
    with pytest.raises(PeerNotAdded):
        await take(sign_message(STRANGER, type_, body))
    assert parsed == []


@pytest.mark.parametrize(
    ("type_", "most"), [(Offer.TYPE, MAX_OFFER_NBYTES), (PullRequest.TYPE, MAX_OFFER_NBYTES)]
)
async def test_control_body_over_its_bound_is_refused(transfers: Transfers, type_: str, most: int) -> None:
    take = transfers.open_inbound if type_ == Offer.TYPE else transfers.open_outbound
    with pytest.raises(MalformedMessage, match=f"at most {most}"):
        await take(sign_message(SENDER, type_, b" " * (most + 1)))
    assert (MAX_BODY_NBYTES, MAX_OFFER_NBYTES) == (65_536, 1_638_400)


async def test_resume_is_admitted_when_only_what_is_missing_fits(
    transfers: Transfers, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = offer()
    await interrupted(transfers, sent, 0, 1, 2)
    set_room(monkeypatch, RAW_NBYTES // 2 - 1)
    with pytest.raises(StoreFull):
        await transfers.open_inbound(seal(SENDER, sent))
    set_room(monkeypatch, RAW_NBYTES // 2)
    with pytest.raises(StoreFull):
        await transfers.open_inbound(seal(SENDER, offer(2)))
    await complete(await transfers.open_inbound(seal(SENDER, sent)))
    assert services.memories.load(services.memories.get(MEMORY.header.id)) == MEMORY


async def test_offers_on_their_way_at_once_count_against_each_other(
    transfers: Transfers, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_room(monkeypatch, 2 * RAW_NBYTES - 1)
    first = await transfers.open_inbound(seal(SENDER, offer(1)))
    with pytest.raises(StoreFull, match=f"room for {RAW_NBYTES - 1}"):
        await transfers.open_inbound(seal(SENDER, offer(2)))
    await first.close(CLOSED)
    await (await transfers.open_inbound(seal(SENDER, offer(2)))).close(CLOSED)


async def test_refused_offer_leaves_a_started_and_a_failed_line_with_its_code(
    transfers: Transfers, services: Services
) -> None:
    refused: list[tuple[Any, str]] = [
        (seal(STRANGER, offer(sender=STRANGER.node_id)), "peer_not_added"),
        (sign_message(SENDER, Offer.TYPE, b"{"), "malformed_message"),
        (seal(SENDER, offer(created_at=0, expires_at=600)), "replayed_message"),
        (seal(SENDER, offer(chunk_count=7)), "malformed_message"),
    ]
    for sealed, code in refused:
        with pytest.raises(KvnetError):
            await transfers.open_inbound(sealed)
        started, failed = events(services)[-2:]
        assert (started["event"], failed["event"]) == ("transfer.started", "transfer.failed")
        assert (failed["error"], failed["direction"]) == (code, "in")
    assert len(events(services)) == 2 * len(refused)


def open_files(services: Services) -> list[str]:
    """The files of unfinished transfers that this process holds open; its sockets come and go."""
    found = [os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()]
    return sorted(path for path in found if path.startswith(str(services.spool.root.resolve())))


async def cancel_while_it_opens(
    transfers: Transfers, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller goes away while the pool is busy reading the spool's files: nobody else begins meanwhile."""
    opening, go_on, opened = threading.Event(), threading.Event(), services.spool.take_up

    def slow(*args: Any) -> Any:
        opening.set()
        go_on.wait(10)
        return opened(*args)

    with monkeypatch.context() as patched:
        patched.setattr(services.spool, "take_up", slow)
        task = asyncio.create_task(transfers.open_inbound(seal(SENDER, offer())))
        await asyncio.to_thread(opening.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TooBusy):
            await transfers.open_inbound(seal(SENDER, offer()))
        go_on.set()
        await services.in_pool(lambda: None)
        await asyncio.sleep(0.05)  # the files are closed from the loop


async def test_open_that_is_cancelled_releases_the_files_and_the_place(
    transfers: Transfers, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    await interrupted(transfers, offer(), 0)
    before = open_files(services)
    for _ in range(3):
        await cancel_while_it_opens(transfers, services, monkeypatch)
        assert [line.get("error") for line in events(services)[-4:]] == [None, "cancelled", None, "too_busy"]
    assert open_files(services) == before
    await complete(await transfers.open_inbound(seal(SENDER, offer())))


async def test_transfer_that_is_cancelled_is_logged_as_cancelled(
    transfers: Transfers, services: Services
) -> None:
    await (await transfers.open_inbound(seal(SENDER, offer()))).close(asyncio.CancelledError())
    assert events(services)[-1]["error"] == "cancelled"


async def test_close_that_fails_frees_the_place(
    transfers: Transfers, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(transfer: Any) -> None:
        raise OSError(5, "Input/output error", "sections.bin")

    inbound: InboundTransfer = await transfers.open_inbound(seal(SENDER, offer()))
    with monkeypatch.context() as patched:
        patched.setattr("kvnetd.store.unfinished.IncomingTransfer.close", broken)
        with pytest.raises(StateCorrupt, match="Input/output"):
            await inbound.close(None)
    await inbound._services.in_store(inbound._incoming.close)  # type: ignore[union-attr]
    await complete(await transfers.open_inbound(seal(SENDER, offer())))


async def test_bytes_of_the_basis_count_towards_the_room_until_they_are_here(
    transfers: Transfers, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    coding, basis = make_basis()
    memory = make_memory(coding=coding)
    needed = memory.header.raw_nbytes + len(basis)
    set_room(monkeypatch, needed - 1)
    with pytest.raises(StoreFull, match=f"room for {needed - 1}"):
        await transfers.open_inbound(seal(SENDER, offer(memory=memory)))
    set_room(monkeypatch, needed)
    first = await transfers.open_inbound(seal(SENDER, offer(memory=memory)))
    with pytest.raises(StoreFull, match="room for 0"):
        await transfers.open_inbound(seal(SENDER, offer(2, make_memory(1))))
    await complete(first, memory=memory, basis=basis)
    assert services.bases.get(coding.basis) == basis
    assert services.memories.load(services.memories.get(memory.header.id)) == memory


@pytest.mark.parametrize(
    "failure",
    [BadSignature("seal: describes another memory"), MalformedChunk("bomb"), MalformedFile("no head")],
    ids=lambda failure: failure.code,
)
async def test_what_does_not_verify_is_told_in_the_log(
    transfers: Transfers, services: Services, failure: KvnetError
) -> None:
    inbound = await transfers.open_inbound(seal(SENDER, offer()))
    await deliver(inbound)
    await inbound.close(failure)
    (line,) = events(services, "verification")
    assert (line["event"], line["error"], line["chunks"]) == ("verification.failed", failure.code, 6)
    assert events(services)[-1]["error"] == failure.code
    assert (services.memories.all(), inbox(services), receipts(services)) == ((), (), [])


async def test_wrong_seal_over_a_complete_transfer_leaves_nothing_to_resume(
    transfers: Transfers, services: Services
) -> None:
    inbound = await transfers.open_inbound(seal(SENDER, offer()))
    await deliver(inbound)
    await inbound.close(BadSignature("seal: describes another memory"))
    assert spooled(services) == []
    await complete(await transfers.open_inbound(seal(SENDER, offer())))


async def test_seal_of_a_third_node_is_kept_as_it_came(transfers: Transfers, services: Services) -> None:
    """Alice passes on what Carol made: what is exported here is signed by Carol."""
    inbound = await transfers.open_inbound(seal(SENDER, offer()))
    commit = (await deliver(inbound)).commit()
    inbound.session.commit(commit)
    head = make_head(MEMORY, key=STRANGER, wanted=Compression.NONE)
    inbound.session.check_seal(head)
    await inbound.finish(head)
    await inbound.close(None)
    record = services.memories.get(MEMORY.header.id)
    assert (record.origin, record.head.signed_by) == (SENDER.node_id, STRANGER.node_id)
    assert read_head(services.memories.root / record.id).sealed == head.sealed


async def test_peer_that_is_removed_while_it_sends_leaves_no_memory(
    transfers: Transfers, services: Services
) -> None:
    inbound = await transfers.open_inbound(seal(SENDER, offer()))
    await deliver(inbound)
    services.peers.remove("alice")
    with pytest.raises(PeerNotAdded, match="alice"):
        await complete(inbound)
    assert (services.memories.all(), inbox(services), receipts(services)) == ((), (), [])
    assert events(services)[-1]["error"] == "peer_not_added"
    with pytest.raises(PeerNotAdded):
        await transfers.open_inbound(seal(SENDER, offer()))
