"""Reading for peers, both halves: this node's model reads a peer's texts, or a peer's model reads ours."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import aclosing

from kvnet.errors import (
    KvnetError,
    MalformedMessage,
    NotPermitted,
    PeerError,
    PeerNotAdded,
    ReplayedMessage,
    TooBusy,
)
from kvnet.identity.keys import NodeKey
from kvnet.identity.peers import AddedPeer, Permission
from kvnet.identity.signing import SignedMessage
from kvnet.model.reading import read_text
from kvnet.transfer.messages import Hello
from kvnet.transport.asking import Texts
from kvnet.transport.client import PeerClient
from kvnet.transport.readings import Asked, Reading, ReadRequest, open_request
from kvnet.types import NodeId
from kvnetd.holding import refuse_held
from kvnetd.log import Span
from kvnetd.parties import is_hex, require_added
from kvnetd.services import Services

MAX_READERS = 2  # peers that are read for at once
MAX_SEEN_REQUESTS = 1024  # of a peer, in the quarter of an hour that one lives
_RETRY_S = 0.1
_REPLAYED = "read: made for another node or another time, or used before; ask again"


class Readings:
    """Implements transport's ReadBackend: who is read for, and how many at once."""

    def __init__(self, services: Services) -> None:
        self.key: NodeKey = services.key
        self.pool: Executor = services.pool
        self._services = services
        self._readers: set[NodeId] = set()

    async def open_reading(self, sealed_request: SignedMessage) -> PeerReading:
        """A peer asks this node's model to read. Raises PeerNotAdded, ReplayedMessage, TooBusy and others."""
        services = self._services
        peer = require_added(services, sealed_request.signer)
        span = services.log.begin("prefill", model=services.host.name, peer=peer.name)
        try:
            refuse_held(services)
            asked = open_request(sealed_request, signer=peer.public)
            await self._admit(asked.request, peer)
        except BaseException as failure:
            span.end(failure)
            raise
        return PeerReading(services, asked, peer, span, lambda: self._readers.discard(peer.node_id))

    async def _admit(self, request: ReadRequest, peer: AddedPeer) -> None:
        now = int(time.time())
        self._check_parties(request, peer, now)
        if peer.node_id in self._readers:
            raise TooBusy(f"{self._services.config.name} already reads for {peer.name}; wait for that to end")
        if len(self._readers) >= MAX_READERS:
            raise TooBusy(f"{self._services.config.name} reads for others now; try again later")
        self._readers.add(peer.node_id)  # before the first await, so that no second one slips in
        try:
            await self._services.in_store(self._take, request, peer, now)
        except BaseException:
            self._readers.discard(peer.node_id)
            raise

    def _take(self, request: ReadRequest, peer: AddedPeer, now: int) -> None:
        """Honour a request once, also across restarts; a peer uses up its own share alone."""
        requests = self._services.ledger.requests
        if requests.count("read", peer.node_id, now=now) >= MAX_SEEN_REQUESTS:
            raise TooBusy(f"{self._services.config.name} read for {peer.name} often; try again later")
        until = request.expires_at + self._services.config.limits.clock_skew_s
        if not requests.take("read", peer.node_id, request.request_id, until=until):
            raise ReplayedMessage(_REPLAYED)

    def _check_parties(self, request: ReadRequest, peer: AddedPeer, now: int) -> None:
        if not is_hex(request.request_id, num_chars=32):
            raise MalformedMessage("read: the request id is not 32 lower-case hex digits")
        if request.sender != peer.node_id:
            raise PeerError("read: names another sender than the key that signed it")
        life_s = self._services.config.limits.offer_life_s
        if request.expires_at - request.created_at > life_s:
            raise MalformedMessage(f"read: lives longer than {life_s} s")
        skew = self._services.config.limits.clock_skew_s
        is_fresh = request.created_at - skew <= now <= request.expires_at + skew
        if request.receiver != self.key.node_id or not is_fresh:
            raise ReplayedMessage(_REPLAYED)


class PeerReading:
    """Implements transport's ReadJob: one peer's texts, read one by one among the node's other work."""

    def __init__(
        self,
        services: Services,
        asked: Asked,
        peer: AddedPeer,
        span: Span,
        on_close: Callable[[], object],
    ) -> None:
        self.asked = asked
        self._services = services
        self._peer = peer
        self._span = span
        self._on_close = on_close
        self._failure: KvnetError | None = None
        self._count = self._tokens = self._raw_nbytes = 0

    async def read(self, index: int, text: str) -> Reading:
        """Read one text; a caller that goes away ends it within a layer."""
        try:
            return await self._read(index, text + self.asked.request.closing)
        except KvnetError as failure:
            self._failure = failure
            raise

    def withdrawn(self) -> KvnetError | None:
        """Why this peer is read for no longer, if it is not: nothing more is read for it, nor sent."""
        peer = self._services.peers.trusted(self._peer.public)
        if peer is None:
            return PeerNotAdded(f"{self._peer.name}: was removed while its texts were read")
        if Permission.READ not in peer.permissions:
            return NotPermitted(f"{peer.name}: lost the permission to read while its texts were read")
        return None

    async def _read(self, index: int, text: str) -> Reading:
        services = self._services
        withdrawn = self.withdrawn()
        if withdrawn is not None:
            raise withdrawn
        refuse_held(services)  # in line behind a fit its text would outwait every deadline

        def read(cancelled: Callable[[], bool]) -> Iterator[Reading]:
            memory, spans = read_text(services.host, text, cancelled=cancelled)
            yield Reading(index, memory, services.host.num_sinks, spans)

        while True:
            try:
                async with aclosing(services.runner.stream(read)) as found:
                    reading = await anext(found)
            except TooBusy:
                await asyncio.sleep(_RETRY_S)  # others wait for the model: not a reason to end hours of work
                continue
            self._count += 1
            self._tokens += reading.memory.header.seq_len
            self._raw_nbytes += reading.memory.header.raw_nbytes
            return reading

    async def close(self, failure: BaseException | None) -> None:
        """Write the log's last line and make room for the next."""
        self._span.add(count=self._count, tokens=self._tokens, raw_bytes=self._raw_nbytes)
        self._span.end(self._failure or failure)  # a caller that is told why there is no more then leaves
        self._on_close()


async def read_at_peer(
    services: Services,
    peer: AddedPeer,
    texts: Texts,
    *,
    num_texts: int,
    closing: str,
    corpus_digest: str,
    hello: Hello,
    address: str,
) -> AsyncGenerator[Reading, None]:
    """What the peer's model makes of the first `num_texts` texts, in order, each with `closing` behind it.

    `hello` and `address` are what `say_hello` found. Leave the loop through `contextlib.aclosing`: the peer
    stops at once. Nothing is kept here, and numbers may be NaN or infinite. Raises as PeerClient.read_texts.
    """
    now = int(time.time())
    request = ReadRequest(
        request_id=os.urandom(16).hex(),
        sender=services.key.node_id,
        receiver=peer.node_id,
        closing=closing,
        num_texts=num_texts,
        corpus_digest=corpus_digest,
        created_at=now,
        expires_at=now + services.config.limits.offer_life_s,
    )
    name = f"{peer.name} at {address}"
    async with PeerClient(address, public=peer.public, peer=name, gate=services.gate) as client:
        readings = client.read_texts(request, texts, key=services.key, hello=hello, pool=services.pool)
        async with aclosing(readings):
            async for reading in readings:
                yield reading
