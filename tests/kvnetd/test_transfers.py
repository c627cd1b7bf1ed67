"""Which offers and requests of a peer this node takes up, and how often."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from kvnetd.services import Services
from kvnetd.store.records import LocalNotes
from kvnetd.transfers import Transfers

from kvnet.errors import (
    KvnetError,
    MalformedMessage,
    PeerNotAdded,
    ReplayedMessage,
    StoreFull,
    TooBusy,
    UnknownMemory,
)
from kvnet.identity.keys import NodeKey
from kvnet.plan import transfer_room_nbytes
from kvnet.transfer.messages import Offer, seal
from kvnet.types import MemoryId, TransferId
from tests.builders import SENDER, STRANGER, make_memory
from tests.kvnetd.nodes import AT, MEMORY, making, offer, pull, spooled


def quota_for(services: Services, sent: Offer) -> int:
    """What one transfer takes, to its last byte."""
    return services.spool.room_nbytes(sent, seal(SENDER, sent))


async def test_offer_of_a_node_that_was_not_added_is_refused(
    transfers: Transfers, services: Services
) -> None:
    with pytest.raises(PeerNotAdded, match=STRANGER.node_id):
        await transfers.open_inbound(seal(STRANGER, offer(sender=STRANGER.node_id)))
    assert spooled(services) == []


async def test_transfer_that_is_on_its_way_in_is_not_taken_twice(transfers: Transfers) -> None:
    sealed = seal(SENDER, offer())
    inbound = await transfers.open_inbound(sealed)
    with pytest.raises(TooBusy, match="already on its way in"):
        await transfers.open_inbound(sealed)
    await inbound.close(None)
    await (await transfers.open_inbound(sealed)).close(None)


async def test_more_transfers_than_configured_are_refused_until_one_ends(transfers: Transfers) -> None:
    first, second = [await transfers.open_inbound(seal(SENDER, offer(number))) for number in (1, 2)]
    with pytest.raises(TooBusy, match="2 transfers"):
        await transfers.open_inbound(seal(SENDER, offer(3)))
    await first.close(None)
    third = await transfers.open_inbound(seal(SENDER, offer(3)))
    for inbound in (second, third):
        await inbound.close(None)


async def test_peer_stays_within_its_quota_with_all_that_is_on_its_way(
    transfers: Transfers, services: Services
) -> None:
    # Less than two of them, more than one and the offer of the other.
    words_nbytes = len(seal(SENDER, offer()).body)
    quota = quota_for(services, offer()) + transfer_room_nbytes(offer().memory) + words_nbytes
    services.peers.trust("alice", quota_nbytes=quota)
    first = await transfers.open_inbound(seal(SENDER, offer(1)))
    with pytest.raises(StoreFull, match=f"at most {quota} bytes"):
        await transfers.open_inbound(seal(SENDER, offer(2)))
    await first.close(None)
    second = await transfers.open_inbound(seal(SENDER, offer(2)))
    await second.close(None)


async def test_quota_counts_what_a_peer_has_here_and_nobody_elses(
    transfers: Transfers, services: Services
) -> None:
    services.memories.put(make_memory(seed=2), making(), services.key)
    services.peers.trust("alice", quota_nbytes=quota_for(services, offer()))
    await (await transfers.open_inbound(seal(SENDER, offer(1)))).close(None)
    notes = LocalNotes(origin=SENDER.node_id, stored_at=AT)
    services.memories.put(MEMORY, replace(making(), notes=notes), services.key)
    with pytest.raises(StoreFull, match=r"has [1-9]"):
        await transfers.open_inbound(seal(SENDER, offer(2)))


async def test_refused_offer_takes_no_place(transfers: Transfers) -> None:
    for number in range(5):
        with pytest.raises(KvnetError):
            await transfers.open_inbound(seal(SENDER, offer(number, chunk_count=7)))
    await (await transfers.open_inbound(seal(SENDER, offer()))).close(None)


@pytest.mark.parametrize("transfer_id", ["", "AB" * 16, "ab" * 15, "../" * 10 + "ab", "zz" * 16, "é" * 32])
async def test_transfer_id_that_is_not_32_hex_digits_is_refused(
    transfers: Transfers, services: Services, transfer_id: str
) -> None:
    with pytest.raises(MalformedMessage, match="32 lower-case hex"):
        await transfers.open_inbound(seal(SENDER, replace(offer(), transfer_id=TransferId(transfer_id))))
    assert spooled(services) == []


async def test_pull_is_answered_once(transfers: Transfers, services: Services) -> None:
    memory = services.memories.put(make_memory(), making(), services.key)
    outbound = await transfers.open_outbound(pull(memory.id))
    assert outbound.session.offer.receiver == SENDER.node_id
    await outbound.close(None)
    with pytest.raises(ReplayedMessage):
        await transfers.open_outbound(pull(memory.id))


@pytest.mark.parametrize(
    ("key", "changes", "wanted"),
    [
        (STRANGER, {"receiver": STRANGER.node_id}, PeerNotAdded),
        (SENDER, {"receiver": STRANGER.node_id}, ReplayedMessage),
        (SENDER, {"sender": STRANGER.node_id}, ReplayedMessage),
        (SENDER, {"created_at": 0}, ReplayedMessage),
        (SENDER, {"created_at": 2**62}, ReplayedMessage),
        (SENDER, {}, UnknownMemory),
    ],
)
async def test_pull_that_is_not_ours_to_answer_is_refused(
    transfers: Transfers, key: NodeKey, changes: dict[str, Any], wanted: type[KvnetError]
) -> None:
    with pytest.raises(wanted):
        await transfers.open_outbound(pull(MemoryId("mem_x"), key, **changes))
