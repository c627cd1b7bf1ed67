"""Discovery: one node's presence on the LAN. Knows zeroconf, sockets and the clock; decides nothing.

What is an advert decides `advert`, who is listed `table`, where to be found `interfaces`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping

from zeroconf import DNSOutgoing, DNSQuestion, IPVersion  # type: ignore[attr-defined]  # not in its __all__
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from kvnet.discovery.advert import SERVICE_TYPE, Advert, Refusal
from kvnet.discovery.interfaces import Link, choose_links, list_links
from kvnet.discovery.records import RecordReader, Sighting
from kvnet.discovery.table import MAX_ENTRIES, Endpoint, Event, PeerTable
from kvnet.errors import PortInUse

DEFAULT_TTL_S = 120  # RFC 6762 §10 for records that name a host
_OTHER_TTL_S = 4500  # the same, for the rest
_TICK_S = 0.25
_START_TIMEOUT_S = 5.0
_QUERY_FLAGS, _RESPONSE_FLAGS, _TYPE_PTR, _CLASS_IN = 0, 0x8400, 12, 1
# Soon after a (re)start, then often enough that an advert is renewed twice before it runs out.
_FIRST_QUERY_GAPS_S = (0.0, 1.0, 2.0, 4.0)
_MIN_QUERY_GAP_S = 1.0
_STEADY_QUERY_OF_TTL = (0.35, 0.42)

_log = logging.getLogger(__name__)


class Discovery:
    """Advertise this node and list the others, from `start()` to `close()`.

    `on_event` is called on the event loop and must neither block nor raise. A flood of strangers
    means a flood of events: act on ids you know, look up the rest in `peers()`. Without `advertises` it only
    listens, in the namespace of `advert`.
    """

    def __init__(
        self,
        advert: Advert,
        *,
        interfaces: tuple[str, ...] | None = None,
        on_event: Callable[[Event], None],
        max_entries: int = MAX_ENTRIES,
        ttl_s: int = DEFAULT_TTL_S,
        advertises: bool = True,
    ) -> None:
        self._advert = advert
        self._advertises = advertises
        self._interfaces = interfaces
        self._on_event = on_event
        self._ttl_s = ttl_s
        self._table = PeerTable(max_entries=max_entries)
        self._reader = RecordReader(
            advert,
            on_sighting=self._on_sighting,
            on_goodbye=self._on_goodbye,
            is_listed=self._table.__contains__,
        )
        self._links: tuple[Link, ...] = ()
        self._zeroconf: AsyncZeroconf | None = None
        self._announcing: asyncio.Future[object] | None = None
        self._pulse_task: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()
        self._num_queries = 0
        self._next_query_at = 0.0
        self._last_query_at = 0.0

    @property
    def links(self) -> tuple[Link, ...]:
        """The interfaces in use; empty while none of the chosen ones is up."""
        return self._links

    @property
    def refusals(self) -> Mapping[Refusal, int]:
        """How many adverts were ignored, by reason."""
        return dict(self._reader.refusals)

    def peers(self) -> dict[str, tuple[Endpoint, ...]]:
        """Every peer heard of now, by short id, the endpoint to dial first in front."""
        return self._table.peers()

    def set_known(self, short_ids: Iterable[str]) -> None:
        """Name the peers whose entries no stranger's advert may push out."""
        self._table.set_known(short_ids)

    def confirm(self, short_id: str, endpoint: Endpoint) -> None:
        """The handshake proved that the peer is at `endpoint`."""
        self._table.confirm(short_id, endpoint)

    def doubt(self, short_id: str, endpoint: Endpoint) -> None:
        """Nobody answered at `endpoint`, or not the peer."""
        self._table.doubt(short_id, endpoint)

    async def start(self) -> None:
        """Advertise and listen. Without a usable interface it waits for one (see `refresh`).

        Raises ConfigError on an interface that does not exist, PortInUse if UDP 5353 is taken by a
        process that does not share it.
        """
        links = choose_links(list_links(), self._interfaces)
        async with self._changing:
            try:
                await self._open(links)
            except OSError as exc:
                raise PortInUse(
                    f"mDNS cannot use UDP port 5353 ({exc.strerror}); "
                    "stop what holds it alone, or turn discovery off"
                ) from exc
        self._pulse_task = asyncio.create_task(self._pulse(), name="kvnet-discovery")
        _log.info("discovery.started links=%s", ",".join(link.name for link in links) or "none")

    async def refresh(self) -> bool:
        """Look at the interfaces again and follow what changed; call it every few seconds.

        Returns whether anything had changed. A new set of addresses reopens the sockets; a carrier
        that came back announces and asks again.
        """
        if self._pulse_task is None:
            return False
        async with self._changing:
            links = choose_links(list_links(), self._interfaces, must_exist=False)
            if links == self._links:
                return False
            _log.info("discovery.moved links=%s", ",".join(link.name for link in links) or "none")
            if _addresses(links) == _addresses(self._links):
                self._links = links
                await self._announce_again()
                return True
            # zeroconf can swap interfaces in place, but not an address within one: the interface's
            # group membership outlives the old address, and the new one's join then fails.
            await self._shut(says_goodbye=False)
            try:
                await self._open(links)
            except OSError as exc:
                _log.warning("discovery.move.failed error=%s", exc)
            return True

    async def close(self) -> None:
        """Say goodbye and stop. No event comes after it."""
        pulse, self._pulse_task = self._pulse_task, None
        if pulse is not None:
            pulse.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pulse
        async with self._changing:
            await self._shut(says_goodbye=True)

    async def _open(self, links: tuple[Link, ...]) -> None:
        """Open sockets on `links` and announce. On OSError nothing is open and `links` is empty."""
        self._links = ()
        self._reader.networks = ()
        if links:
            # One address per interface: joining the group a second time on the same one fails.
            senders = [str(link.addresses[0].ip) for link in links]
            self._zeroconf = AsyncZeroconf(interfaces=senders, ip_version=IPVersion.V4Only)
            await self._zeroconf.zeroconf.async_wait_for_start(_START_TIMEOUT_S)
            self._reader.networks = tuple(ip for link in links for ip in link.addresses)
            self._zeroconf.zeroconf.async_add_listener(self._reader, None)
            if self._advertises:
                # No probing for our name: it is derived from our key, and a rogue could answer the probe.
                announcing = await self._zeroconf.async_register_service(
                    self._service_info(links), cooperating_responders=True
                )
                self._announcing = asyncio.ensure_future(announcing)
        self._links = links
        self._ask_soon()

    async def _shut(self, *, says_goodbye: bool) -> None:
        zeroconf, self._zeroconf = self._zeroconf, None
        announcing, self._announcing = self._announcing, None
        if announcing is not None:
            announcing.cancel()
            await asyncio.wait([announcing])
        if zeroconf is None:
            return
        zeroconf.zeroconf.async_remove_listener(self._reader)
        if says_goodbye and self._advertises:
            await zeroconf.async_unregister_all_services()
            # An answer queued before may have gone out between these goodbyes, and their receivers
            # ignore repeats of a packet within a second: one more, of another shape, has the last word.
            last_word = DNSOutgoing(_RESPONSE_FLAGS)
            last_word.add_answer_at_time(self._service_info((), other_ttl_s=0).dns_pointer(), 0)
            zeroconf.zeroconf.async_send(last_word)
        else:
            registry = zeroconf.zeroconf.registry
            registry.async_remove(registry.async_get_service_infos())
        await zeroconf.async_close()

    async def _announce_again(self) -> None:
        if self._zeroconf is not None and self._advertises:
            announcing = await self._zeroconf.async_update_service(self._service_info(self._links))
            if self._announcing is not None:
                self._announcing.cancel()
            self._announcing = asyncio.ensure_future(announcing)
        self._ask_soon()

    def _service_info(self, links: tuple[Link, ...], *, other_ttl_s: int = _OTHER_TTL_S) -> AsyncServiceInfo:
        return AsyncServiceInfo(
            SERVICE_TYPE,
            self._advert.instance_name,
            port=self._advert.port,
            properties=self._advert.to_txt(),
            server=self._advert.host_name,
            parsed_addresses=[str(ip.ip) for link in links for ip in link.addresses],
            host_ttl=self._ttl_s,
            other_ttl=other_ttl_s,
        )

    async def _pulse(self) -> None:
        """The clock: lets entries expire and asks who is there."""
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            self._emit(self._table.expire(now))
            if now >= self._next_query_at:
                self._ask(now)

    def _ask_soon(self) -> None:
        self._num_queries = 0
        self._next_query_at = time.monotonic()

    def _ask(self, now: float) -> None:
        """Ask everybody to answer, also those we know: the answers renew the table.

        Never for a unicast answer: two nodes on one machine share the port, and the kernel would
        give it to either.
        """
        self._num_queries += 1
        steady_s = self._ttl_s * random.uniform(*_STEADY_QUERY_OF_TTL)  # noqa: S311 (jitter, no secret)
        gaps = _FIRST_QUERY_GAPS_S
        gap_s = gaps[self._num_queries] if self._num_queries < len(gaps) else steady_s
        self._next_query_at = now + min(gap_s, steady_s)
        self._last_query_at = now
        if self._zeroconf is None:
            return
        query = DNSOutgoing(_QUERY_FLAGS)
        query.add_question(DNSQuestion(SERVICE_TYPE, _TYPE_PTR, _CLASS_IN))
        query.add_answer_at_time(self._service_info(self._links).dns_pointer(), 0)  # spares our own answer
        self._zeroconf.zeroconf.async_send(query)

    def _on_sighting(self, sighting: Sighting) -> None:
        now = time.monotonic()
        events = self._table.observe(sighting.short_id, sighting.endpoints, ttl_s=sighting.ttl_s, now=now)
        if sighting.short_id not in self._table:
            self._reader.refusals[Refusal.TABLE_FULL] += 1
        self._emit(events)

    def _on_goodbye(self, short_id: str) -> None:
        now = time.monotonic()
        if self._table.goodbye(short_id, now=now):
            # At most one question a second, however many goodbyes come.
            self._next_query_at = min(self._next_query_at, max(now, self._last_query_at + _MIN_QUERY_GAP_S))

    def _emit(self, events: Iterable[Event]) -> None:
        for event in events:
            self._on_event(event)


def _addresses(links: tuple[Link, ...]) -> dict[str, object]:
    return {link.name: link.addresses for link in links}
