"""A sender that lost our receipt asks again: the same receipt, whatever became of the memory since."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from kvnetd.services import Services
from kvnetd.transfers import Transfers

from kvnet.errors import PeerError, PeerUnreachable, ReplayedMessage
from kvnet.identity.peers import AddedPeer
from kvnet.transfer.messages import Offer, seal
from tests.builders import SENDER, STRANGER
from tests.kvnetd.nodes import MEMORY, complete, deliver, inbox, making, offer, receipts, set_room, spooled

TOTAL = 6


@pytest.fixture
async def completed(transfers: Transfers) -> tuple[Offer, Any]:
    """A transfer that is done, and its receipt."""
    sent = offer()
    return sent, await complete(await transfers.open_inbound(seal(SENDER, sent)))


def forget(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    services.memories.forget(MEMORY.header.id)


def store_in_another_compression(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    services.memories.forget(MEMORY.header.id)
    services.memories.put(MEMORY, making(), services.key)


def fill_the_disk(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    set_room(monkeypatch, 0)


@pytest.mark.parametrize("meanwhile", [None, forget, store_in_another_compression, fill_the_disk])
async def test_same_offer_after_completion_gets_the_same_receipt_and_no_second_message(
    transfers: Transfers,
    services: Services,
    completed: tuple[Offer, Any],
    meanwhile: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent, receipt = completed
    if meanwhile is not None:
        meanwhile(services, monkeypatch)
    again = await transfers.open_inbound(seal(SENDER, sent))
    assert again.resumed_chunks == TOTAL
    assert await complete(again) == receipt
    assert (len(inbox(services)), len(receipts(services)), spooled(services)) == (1, 1, [])


async def test_other_offer_under_a_completed_id_is_refused(
    transfers: Transfers, completed: tuple[Offer, Any]
) -> None:
    sent, receipt = completed
    with pytest.raises(ReplayedMessage, match="new id"):
        await transfers.open_inbound(seal(SENDER, replace(sent, note="other")))
    assert await complete(await transfers.open_inbound(seal(SENDER, sent))) == receipt


async def test_chunk_of_a_completed_transfer_is_refused_and_stored_nowhere(
    transfers: Transfers, services: Services, completed: tuple[Offer, Any]
) -> None:
    again = await transfers.open_inbound(seal(SENDER, completed[0]))
    again.session._durable.clear()  # so that the sender believes that nothing is there
    with pytest.raises(ReplayedMessage, match="completed before"):
        await deliver(again, 0)
    await again.close(PeerUnreachable("the link broke"))
    assert spooled(services) == []


async def test_another_peer_with_the_very_same_offer_does_not_get_the_receipt(
    transfers: Transfers, services: Services, completed: tuple[Offer, Any]
) -> None:
    services.peers.add(AddedPeer(STRANGER.node_id, "carol", "", ""))
    sent, _ = completed
    with pytest.raises(PeerError, match="another sender"):
        await transfers.open_inbound(seal(STRANGER, sent))
