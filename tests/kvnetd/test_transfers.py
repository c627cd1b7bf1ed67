"""Which offers and requests of a peer this node takes up, and how often."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from kvnetd.config import load_config
from kvnetd.directory import Directory
from kvnetd.log import EventLog
from kvnetd.services import Listening, Services
from kvnetd.store.ledger import Ledger
from kvnetd.store.memories import MemoryStore
from kvnetd.store.spool import Spool
from kvnetd.transfers import Transfers

from kvnet.errors import KvnetError, MalformedMessage, PeerNotAdded, ReplayedMessage, TooBusy, UnknownMemory
from kvnet.identity.keys import NodeKey
from kvnet.identity.peers import AddedPeer, PeerList
from kvnet.paths import Home
from kvnet.transfer.messages import Offer, PullRequest, seal
from kvnet.types import Compression, Fingerprint, Geometry, MemoryId, TransferId
from tests.builders import (
    RECEIVER,
    SENDER,
    STRANGER,
    make_fingerprint,
    make_geometry,
    make_memory,
    make_offer,
)

ALICE = AddedPeer(SENDER.node_id, "alice", "", "")


@dataclass(frozen=True)
class Host:
    """What transfers ask of a model host."""

    fingerprint: Fingerprint
    geometry: Geometry
    max_seq_len: int


@pytest.fixture
async def services(tmp_path: Path) -> AsyncIterator[Services]:
    """RECEIVER's node, which has added Alice and hosts no model at all."""
    home = Home(tmp_path)
    home.store.mkdir()
    peers = PeerList(home.peers)
    peers.add(ALICE)
    ledger = Ledger(home.store / "ledger.sqlite")
    log = EventLog(home.events, node="n", max_nbytes=1 << 20)
    unused: Any = None
    host: Any = Host(make_fingerprint(), make_geometry(), 64)
    with ThreadPoolExecutor(1) as store_thread, ThreadPoolExecutor(1) as pool:
        yield Services(
            config=load_config(home, {"max_inbound_transfers": 2}, {}),
            key=RECEIVER,
            log=log,
            peers=peers,
            directory=Directory(),
            memories=MemoryStore(home.store / "memories"),
            spool=Spool(home.store / "incoming"),
            ledger=ledger,
            host=host,
            runner=unused,
            store_thread=store_thread,
            pool=pool,
            listening=Listening(),
        )
    ledger.close()
    log.close()


@pytest.fixture
def transfers(services: Services) -> Transfers:
    return Transfers(services)


def offer(number: int = 1, **changes: Any) -> Offer:
    """A fresh offer of Alice's; the clock is the real one here."""
    now = int(time.time())
    plain = make_offer(make_memory(), created_at=now, expires_at=now + 600)
    return replace(plain, transfer_id=TransferId(f"{number:032x}"), **changes)


async def test_offer_of_a_node_that_was_not_added_is_refused(
    transfers: Transfers, services: Services
) -> None:
    with pytest.raises(PeerNotAdded, match=STRANGER.node_id):
        await transfers.open_inbound(seal(STRANGER, offer(sender=STRANGER.node_id)))
    assert services.spool.pending() == ()


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
    assert services.spool.pending() == ()


def pull(memory: MemoryId, key: NodeKey = SENDER, **changes: Any) -> Any:
    """A signed request for one of our memories."""
    plain = PullRequest(memory, SENDER.node_id, RECEIVER.node_id, int(time.time()), "11" * 16)
    return seal(key, replace(plain, **changes))


async def test_pull_is_answered_once(transfers: Transfers, services: Services) -> None:
    memory = services.memories.put(make_memory(), wanted=Compression.NONE, created_at="")
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
