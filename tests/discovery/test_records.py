"""Records become sightings, and zeroconf's cache keeps nothing for strangers."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from ipaddress import IPv4Interface

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zeroconf import DNSIncoming, IPVersion, Zeroconf  # type: ignore[attr-defined]  # not in its __all__
from zeroconf.asyncio import AsyncZeroconf

from kvnet.discovery import Advert, Endpoint, Refusal
from kvnet.discovery.advert import is_short_id
from kvnet.discovery.records import SWEEP_AFTER_RECORDS, RecordReader, Sighting
from tests.discovery.rogue import advert_packet, advert_records, packet_of, random_short_id

_PEER = Advert("b" * 13, "home", 1, 7421)


class _Bench:
    """A reader on a zeroconf that is fed by hand."""

    def __init__(self, zeroconf: Zeroconf) -> None:
        self.zeroconf = zeroconf
        self.sightings: list[Sighting] = []
        self.goodbyes: list[str] = []
        self.listed: set[str] = set()
        self.reader = RecordReader(
            Advert("a" * 13, "home", 1, 7420),
            on_sighting=self.sightings.append,
            on_goodbye=self.goodbyes.append,
            is_listed=self.listed.__contains__,
        )
        self.reader.networks = (IPv4Interface("10.0.0.1/24"),)
        zeroconf.async_add_listener(self.reader, None)

    def feed(self, packet: bytes) -> None:
        message = DNSIncoming(packet)
        if message.valid and not message.is_query():
            self.zeroconf.record_manager.async_updates_from_response(message)


@pytest.fixture
async def bench() -> AsyncIterator[_Bench]:
    """A reader that hears only what the test feeds it."""
    zeroconf = AsyncZeroconf(interfaces=["127.0.0.1"], ip_version=IPVersion.V4Only)
    await zeroconf.zeroconf.async_wait_for_start()
    yield _Bench(zeroconf.zeroconf)
    await zeroconf.async_close()


async def test_one_packet_is_one_sighting_with_the_shortest_ttl(bench: _Bench) -> None:
    bench.feed(advert_packet(_PEER, "10.0.0.2", ttl_s=90))
    assert bench.sightings == [Sighting(_PEER.short_id, (Endpoint("10.0.0.2", 7421),), 90)]


async def test_records_in_any_order_and_packet_are_one_advert(bench: _Bench) -> None:
    records = advert_records(_PEER, "10.0.0.2", ttl_s=90)
    random.Random(3).shuffle(records)
    for record in records:
        bench.feed(packet_of(record))
    assert {sighting.endpoints for sighting in bench.sightings} == {(Endpoint("10.0.0.2", 7421),)}


async def test_only_addresses_of_our_networks_count(bench: _Bench) -> None:
    for address in ("8.8.8.8", "127.0.0.1", "10.0.1.2", "10.0.0.255", "224.0.0.1", "0.0.0.0"):  # noqa: S104
        bench.feed(advert_packet(Advert(random_short_id(random.Random(address)), "home", 1, 1), address))
    assert bench.sightings == []
    assert bench.reader.refusals == {Refusal.OFF_LINK: 6}


async def test_a_packet_of_two_hundred_pairs_names_eight_endpoints(bench: _Bench) -> None:
    records = []
    for index in range(15):
        advert = Advert(_PEER.short_id, "home", 1, 1000 + index)
        records += advert_records(advert, f"10.0.0.{index + 2}")
    bench.feed(packet_of(*records))
    assert [len(sighting.endpoints) for sighting in bench.sightings] == [8]


async def test_our_own_advert_and_a_rogue_with_our_name_are_not_peers(bench: _Bench) -> None:
    bench.feed(advert_packet(Advert("a" * 13, "home", 1, 666), "10.0.0.66"))
    bench.feed(advert_packet(Advert("a" * 13, "home", 1, 666), "10.0.0.66", ttl_s=0))
    assert (bench.sightings, bench.goodbyes) == ([], [])


async def test_the_cache_keeps_pointers_of_listed_peers_only(bench: _Bench) -> None:
    bench.feed(advert_packet(_PEER, "10.0.0.2"))
    bench.listed.add(_PEER.short_id)
    source = random.Random(5)
    for _ in range(3000):
        bench.feed(advert_packet(Advert(random_short_id(source), "home", 1, 1), "10.0.0.9"))
    num_cached = sum(len(records) for records in bench.zeroconf.cache.cache.values())
    assert num_cached <= SWEEP_AFTER_RECORDS + 8
    bench.feed(advert_packet(_PEER, "10.0.0.2", ttl_s=0))
    assert bench.goodbyes == [_PEER.short_id]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(noise=st.binary(max_size=60), at=st.integers(0, 250))
async def test_damaged_packets_raise_nothing_and_name_only_ids(bench: _Bench, noise: bytes, at: int) -> None:
    packet = advert_packet(_PEER, "10.0.0.2")
    bench.sightings.clear()
    bench.feed(packet[:at] + noise + packet[at + len(noise) :])
    # Damage may turn one id into another, never into something that is no id.
    assert all(is_short_id(sighting.short_id) for sighting in bench.sightings)
    assert all(is_short_id(short_id) for short_id in bench.goodbyes)
