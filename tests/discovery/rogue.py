"""Sends any mDNS advert, true or not. For hostile tests."""

from __future__ import annotations

import random
import socket
from types import TracebackType
from typing import Self

# zeroconf re-exports these without listing them in __all__.
from zeroconf import DNSOutgoing, DNSRecord, ServiceInfo  # type: ignore[attr-defined]

from kvnet.discovery import SERVICE_TYPE, Advert

_GROUP = ("224.0.0.251", 5353)
_RESPONSE_FLAGS = 0x8400
_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"


def random_short_id(source: random.Random) -> str:
    """An id that no test uses twice."""
    return "".join(source.choices(_BASE32, k=13))


def advert_records(
    advert: Advert, address: str = "127.0.0.1", *, ttl_s: int = 4500, txt: bytes | None = None
) -> list[DNSRecord]:
    """The records of one announcement, as a node would send it; `ttl_s` 0 is a goodbye."""
    info = ServiceInfo(
        SERVICE_TYPE,
        advert.instance_name,
        port=advert.port,
        properties=advert.to_txt() if txt is None else txt,
        server=advert.host_name,
        parsed_addresses=[address],
        host_ttl=ttl_s,
        other_ttl=ttl_s,
    )
    return [info.dns_pointer(), info.dns_service(), info.dns_text(), *info.dns_addresses()]


def packet_of(*records: DNSRecord) -> bytes:
    """One response with these records."""
    message = DNSOutgoing(_RESPONSE_FLAGS)
    for record in records:
        message.add_answer_at_time(record, 0)
    (packet,) = message.packets()
    return bytes(packet)


def advert_packet(
    advert: Advert, address: str = "127.0.0.1", *, ttl_s: int = 4500, txt: bytes | None = None
) -> bytes:
    """One announcement in one packet."""
    return packet_of(*advert_records(advert, address, ttl_s=ttl_s, txt=txt))


class Rogue:
    """A multicast sender on the interface with this address: loopback, if none is given."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        interface = socket.inet_aton(address)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, packet: bytes) -> None:
        """Multicast a packet."""
        self._socket.sendto(packet, _GROUP)
