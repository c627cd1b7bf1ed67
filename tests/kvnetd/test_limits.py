"""What a node bounds: each limit is reached and refused, and another's transfer goes through."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from kvnetd.config import load_config
from kvnetd.limits import LEAST_INFLIGHT_NBYTES, Limits, inflight_nbytes
from kvnetd.store.disk import free_nbytes, keep_free, require_room
from kvnetd.store.outbox import Parcel

from kvnet.discovery.table import Endpoint, PeerTable
from kvnet.errors import (
    CapacityError,
    ConfigError,
    MalformedMessage,
    PeerUnreachable,
    ReplayedMessage,
    StoreFull,
    TooBusy,
)
from kvnet.identity.keys import NodeKey
from kvnet.identity.peers import AddedPeer
from kvnet.paths import Home
from kvnet.plan import transfer_room_nbytes
from kvnet.transfer.messages import seal
from kvnet.transport.client import PeerClient
from kvnet.transport.limits import PortLimits
from kvnet.types import Compression
from tests.builders import RECEIVER, SENDER, STRANGER
from tests.gates import gate_of
from tests.kvnetd.nodes import AT, MEMORY, Node, deliver, inbox, listening, offer, services_of
from tests.transport.backend import MemoryOutbound
from tests.transport.test_budgets import REACHED as REACHED_AT_THE_PORT

ALICE = AddedPeer(SENDER.node_id, "alice", "", "")
CAROL = AddedPeer(STRANGER.node_id, "carol", "", "")
NEEDED = transfer_room_nbytes(MEMORY.header)
ROOM = NEEDED + (64 << 10)  # of one transfer in the spool, its offer and its log included

REACHED = {
    "max_transfer_nbytes": "test_memory_over_the_bound_of_a_transfer_is_refused",
    "max_inbound_transfers": "test_transfer_beyond_those_on_their_way_is_refused",
    "max_inbound_transfers_per_peer": "test_transfer_beyond_those_of_a_peer_is_refused_and_not_another_peers",
    "max_unfinished_nbytes": "test_what_is_unfinished_stays_within_its_bounds",
    "max_unfinished_nbytes_per_peer": "test_what_is_unfinished_stays_within_its_bounds",
    "max_unfinished_per_peer": "test_transfer_beyond_the_unfinished_ones_of_a_peer_is_refused",
    "max_unread_per_peer": "test_message_beyond_those_of_a_peer_that_nobody_read_is_refused",
    "max_inflight_nbytes": "test_memory_for_what_is_not_durable_is_as_set_or_a_part_of_what_is_free",
    "reserve_nbytes": "test_reserve_of_the_disk_is_as_set",
    "reserve_percent": "test_reserve_of_the_disk_is_as_set",
    "max_peers": "test_peer_beyond_the_most_is_refused",
    "max_mdns_entries": "test_stranger_beyond_the_most_takes_the_place_of_the_oldest",
    "max_outbox_entries": "test_entry_beyond_those_of_the_outbox_is_refused",
    "clock_skew_s": "test_offer_of_a_clock_that_is_further_off_is_refused",
    "offer_life_s": "test_offer_that_lives_longer_is_refused",
}


def test_every_limit_has_a_test_that_reaches_it() -> None:
    assert set(REACHED) | set(REACHED_AT_THE_PORT) == {spec.name for spec in fields(Limits)}
    assert [name for name in REACHED.values() if not callable(globals().get(name))] == []


@asynccontextmanager
async def bob(root: Path, **limits: int) -> AsyncIterator[Node]:
    """RECEIVER's node within these limits, listening; it has added Alice and Carol."""
    async with (
        services_of(root, RECEIVER, ALICE, CAROL, limits=limits) as services,
        listening(services) as node,
    ):
        yield node


async def push(node: Node, number: int, key: NodeKey = SENDER, **changes: Any) -> None:
    """Send MEMORY over the network, as its own transfer."""
    sent = offer(number, sender=key.node_id, **changes)
    gate = gate_of(key, RECEIVER)
    async with PeerClient(node.address, public=RECEIVER.public, peer="bob", gate=gate) as client:
        await client.push(MemoryOutbound(key, MEMORY, sent))


