"""What a fit or a training needs of the daemon: models that read for it, and word of how far it is.

The mathematics is kvnet.align's; either holds the model's thread until it ends or is cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import aclosing, asynccontextmanager
from typing import Final, TypeVar, cast

from kvnet.align.reading import LocalReader, Reading
from kvnet.api import Progress
from kvnet.errors import IncompatibleModel, MalformedMessage, TooBusy
from kvnet.identity.peers import AddedPeer
from kvnet.model.generation import refuse_cancelled
from kvnet.model.host import ModelHost
from kvnet.model.loader import Device, ModelSpec
from kvnet.model.reading import refuse_not_finite
from kvnet.model.slots import slots_of
from kvnet.rotary import check_rope
from kvnet.transfer.messages import Hello
from kvnet.transport.readings import Reading as PeersReading
from kvnet.transport.readings import check_source
from kvnet.types import Fingerprint, Geometry, canonical_json, sha256_hex
from kvnetd.readings import read_at_peer
from kvnetd.services import Services

P = TypeVar("P")
T = TypeVar("T")
Told = Callable[[int, int], None]  # steps done, and of how many
Cancelled = Callable[[], bool]

_PROBE: Final = "The first words of a text."  # read where nothing else was, for what its model puts before it
_MOST_WAITING: Final = 2  # readings of a peer that are here and not yet used
_LOOK_EVERY_S: Final = 0.2
_FREE_AGAIN_S: Final = 10.0
_HELD_UP_S: Final = 30.0  # that a peer waits for us; far from the deadlines of a reading


async def working(
    services: Services, act: Callable[[Told, Cancelled], T]
) -> AsyncGenerator[Progress | T, None]:
    """`telling`, of an `act(told, cancelled)` that counts its steps."""

    def counting(tell: Callable[[Progress], None], cancelled: Cancelled) -> T:
        return act(lambda done, total: tell(Progress(done, total)), cancelled)

    steps = telling(services, counting)
    async with aclosing(steps):
        async for step in steps:
            yield step


async def telling(
    services: Services, act: Callable[[Callable[[P], None], Cancelled], T]
) -> AsyncGenerator[P | T, None]:
    """`act(tell, cancelled)` on the model's thread: the latest that it tells as it comes, the result last.

    Leave the loop through `aclosing`: `cancelled()` is true from then on. Raises as `act`, and TooBusy where
    the line for the model is full.
    """
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    latest: list[P] = []

    def hear(told: P) -> None:
        latest[:] = [told]
        changed.set()

    def tell(told: P) -> None:
        loop.call_soon_threadsafe(hear, told)

    def make(cancelled: Cancelled) -> Iterator[T]:
        yield act(tell, cancelled)

    async def run() -> T:
        async with aclosing(services.runner.stream(make)) as items:
            return await anext(items)

    running = asyncio.ensure_future(run())
    running.add_done_callback(lambda _: changed.set())
    try:
        while not running.done():
            await changed.wait()
            changed.clear()
            if latest:
                yield latest.pop()
        yield running.result()
    finally:
        running.cancel()
        await asyncio.wait({running})


class PeerReader:
    """kvnet.align's Reader, whose model is a peer's: asked on the event loop, read on the model's thread."""

    def __init__(self, services: Services, peer: AddedPeer, hello: Hello, address: str) -> None:
        check_source(hello)
        if problem := check_rope(hello.geometry.rope, hello.geometry.head_dim):
            raise IncompatibleModel(f"{peer.name}: no map can be fitted from its model: {problem}")
        self._services = services
        self._peer = peer
        self._hello = hello
        self._address = address
        self._name = f"{peer.name} at {address}"
        self._loop = asyncio.get_running_loop()
        self._num_sinks: int | None = None
        self._is_left = False

    @property
    def fingerprint(self) -> Fingerprint:
        """The peer's model, by its hello; each reading is held against it."""
        return self._hello.fingerprint

    @property
    def geometry(self) -> Geometry:
        """The same."""
        return self._hello.geometry

    @property
    def num_sinks(self) -> int:
        """What the peer's readings begin with; asked for if there was none yet."""
        if self._num_sinks is None:
            for _ in self.read([_PROBE]):
                pass
        return self._num_sinks or 0

    def leave(self) -> None:
        """Nobody waits any more: readings under way end as cancelled."""
        self._is_left = True

    def read(self, texts: Iterable[str]) -> Iterator[Reading]:
        """A reading of each text, in order. For the model's thread.

        Raises as `read_at_peer`, NotFinite, and Cancelled once it is left.
        """
        wanted = list(texts)
        if not wanted:
            return
        digest = sha256_hex(canonical_json(wanted))
        waiting: asyncio.Queue[PeersReading | None] = asyncio.Queue(_MOST_WAITING)
        pumping = asyncio.run_coroutine_threadsafe(self._pump(wanted, digest, waiting), self._loop)
        try:
            while (found := self._take(waiting)) is not None:
                refuse_not_finite(found.memory, f"{self._name}: reading {found.index}")
                slots = slots_of(found.memory, num_sinks=found.num_sinks)
                yield Reading(slots, found.spans[found.num_sinks :])
            pumping.result()
        finally:
            pumping.cancel()

    async def _pump(self, texts: list[str], digest: str, waiting: asyncio.Queue[PeersReading | None]) -> None:
        """Readings into the queue, and None behind the last or where they end."""
        until, num_left = time.monotonic() + _FREE_AGAIN_S, len(texts)
        try:
            while texts:
                try:
                    await self._read_on(texts, digest, waiting)
                except TooBusy:
                    # The peer may not have noticed yet that our last reading, of another run too, is over.
                    if len(texts) < num_left:
                        until, num_left = time.monotonic() + _FREE_AGAIN_S, len(texts)
                    if time.monotonic() > until:
                        raise
                    await asyncio.sleep(_LOOK_EVERY_S)
        except Exception:  # not a cancellation: then nobody takes any more
            await waiting.put(None)
            raise
        await waiting.put(None)

    async def _read_on(
        self, texts: list[str], digest: str, waiting: asyncio.Queue[PeersReading | None]
    ) -> None:
        """Those texts that are left, in one request; each goes as its reading comes.

        It ends early where a reading is not taken in time: then the model here computes, and the rest is
        asked for afterwards, rather than let the request's deadlines run out.
        """
        readings = read_at_peer(
            self._services,
            self._peer,
            tuple(texts),
            num_texts=len(texts),
            closing="",
            corpus_digest=digest,
            hello=self._hello,
            address=self._address,
        )
        untaken: PeersReading | None = None
        async with aclosing(readings):
            async for found in readings:
                self._refuse_other_sinks(found)
                del texts[0]
                try:
                    async with asyncio.timeout(_HELD_UP_S):
                        await waiting.put(found)
                except TimeoutError:
                    untaken = found
                    break
        if untaken is not None:
            await waiting.put(untaken)

    def _refuse_other_sinks(self, found: PeersReading) -> None:
        """What its model puts before a text is the same in every request."""
        if self._num_sinks not in (None, found.num_sinks):
            raise MalformedMessage(
                f"{self._name}: reading {found.index}: {found.num_sinks} sinks, the others had "
                f"{self._num_sinks}"
            )
        self._num_sinks = found.num_sinks

    def _take(self, waiting: asyncio.Queue[PeersReading | None]) -> PeersReading | None:
        taking: Future[PeersReading | None] = asyncio.run_coroutine_threadsafe(waiting.get(), self._loop)
        try:
            while True:
                try:
                    return taking.result(_LOOK_EVERY_S)
                except TimeoutError:
                    refuse_cancelled(lambda: self._is_left)
        finally:
            taking.cancel()  # whoever leaves takes nothing any more


@asynccontextmanager
async def read_by_peer(
    services: Services, peer: AddedPeer, hello: Hello, address: str
) -> AsyncIterator[PeerReader]:
    """A peer's model as a reader; leaving the block ends what it reads. `hello` and `address` are the peer's.

    Raises MalformedMessage and IncompatibleModel for a hello whose model cannot be read by.
    """
    reader = PeerReader(services, peer, hello, address)
    try:
        yield reader
    finally:
        reader.leave()


async def read_here(services: Services, model: str) -> LocalReader:
    """A second model of this machine, loaded beside the hosted one. Raises as `ModelHost.load`."""
    config = services.config
    spec = ModelSpec(model, device=cast("Device", config.device))
    return LocalReader(await services.runner.run(ModelHost.load, spec, config.home.cache))
