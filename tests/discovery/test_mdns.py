"""Nodes on the loopback interface find and lose each other, and rogues do no harm."""

from __future__ import annotations

import asyncio
import gc
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kvnet.discovery import Advert, Discovery, Endpoint, Event, PeerLost, PeerSeen, Refusal
from kvnet.errors import ConfigError
from tests.discovery.rogue import Rogue, advert_packet, advert_records, packet_of, random_short_id

pytestmark = pytest.mark.timeout(60)

_FOUND_S = 5.0


class _Lab:
    """Starts nodes in a namespace of the test's own, so that other daemons here do not meddle."""

    def __init__(self) -> None:
        self.random = random.Random(secrets.randbits(64))
        self.namespace = random_short_id(self.random)
        self.events: dict[str, list[Event]] = {}
        self._nodes: list[Discovery] = []

    def advert(self, short_id: str | None = None, **changed: object) -> Advert:
        fields = {"namespace": self.namespace, "protocol_version": 1, "port": self.random.randint(1, 65535)}
        return Advert(short_id or random_short_id(self.random), **(fields | changed))  # type: ignore[arg-type]

    async def start(self, advert: Advert | None = None, **options: object) -> Discovery:
        advert = advert or self.advert()
        events = self.events.setdefault(advert.short_id, [])
        node = Discovery(advert, interfaces=("lo",), on_event=events.append, **options)  # type: ignore[arg-type]
        self._nodes.append(node)
        await node.start()
        return node

    async def close(self) -> None:
        await asyncio.gather(*(node.close() for node in self._nodes))


@pytest.fixture
async def lab() -> AsyncIterator[_Lab]:
    """Nodes that are closed when the test ends."""
    built = _Lab()
    yield built
    await built.close()