async def test_memory_over_the_bound_of_a_transfer_is_refused(tmp_path: Path) -> None:
    async with bob(tmp_path, max_transfer_nbytes=NEEDED - 1) as node:
        with pytest.raises(StoreFull):
            await push(node, 1)
    async with bob(tmp_path / "roomier", max_transfer_nbytes=NEEDED) as node:
        await push(node, 1)
        assert len(inbox(node.services)) == 1


async def test_transfer_beyond_those_on_their_way_is_refused(tmp_path: Path) -> None:
    async with bob(tmp_path, max_inbound_transfers=1) as node:
        first = await node.transfers.open_inbound(seal(SENDER, offer(1)))
        with pytest.raises(TooBusy, match="on their way in"):
            await push(node, 2, STRANGER)
        await first.close(None)
        await push(node, 2, STRANGER)


async def test_transfer_beyond_those_of_a_peer_is_refused_and_not_another_peers(tmp_path: Path) -> None:
    async with bob(tmp_path, max_inbound_transfers=8, max_inbound_transfers_per_peer=2) as node:
        begun = [await node.transfers.open_inbound(seal(SENDER, offer(number))) for number in (1, 2)]
        with pytest.raises(TooBusy, match="of alice"):
            await push(node, 3)
        await push(node, 4, STRANGER)
        for inbound in begun:
            await inbound.close(None)
        await push(node, 3)


@pytest.mark.parametrize("limit", ["max_unfinished_nbytes", "max_unfinished_nbytes_per_peer"])
async def test_what_is_unfinished_stays_within_its_bounds(tmp_path: Path, limit: str) -> None:
    async with bob(tmp_path, **{limit: ROOM}) as node:
        number = 0
        with pytest.raises(StoreFull, match="unfinished"):  # noqa: PT012  # somewhere on the way
            while number < 1000:  # each is given up half way: what came of it stays
                number += 1
                inbound = await node.transfers.open_inbound(seal(SENDER, offer(number)))
                await deliver(inbound, 0, 1, 2, wanted=Compression.LZ4)  # as `push` sends them
                await inbound.close(PeerUnreachable("gone"))
        assert number > 1
        with pytest.raises(StoreFull, match="unfinished"):
            await push(node, 2000)
        if limit == "max_unfinished_nbytes_per_peer":
            await push(node, 1, STRANGER)
        await push(node, 1)  # to finish one is no more than was promised


async def test_transfer_beyond_the_unfinished_ones_of_a_peer_is_refused(tmp_path: Path) -> None:
    async with bob(tmp_path, max_unfinished_per_peer=1) as node:
        inbound = await node.transfers.open_inbound(seal(SENDER, offer(1)))
        await inbound.close(PeerUnreachable("gone"))
        with pytest.raises(TooBusy, match="unfinished"):
            await push(node, 2)
        await push(node, 2, STRANGER)
        await push(node, 1)
        await push(node, 2)


async def test_message_beyond_those_of_a_peer_that_nobody_read_is_refused(tmp_path: Path) -> None:
    async with bob(tmp_path, max_unread_per_peer=1) as node:
        await push(node, 1)
        with pytest.raises(TooBusy, match="unread"):
            await push(node, 2)
        await push(node, 2, STRANGER)


async def test_memory_for_what_is_not_durable_is_as_set_or_a_part_of_what_is_free(tmp_path: Path) -> None:
    assert inflight_nbytes(Limits(max_inflight_nbytes=5)) == 5
    assert inflight_nbytes(Limits()) >= LEAST_INFLIGHT_NBYTES
    async with bob(tmp_path, max_inflight_nbytes=1) as node:  # chunk by chunk, and still all of it
        await push(node, 1)
        await push(node, 2, STRANGER)
        assert len(inbox(node.services)) == 2


def test_reserve_of_the_disk_is_as_set(tmp_path: Path) -> None:
    try:
        keep_free(nbytes=0, percent=10)
        all_of_it = free_nbytes(tmp_path)
        keep_free(nbytes=1 << 20, percent=90)
        assert 0 <= all_of_it - free_nbytes(tmp_path) <= 64 << 20  # others write to this disk too
        keep_free(nbytes=1 << 50, percent=90)
        with pytest.raises(StoreFull, match="free the disk"):
            require_room(tmp_path, all_of_it, what="test")
        keep_free(nbytes=1 << 50, percent=0)
        assert abs(all_of_it - free_nbytes(tmp_path)) <= 64 << 20
    finally:
        keep_free(nbytes=Limits().reserve_nbytes, percent=Limits().reserve_percent)


