"""What a peer may leave behind here: unfinished transfers, offers, messages; all of it counts, and ends."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import pytest
from kvnetd.actions.peers import remove_peer, revoke_peer
from kvnetd.services import Services
from kvnetd.store.spool import Spool
from kvnetd.transfers import Transfers

from kvnet.errors import StoreFull, TooBusy
from kvnet.plan import transfer_room_nbytes
from kvnet.transfer.messages import Offer, seal
from kvnet.types import TransferId
from tests.builders import RECEIVER, SENDER
from tests.kvnetd.arrival import Arrival
from tests.kvnetd.conftest import ALICE
from tests.kvnetd.nodes import MEMORY, complete, deliver, inbox, offer, services_of, set_room, spooled
from tests.kvnetd.stores import crashed

LONG_TEXT = "\x01" * (64 << 10)


async def begun(transfers: Transfers, sent: Offer) -> None:
    """An offer that was admitted, and of which nothing came."""
    await (await transfers.open_inbound(seal(SENDER, sent))).close(asyncio.CancelledError())


async def test_the_words_of_an_offer_count_for_the_quota(transfers: Transfers, services: Services) -> None:
    services.peers.trust("alice", quota_nbytes=4 * transfer_room_nbytes(MEMORY.header) + (500 << 10))
    await begun(transfers, offer(1, text=LONG_TEXT))
    with pytest.raises(StoreFull, match="alice"):
        await transfers.open_inbound(seal(SENDER, offer(2, text=LONG_TEXT)))


async def test_a_text_that_is_kept_counts_for_the_quota(transfers: Transfers, services: Services) -> None:
    await complete(await transfers.open_inbound(seal(SENDER, offer(1, text=LONG_TEXT))))
    room = services.spool.room_nbytes(offer(2), seal(SENDER, offer(2)))
    services.peers.trust("alice", quota_nbytes=2 * room + len(LONG_TEXT) // 2)
    with pytest.raises(StoreFull, match="alice"):
        await transfers.open_inbound(seal(SENDER, offer(2)))


async def test_messages_count_for_the_quota_when_their_memory_is_here_already(
    transfers: Transfers, services: Services
) -> None:
    await complete(await transfers.open_inbound(seal(SENDER, offer(1))))
    before = services.ledger.received_nbytes(ALICE.all_ids)
    await complete(await transfers.open_inbound(seal(SENDER, offer(2, note="n" * 1000))))
    assert services.ledger.received_nbytes(ALICE.all_ids) >= before + 1000
    assert services.ledger.received_nbytes((RECEIVER.node_id,)) == 0


async def test_a_whole_transfer_within_its_quota_resumes(transfers: Transfers, services: Services) -> None:
    sent = offer()
    services.peers.trust("alice", quota_nbytes=services.spool.room_nbytes(sent, seal(SENDER, sent)))
    inbound = await transfers.open_inbound(seal(SENDER, sent))
    await deliver(inbound)
    await inbound.close(None)
    await complete(await transfers.open_inbound(seal(SENDER, sent)))


async def test_room_is_promised_once_to_an_id_that_is_offered_again_with_other_words(
    transfers: Transfers, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbound = await transfers.open_inbound(seal(SENDER, offer(1)))
    await deliver(inbound)
    await inbound.close(None)
    set_room(monkeypatch, transfer_room_nbytes(MEMORY.header) - 1)
    with pytest.raises(StoreFull):
        await transfers.open_inbound(seal(SENDER, offer(1, note="other words")))
    assert len(spooled(services)) == 1  # what was acknowledged stays, where the other is refused
    set_room(monkeypatch, 2 * transfer_room_nbytes(MEMORY.header) - 1)
    other = await transfers.open_inbound(seal(SENDER, offer(1, note="other words")))
    with pytest.raises(StoreFull):
        await transfers.open_inbound(seal(SENDER, offer(2)))
    await other.close(None)


def test_the_spool_asks_room_for_all_of_an_offer_with_other_words(
    spool: Spool, arrival: Arrival, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed(spool, arrival, [0, 1, 2])
    needed = transfer_room_nbytes(arrival.offer.memory)
    monkeypatch.setattr("kvnetd.store.disk.free_nbytes", lambda folder: needed - 1)
    other = Arrival(arrival.memory, offer=replace(arrival.offer, note="other words"))
    with pytest.raises(StoreFull):
        spool.open(other.offer, other.sealed)


async def test_unfinished_transfers_of_a_peer_are_bounded(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("bob")
    async with services_of(root, RECEIVER, ALICE, limits={"max_unfinished_per_peer": 2}) as services:
        transfers = Transfers(services)
        for number in (1, 2):
            await begun(transfers, offer(number))
        with pytest.raises(TooBusy, match="2 transfers of alice are unfinished"):
            await transfers.open_inbound(seal(SENDER, offer(3)))
        await complete(await transfers.open_inbound(seal(SENDER, offer(2))))
        await complete(await transfers.open_inbound(seal(SENDER, offer(3))))


async def test_unread_messages_of_a_peer_are_bounded(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("bob")
    async with services_of(root, RECEIVER, ALICE, limits={"max_unread_per_peer": 1}) as services:
        transfers = Transfers(services)
        first = offer(1)
        receipt = await complete(await transfers.open_inbound(seal(SENDER, first)))
        with pytest.raises(TooBusy, match="1 messages of alice are unread"):
            await transfers.open_inbound(seal(SENDER, offer(2)))
        # A receipt that was lost can be had all the same, and a memory that we pull is no message.
        assert await complete(await transfers.open_inbound(seal(SENDER, first))) == receipt
        pulled = await transfers.open_pulled(seal(SENDER, offer(3)), wanted=MEMORY.header.id)
        await pulled.close(None)
        services.ledger.acknowledge(inbox(services)[0].id, at="2026-01-01T00:00:00Z")
        await complete(await transfers.open_inbound(seal(SENDER, offer(2))))


def test_an_offer_is_read_once_however_often_the_spool_is_swept(
    spool: Spool, arrival: Arrival, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    for number in range(3):
        other = replace(arrival.offer, transfer_id=TransferId(f"{number:032x}"))
        crashed(spool, Arrival(arrival.memory, offer=other), [0])
    again = Spool(spool.root, spool._bases)
    monkeypatch.setattr(again._vault, "read", lambda path: read.append(str(path)) or path.read_bytes())
    for _ in range(3):
        assert again.expire(now=arrival.offer.created_at, life_s=600, busy=frozenset()) == 0
        assert again.bases() == frozenset()
    assert len(read) == 3


@pytest.mark.parametrize("end", [revoke_peer, remove_peer])
async def test_what_a_peer_left_unfinished_goes_with_the_trust_in_it(
    transfers: Transfers, services: Services, end: object
) -> None:
    await begun(transfers, offer(1))
    assert len(spooled(services)) == 1
    await end(services, "alice")  # type: ignore[operator]
    assert spooled(services) == []


async def test_a_revocation_does_not_wait_for_the_store(transfers: Transfers, services: Services) -> None:
    go_on = threading.Event()
    busy = asyncio.create_task(services.in_store(go_on.wait, 60))
    revoking = asyncio.create_task(revoke_peer(services, "alice"))
    try:
        async with asyncio.timeout(30):
            while services.peers.trusted(SENDER.public) is not None:  # noqa: ASYNC110  # another thread does it
                await asyncio.sleep(0.01)
        assert not busy.done()
    finally:
        go_on.set()
        await asyncio.gather(busy, revoking)


async def test_a_transfer_is_read_back_beside_the_store(
    transfers: Transfers, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    take_up = services.spool.take_up

    def watched(sent: Offer) -> object:
        threads.append(threading.current_thread().name)
        return take_up(sent)

    monkeypatch.setattr(services.spool, "take_up", watched)
    stores = await services.in_store(lambda: threading.current_thread().name)
    await begun(transfers, offer(1))
    assert threads
    assert stores not in threads


async def test_close_that_is_cancelled_closes_the_files_all_the_same(
    transfers: Transfers, services: Services
) -> None:
    inbound = await transfers.open_inbound(seal(SENDER, offer()))
    go_on = threading.Event()
    busy = asyncio.create_task(services.in_store(go_on.wait, 60))
    closing = asyncio.create_task(inbound.close(None))
    await asyncio.sleep(0.05)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    go_on.set()
    await busy
    await services.in_store(lambda: None)
    assert inbound._incoming is not None
    assert inbound._incoming._log == -1
