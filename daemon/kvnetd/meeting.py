"""Where two nodes that pair meet on the LAN: an advert for two minutes that says a code's number, no more.

It goes into a namespace of its own under a random name, so it tells nobody which node pairs, and other nodes'
tables do not see it. A hint like any advert: whoever answers there still has to prove the code.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

from kvnet.discovery import SHORT_ID_LENGTH, Advert, Discovery, Endpoint, choose_links, list_links
from kvnet.errors import ConfigError, KvnetError
from kvnet.identity.codes import PairingCode
from kvnet.identity.pairing_messages import PAIRING_VERSION
from kvnet.types import base32
from kvnetd.config import Config

SEARCH_S = 10.0
_POLL_S = 0.1
_DISCARD_PORT = 9  # stands where a port must, when nothing is advertised
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  # compared, not bound


class Candidate(NamedTuple):
    """Somebody who may have given out the code: the random name of its advert, and one of its endpoints."""

    name: str
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class MeetingPlace:
    """Where the nodes of a namespace meet by a code; `interfaces` are those that this node uses."""

    namespace: str
    code: PairingCode
    interfaces: tuple[str, ...] | None

    @asynccontextmanager
    async def advertised(self, port: int) -> AsyncIterator[None]:
        """Meanwhile, whoever has the code finds this port."""
        discovery = Discovery(self._advert(port), interfaces=self.interfaces, on_event=lambda event: None)
        async with _running(discovery):
            yield

    async def candidates(self) -> AsyncGenerator[Candidate, None]:
        """Whoever is advertised here, as it is heard, for ten seconds; nobody is told who looks."""
        discovery = Discovery(
            self._advert(_DISCARD_PORT),
            interfaces=self.interfaces,
            on_event=lambda event: None,
            advertises=False,
        )
        told: set[Candidate] = set()
        async with _running(discovery):
            for _ in range(int(SEARCH_S / _POLL_S)):
                heard = discovery.peers().items()
                now = [Candidate(name, endpoint) for name, endpoints in heard for endpoint in endpoints]
                for candidate in now:
                    if candidate not in told:
                        told.add(candidate)
                        yield candidate
                await asyncio.sleep(_POLL_S)

    def _advert(self, port: int) -> Advert:
        """Under a new name each time; the namespace as a digest, for it may be long."""
        digest = hashlib.sha256(self.namespace.encode()).hexdigest()
        place = f"pair/{digest[:16]}/{self.code.number}"
        return Advert(base32(secrets.token_bytes(16))[:SHORT_ID_LENGTH], place, PAIRING_VERSION, port)


@asynccontextmanager
async def _running(discovery: Discovery) -> AsyncIterator[None]:
    """From start to close, whole, however often whoever waits for either is cancelled: sockets hang on it."""
    starting = asyncio.ensure_future(discovery.start())
    try:
        await asyncio.shield(starting)
        yield
    finally:
        await asyncio.shield(_end(discovery, starting))


async def _end(discovery: Discovery, starting: asyncio.Future[None]) -> None:
    with suppress(KvnetError):  # it was raised where it was started
        await starting
    await discovery.close()


def interfaces_of(config: Config) -> tuple[str, ...] | None:
    """Advertise only where the peer port can be reached: None is everywhere, () is nowhere.

    mDNS here is IPv4; a node on an IPv6 address is found by its address alone. Raises ConfigError.
    """
    if config.interfaces:
        return config.interfaces
    try:
        found = socket.getaddrinfo(config.listen_host, None, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise ConfigError(f"setting listen: {config.listen_host} has no address ({exc.strerror})") from exc
    addresses = tuple(str(entry[4][0]) for entry in found if entry[0] == socket.AF_INET)
    return None if _EVERYWHERE[0] in addresses else addresses


def own_addresses(host: str, interfaces: tuple[str, ...] | None) -> tuple[str, ...]:
    """Where a listener on `host` can be dialled."""
    if host not in _EVERYWHERE:
        return (host,)
    links = choose_links(list_links(), interfaces)
    return tuple(str(ip.ip) for link in links for ip in link.addresses) or ("127.0.0.1",)
