"""What a fit or a training needs of the daemon: models that read for it, a state that outlives it, and word
of how far it is.

The mathematics is kvnet.align's; either holds the model's thread until it ends or is cancelled.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Final, Generic, Protocol, Self, TypeVar, cast

import safetensors.torch
import torch
from safetensors import SafetensorError

from kvnet.align.reading import LocalReader, Reading
from kvnet.api import Progress
from kvnet.errors import IncompatibleModel, KvnetError, StoreFull, TooBusy
from kvnet.identity.peers import AddedPeer
from kvnet.model.generation import refuse_cancelled
from kvnet.model.host import ModelHost
from kvnet.model.loader import Device, ModelSpec
from kvnet.model.slots import slots_of
from kvnet.rotary import check_rope
from kvnet.transfer.messages import Hello
from kvnet.transport.readings import check_source
from kvnet.types import Fingerprint, Geometry, canonical_json, sha256_hex
from kvnetd.readings import read_at_peer
from kvnetd.services import Services
from kvnetd.store.disk import require_room


class Resumable(Protocol):
    """What can be kept as tensors and taken up again."""

    def to_tensors(self) -> dict[str, torch.Tensor]: ...

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Self: ...


P = TypeVar("P")
T = TypeVar("T")
S = TypeVar("S", bound=Resumable)
Told = Callable[[int, int], None]  # steps done, and of how many
Cancelled = Callable[[], bool]

_log = logging.getLogger(__name__)
_PROBE: Final = "The first words of a text."  # read where nothing else was, for what its model puts before it
_MOST_WAITING: Final = 2  # readings of a peer that are here and not yet used
_LOOK_EVERY_S: Final = 0.2
_FREE_AGAIN_S: Final = 10.0
_SAVE_EVERY_S: Final = 60.0
_KEPT_FOR_S: Final = 7 * 24 * 3600.0


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

    Leave the loop through `aclosing`: `cancelled()` is true from then on. Raises TooBusy, and as `act`.
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
        """A reading of each text, in order. Raises as `read_at_peer`, and Cancelled once it is left."""
        wanted = list(texts)
        if not wanted:
            return
        waiting: asyncio.Queue[Reading | None] = asyncio.Queue(_MOST_WAITING)
        pumping = asyncio.run_coroutine_threadsafe(self._pump(wanted, waiting), self._loop)
        try:
            while (reading := self._take(waiting)) is not None:
                yield reading
            pumping.result()
        finally:
            pumping.cancel()

    async def _pump(self, texts: list[str], waiting: asyncio.Queue[Reading | None]) -> None:
        """Readings into the queue, and None behind the last or where they end."""
        until = time.monotonic() + _FREE_AGAIN_S
        try:
            while texts:
                try:
                    await self._read_on(texts, waiting)
                except TooBusy:
                    # The peer may not have noticed yet that our last reading, of another run too, is over.
                    if time.monotonic() > until:
                        raise
                    await asyncio.sleep(_LOOK_EVERY_S)
        except Exception:  # not a cancellation: then nobody takes any more
            await waiting.put(None)
            raise
        await waiting.put(None)

    async def _read_on(self, texts: list[str], waiting: asyncio.Queue[Reading | None]) -> None:
        """Those texts that are left, in one request; each goes as its reading comes."""
        readings = read_at_peer(
            self._services,
            self._peer,
            tuple(texts),
            num_texts=len(texts),
            closing="",
            corpus_digest=sha256_hex(canonical_json(texts)),
            hello=self._hello,
            address=self._address,
        )
        async with aclosing(readings):
            async for found in readings:
                num_sinks = self._num_sinks = found.num_sinks
                slots = await self._services.in_pool(slots_of, found.memory, num_sinks=num_sinks)
                del texts[0]
                await waiting.put(Reading(slots, found.spans[num_sinks:]))

    def _take(self, waiting: asyncio.Queue[Reading | None]) -> Reading | None:
        taking: Future[Reading | None] = asyncio.run_coroutine_threadsafe(waiting.get(), self._loop)
        while True:
            try:
                return taking.result(_LOOK_EVERY_S)
            except TimeoutError:
                refuse_cancelled(lambda: self._is_left)


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


class KeptState(Generic[S]):
    """The state of one fit or training on disk, so that it can be left and taken up again.

    For the model's thread.
    """

    def __init__(self, folder: Path, what: object, kind: type[S]) -> None:
        """`what` is all that the work depends on: the same again finds the same state, which is a `kind`."""
        name = hashlib.sha256(canonical_json(what)).hexdigest()
        self._path = folder / f"{name}.safetensors"
        self._kind = kind
        self._state: S | None = None
        self._saved_at = time.monotonic()

    def load(self) -> S | None:
        """What an earlier call left; None if it left nothing that can be read."""
        self._sweep()
        try:
            self._state = self._kind.from_tensors(safetensors.torch.load_file(self._path))
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KvnetError, KeyError, ValueError, RuntimeError) as exc:
            _log.warning("what a fit or training left cannot be read, it starts anew: %s", exc)
            return None
        return self._state

    def note(self, state: S) -> None:
        """How far the work is; written at most once a minute."""
        self._state = state
        if time.monotonic() - self._saved_at >= _SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write what was noted last. A disk that has no room for it costs a resume, not the work."""
        if self._state is None:
            return
        self._saved_at = time.monotonic()
        # A file holds rows; a solver may have left columns.
        tensors = {name: tensor.contiguous() for name, tensor in self._state.to_tensors().items()}
        fresh = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            require_room(self._path.parent, sum(t.nbytes for t in tensors.values()), what="state")
            safetensors.torch.save_file(tensors, fresh)
            fresh.replace(self._path)
        except (OSError, SafetensorError, StoreFull) as exc:
            fresh.unlink(missing_ok=True)
            _log.warning("the state of a fit or training cannot be kept: %s", exc)

    def drop(self) -> None:
        """The work came to its end."""
        self._path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """States that nobody came back to for a week are as large as they are useless."""
        for path in self._path.parent.glob("*"):
            if time.time() - path.stat().st_mtime > _KEPT_FOR_S:
                path.unlink(missing_ok=True)