async def _until(condition: Callable[[], bool], timeout_s: float = _FOUND_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (the condition is another object's state)
            await asyncio.sleep(0.02)


async def test_nodes_find_each_other_leave_and_come_back(lab: _Lab) -> None:
    left, right = lab.advert(), lab.advert()
    events = lab.events.setdefault(left.short_id, [])
    left_node, right_node = await lab.start(left), await lab.start(right)
    there = (Endpoint("127.0.0.1", right.port),)
    await _until(lambda: left_node.peers() == {right.short_id: there})
    await _until(lambda: left.short_id in right_node.peers())
    await right_node.close()
    await _until(lambda: left_node.peers() == {})
    moved = lab.advert(right.short_id)
    await lab.start(moved)
    await _until(lambda: right.short_id in left_node.peers())
    again = (Endpoint("127.0.0.1", moved.port),)
    expected = [PeerSeen(right.short_id, there), PeerLost(right.short_id), PeerSeen(right.short_id, again)]
    assert events == expected


async def test_a_node_that_only_looks_sees_and_is_not_seen(lab: _Lab) -> None:
    advert = lab.advert()
    looking = await lab.start(advertises=False)
    seen = await lab.start(advert)
    other = await lab.start()
    await _until(lambda: advert.short_id in looking.peers() and advert.short_id in other.peers())
    await _until(lambda: len(seen.peers()) == 1)
    assert len(other.peers()) == 1
    await looking.close()
    assert len(seen.peers()) == len(other.peers()) == 1


async def test_a_peer_that_stays_is_never_lost(lab: _Lab) -> None:
    left, right = await lab.start(ttl_s=2), await lab.start(ttl_s=2)
    await _until(lambda: len(left.peers()) == len(right.peers()) == 1)
    await asyncio.sleep(2.5)
    assert [type(event) for events in lab.events.values() for event in events] == [PeerSeen, PeerSeen]


async def test_other_namespaces_and_versions_are_not_seen(lab: _Lab) -> None:
    node = await lab.start()
    await lab.start(lab.advert(namespace="elsewhere"))
    await lab.start(lab.advert(protocol_version=2))
    await _until(lambda: {Refusal.OTHER_NAMESPACE, Refusal.OTHER_VERSION} <= set(node.refusals))
    assert node.peers() == {}


async def test_a_malformed_advert_is_counted_and_ignored(lab: _Lab) -> None:
    node = await lab.start()
    advert = lab.advert()
    with Rogue() as rogue:
        rogue.send(advert_packet(advert, txt=b"\xff\xff"))
        rogue.send(advert_packet(lab.advert(), txt=b"\x05a=\xff\xff\xff"))
        rogue.send(advert_packet(lab.advert(), txt=(b"\x64x=" + b"y" * 98) * 5))
        rogue.send(advert_packet(lab.advert(), "8.8.8.8"))
        rogue.send(b"\x00\x00\x84\x00\x00\x00\xff\xff" + b"\xc0\x0c" * 20)
        await _until(lambda: sum(node.refusals.values()) >= 4)
    assert node.refusals[Refusal.TXT_MALFORMED] == 2
    assert node.refusals[Refusal.TXT_TOO_LONG] == 1
    assert node.refusals[Refusal.OFF_LINK] == 1  # nobody sends us to dial a place beyond the LAN
    assert node.peers() == {}


async def test_a_flood_of_rogues_takes_little_memory_and_hides_no_known_peer(lab: _Lab) -> None:
    num_adverts = 10_000
    friend, late_friend = lab.advert(), lab.advert()
    own = lab.advert()
    node = await lab.start(own)
    node.set_known([friend.short_id, late_friend.short_id])
    await lab.start(friend)
    await _until(lambda: friend.short_id in node.peers())
    gc.collect()
    before_nbytes = _rss_nbytes()
    with Rogue() as rogue:
        for index in range(num_adverts):
            rogue.send(advert_packet(lab.advert()))
            await asyncio.sleep(0)  # lets the nodes read one packet each
            if index == num_adverts // 2:
                start = time.monotonic()
                await lab.start(late_friend)
    await _until(lambda: late_friend.short_id in node.peers())
    assert time.monotonic() - start < 10
    assert friend.short_id in node.peers()
    assert len(node.peers()) == 512
    assert _rss_nbytes() - before_nbytes < 20 * 2**20
    num_heard = sum(isinstance(event, PeerSeen) for event in lab.events[own.short_id])
    assert num_heard > 0.2 * num_adverts  # the kernel drops many on a busy machine; it was a flood still


async def test_a_rogue_that_claims_a_known_id_is_one_candidate_among_others(lab: _Lab) -> None:
    friend = lab.advert()
    node = await lab.start()
    node.set_known([friend.short_id])
    await lab.start(friend)
    true_endpoint = Endpoint("127.0.0.1", friend.port)
    await _until(lambda: friend.short_id in node.peers())
    node.confirm(friend.short_id, true_endpoint)
    with Rogue() as rogue:
        for index in range(50):
            rogue.send(advert_packet(lab.advert(friend.short_id), f"127.6.6.{index + 1}"))
        await _until(lambda: len(node.peers()[friend.short_id]) == 8)
        await asyncio.sleep(0.1)
    endpoints = node.peers()[friend.short_id]
    assert endpoints[0] == true_endpoint
    assert len(endpoints) == 8


async def test_a_goodbye_in_another_nodes_name_is_contradicted(lab: _Lab) -> None:
    friend = lab.advert()
    node = await lab.start()
    await lab.start(friend)
    await _until(lambda: friend.short_id in node.peers())
    with Rogue() as rogue:
        for _ in range(12):
            rogue.send(advert_packet(friend, ttl_s=0))
            await asyncio.sleep(0.25)
    assert friend.short_id in node.peers()
    events = [event for node_events in lab.events.values() for event in node_events]
    assert not any(isinstance(event, PeerLost) for event in events)


async def test_an_advert_in_pieces_is_put_together(lab: _Lab) -> None:
    """A reflector may send the records of one advert in packets of their own."""
    node = await lab.start()
    friend = lab.advert()
    with Rogue() as rogue:
        for record in reversed(advert_records(friend)):
            rogue.send(packet_of(record))
        await _until(lambda: friend.short_id in node.peers())
    assert node.peers()[friend.short_id] == (Endpoint("127.0.0.1", friend.port),)


async def test_nothing_happens_after_close_and_closing_twice_is_fine(lab: _Lab) -> None:
    advert = lab.advert()
    node = await lab.start(advert)
    await node.close()
    await node.close()
    assert not await node.refresh()
    await lab.start()
    await asyncio.sleep(0.3)
    assert lab.events[advert.short_id] == []


async def test_an_unknown_interface_stops_the_start(lab: _Lab) -> None:
    node = Discovery(lab.advert(), interfaces=("nosuch0",), on_event=lambda event: None)
    with pytest.raises(ConfigError, match="nosuch0"):
        await node.start()
    await node.close()


def _rss_nbytes() -> int:
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * 4096
