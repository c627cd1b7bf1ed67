"""Turn a stream of DNS records into sightings of peers. Knows zeroconf's record classes; no sockets.

zeroconf's own browser keeps a timer for every name it ever heard and repeats every cached name in
its questions, so a flood of adverts grows both; this reader keeps nothing but counters, and sweeps
zeroconf's cache of what belongs to nobody in the table.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface
from typing import TypeVar

# zeroconf re-exports these without listing them in __all__.
from zeroconf import (  # type: ignore[attr-defined]
    DNSAddress,
    DNSPointer,
    DNSRecord,
    DNSService,
    DNSText,
    RecordUpdate,
    RecordUpdateListener,
    Zeroconf,
)

from kvnet.discovery.advert import (
    SERVICE_TYPE,
    Advert,
    Refusal,
    parse_service,
    short_id_of_host,
    short_id_of_instance,
)
from kvnet.discovery.table import MAX_ENDPOINTS, Endpoint

_TYPE_A = 1
# New records between two sweeps of zeroconf's cache: bounds what strangers hold of our memory.
SWEEP_AFTER_RECORDS = 512

_Record = TypeVar("_Record", bound=DNSRecord)


@dataclass(frozen=True, slots=True)
class Sighting:
    """A well-formed advert for `short_id` was heard."""

    short_id: str
    endpoints: tuple[Endpoint, ...]
    ttl_s: float


@dataclass(slots=True)
class _Batch:
    """The records of one packet, by the name they hang on."""

    services: dict[str, list[DNSService]] = field(default_factory=dict)
    texts: dict[str, list[DNSText]] = field(default_factory=dict)
    addresses: dict[str, list[DNSAddress]] = field(default_factory=dict)
    short_ids: set[str] = field(default_factory=set)
    goodbyes: set[str] = field(default_factory=set)


class RecordReader(RecordUpdateListener):
    """Listens to zeroconf and reports sightings and goodbyes; counts what it refuses."""

    def __init__(
        self,
        own: Advert,
        *,
        on_sighting: Callable[[Sighting], None],
        on_goodbye: Callable[[str], None],
        is_listed: Callable[[str], bool],
    ) -> None:
        self.refusals: Counter[Refusal] = Counter()
        self.networks: tuple[IPv4Interface, ...] = ()
        self._own = own
        self._on_sighting = on_sighting
        self._on_goodbye = on_goodbye
        self._is_listed = is_listed
        self._batch = _Batch()
        self._num_new_records = 0
        self._zeroconf: Zeroconf | None = None

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        """Take in one packet's records; zeroconf calls this before it caches them."""
        self._zeroconf = zc
        for update in records:
            record = update.new
            if update.old is None:
                self._num_new_records += 1
            if record.ttl == 0 and isinstance(record, DNSPointer) and record.name == SERVICE_TYPE:
                short_id = short_id_of_instance(record.alias)
                if short_id is not None:
                    self._batch.goodbyes.add(short_id)
            # zeroconf also reports what its cache lets expire; the table has its own clock for that.
            if not record.is_expired(now):
                self._collect(record)

    def async_update_records_complete(self) -> None:
        """Judge the packet; zeroconf calls this after it cached the records."""
        batch, self._batch = self._batch, _Batch()
        for short_id in batch.goodbyes - {self._own.short_id}:
            self._on_goodbye(short_id)
        for short_id in batch.short_ids - {self._own.short_id}:
            outcome = self._read(short_id, batch)
            if isinstance(outcome, Refusal):
                self.refusals[outcome] += 1
            elif outcome is not None:
                self._on_sighting(outcome)
        if self._num_new_records > SWEEP_AFTER_RECORDS:
            self._sweep()

    def _collect(self, record: DNSRecord) -> None:
        if isinstance(record, DNSAddress):
            short_id = short_id_of_host(record.name) if record.type == _TYPE_A else None
            if short_id is not None:
                self._batch.addresses.setdefault(record.name, []).append(record)
                self._batch.short_ids.add(short_id)
            return
        if not isinstance(record, DNSService | DNSText) or not record.name.endswith("." + SERVICE_TYPE):
            return
        short_id = short_id_of_instance(record.name)
        if short_id is None:
            self.refusals[Refusal.BAD_SHORT_ID] += 1
            return
        self._batch.short_ids.add(short_id)
        if isinstance(record, DNSService):
            self._batch.services.setdefault(record.name, []).append(record)
        else:
            self._batch.texts.setdefault(record.name, []).append(record)

    def _read(self, short_id: str, batch: _Batch) -> Sighting | Refusal | None:
        """Judge one id's records, those the packet lacks taken from the cache; None: not all there yet."""
        instance, host = f"{short_id}.{SERVICE_TYPE}", f"{short_id}.local."
        services = batch.services.get(instance) or self._cached(instance, DNSService)
        texts = batch.texts.get(instance) or self._cached(instance, DNSText)
        addresses = batch.addresses.get(host) or self._cached(host, DNSAddress)
        if not services or not texts:
            return None
        refusal: Refusal | None = None
        ports: dict[int, float] = {}
        # A rogue may add records of its own to a real peer's names: one good pair is enough.
        for service, text in itertools.islice(itertools.product(services, texts), MAX_ENDPOINTS**2):
            parsed = parse_service(instance, service.server, service.port, text.text, own=self._own)
            if isinstance(parsed, Refusal):
                refusal = refusal or parsed
            else:
                ports[parsed.port] = service.ttl
        if not ports:
            return refusal
        if not addresses:
            return None
        on_link = [record for record in addresses if self._is_on_link(record.address)]
        if not on_link:
            return Refusal.OFF_LINK
        pairs = itertools.islice(itertools.product(ports.items(), on_link), MAX_ENDPOINTS)
        found = [(Endpoint(_to_text(record), port), min(ttl, record.ttl)) for (port, ttl), record in pairs]
        return Sighting(short_id, tuple(endpoint for endpoint, _ in found), min(ttl for _, ttl in found))

    def _cached(self, name: str, record_class: type[_Record]) -> list[_Record]:
        if self._zeroconf is None:
            return []
        records = self._zeroconf.cache.async_entries_with_name(name)
        return [record for record in records if isinstance(record, record_class)]

    def _is_on_link(self, packed: bytes) -> bool:
        """Whether we reach this address without a router: the LAN, not a place a stranger sends us to."""
        if len(packed) != 4:
            return False
        address = IPv4Address(packed)
        for ip in self.networks:
            if address in ip.network:
                return ip.network.prefixlen >= 31 or address != ip.network.broadcast_address
        return False

    def _sweep(self) -> None:
        """Drop every cached record but the pointers of listed peers, whose goodbyes we want to hear.

        zeroconf reports a goodbye only for a record it has; everything else the table holds itself.
        """
        self._num_new_records = 0
        if self._zeroconf is None:
            return
        cache = self._zeroconf.cache
        unwanted: list[DNSRecord] = []
        for name in cache.names():
            unwanted += [record for record in cache.async_entries_with_name(name) if not self._keeps(record)]
        cache.async_remove_records(unwanted)

    def _keeps(self, record: DNSRecord) -> bool:
        if not isinstance(record, DNSPointer) or record.name != SERVICE_TYPE:
            return False
        short_id = short_id_of_instance(record.alias)
        return short_id is not None and (short_id == self._own.short_id or self._is_listed(short_id))


def _to_text(record: DNSAddress) -> str:
    return str(IPv4Address(record.address))