async def test_peer_beyond_the_most_is_refused(tmp_path: Path) -> None:
    async with bob(tmp_path, max_peers=2) as node:
        with pytest.raises(CapacityError, match="2 peers already"):
            node.services.peers.add(AddedPeer(RECEIVER.node_id, "dave", "", AT))
        await push(node, 1)


def test_stranger_beyond_the_most_takes_the_place_of_the_oldest() -> None:
    table, most = PeerTable(max_entries=3), 3
    table.set_known(["friend"])
    for name in ("friend", *(f"stranger{number}" for number in range(10))):
        table.observe(name, [Endpoint("10.0.0.1", 1)], ttl_s=60, now=0)
    assert len(table) == most
    assert "friend" in table


async def test_entry_beyond_those_of_the_outbox_is_refused(tmp_path: Path) -> None:
    async with bob(tmp_path, max_outbox_entries=1) as node:
        add, most = node.services.ledger.outbox.add, node.services.config.limits.max_outbox_entries
        memory = node.remember().id
        parcel = Parcel(SENDER.node_id, "alice", "", "", memory, "", "", with_text=False)
        await node.services.in_store(add, "out_1", parcel, now=AT, expires_at=AT, most=most)
        another = replace(parcel, note="another")
        with pytest.raises(TooBusy, match="at most 1"):
            await node.services.in_store(add, "out_2", another, now=AT, expires_at=AT, most=most)


async def test_offer_of_a_clock_that_is_further_off_is_refused(tmp_path: Path) -> None:
    ahead = {"created_at": offer().created_at + 60, "expires_at": offer().expires_at + 60}
    async with bob(tmp_path, clock_skew_s=10) as node:
        with pytest.raises(ReplayedMessage, match="set the clocks"):
            await push(node, 1, **ahead)
        await push(node, 2)
    async with bob(tmp_path / "patient", clock_skew_s=120) as node:
        await push(node, 1, **ahead)


async def test_offer_that_lives_longer_is_refused(tmp_path: Path) -> None:
    async with bob(tmp_path, offer_life_s=599) as node:
        with pytest.raises(MalformedMessage, match="longer than 599"):
            await push(node, 1)
        await push(node, 2, expires_at=offer().created_at + 599)


def test_limits_come_from_the_file_the_environment_and_the_caller_in_that_order(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.config.write_text("[limits]\nmax_calls = 1\nmax_peers = 2\nidle_deadline_s = 3\n")
    environ = {"KVNET_LIMITS_MAX_PEERS": "20", "KVNET_LIMITS_IDLE_DEADLINE_S": "30"}
    limits = load_config(home, {"limits": {"idle_deadline_s": 300}}, environ).limits
    assert (limits.max_calls, limits.max_peers, limits.idle_deadline_s) == (1, 20, 300)
    assert limits.max_streams == PortLimits().max_streams


@pytest.mark.parametrize("name", [spec.name for spec in fields(Limits)])
@pytest.mark.parametrize("value", ["-1", "1.5", '"many"', "true", "[]", str(1 << 60)])
def test_limit_that_is_no_number_in_its_range_is_refused_by_its_name(
    tmp_path: Path, name: str, value: str
) -> None:
    Home(tmp_path).config.write_text(f"[limits]\n{name} = {value}\n")
    with pytest.raises(ConfigError, match=rf"setting limits\.{name}: .* whole number from [01] to \d+"):
        load_config(Home(tmp_path), {}, {})


@pytest.mark.parametrize("source", ["file", "environment"])
def test_unknown_limit_is_refused_with_those_that_are_known(tmp_path: Path, source: str) -> None:
    environ = {"KVNET_LIMITS_MAX_CALL": "1"} if source == "environment" else {}
    Home(tmp_path).config.write_text("[limits]\nmax_call = 1\n" if source == "file" else "")
    with pytest.raises(ConfigError, match=r"limits: unknown key 'max_call'; known are .*max_calls"):
        load_config(Home(tmp_path), {}, environ)
