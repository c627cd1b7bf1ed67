"""One thread that owns the model, and a bounded line in front of it. Knows no torch, no models.

A generation is awaited from the event loop and computed beside it: items cross over one at a time,
and a caller that goes away takes its work with it.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, ParamSpec, Self, TypeVar

from kvnet.errors import Cancelled, TooBusy

_P = ParamSpec("_P")
_T = TypeVar("_T")

MAX_WAITING: Final = 8  # jobs in line behind the one that runs
_MAX_UNREAD: Final = 64  # items of a stream that wait for a slow reader


@dataclass(frozen=True, slots=True)
class _Job:
    call: Callable[[], Any]
    future: Future[Any]

    def run(self) -> None:
        """Do the work, unless nobody waits for it any more."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self.call())
        except BaseException as exc:
            self.future.set_exception(exc)  # whatever it is, it belongs to whoever waits


class ModelRunner:
    """Runs one job at a time, in order, on a thread of its own."""

    def __init__(self, *, max_waiting: int = MAX_WAITING) -> None:
        self._jobs: queue.Queue[_Job | None] = queue.Queue(max_waiting)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="kvnet-model", daemon=True)
        self._thread.start()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def run(self, fn: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """The result of `fn(*args)`. If the caller is cancelled while waiting in line, fn never starts.

        Raises TooBusy if the line is full, Cancelled if the runner closes, and what fn raises.
        """
        return await asyncio.wrap_future(self._submit(partial(fn, *args, **kwargs)))

    async def stream(
        self, make_items: Callable[[Callable[[], bool]], Iterator[_T]]
    ) -> AsyncGenerator[_T, None]:
        """The items of `make_items(cancelled)`, which is iterated and closed on the model's thread.

        `cancelled()` turns true when the reader stops reading: leave the loop through
        `contextlib.aclosing`, or be cancelled. Raises as `run`.
        """
        relay: _Relay[_T] = _Relay(asyncio.get_running_loop(), self._closing)
        done = asyncio.wrap_future(self._submit(partial(relay.pump, make_items)))
        done.add_done_callback(relay.end)
        try:
            while not isinstance(item := await relay.get(), _End):
                yield item
            await done
        finally:
            relay.stop()
            if not done.cancel() and not done.cancelled():
                done.exception()  # the reader left before it could see it

    async def close(self) -> None:
        """Stop streams at their next item, drop what waits, and wait for the job that runs."""
        if not self._closing.is_set():
            self._closing.set()
            self._drain()
            self._jobs.put_nowait(None)
        await asyncio.to_thread(self._thread.join)

    def _submit(self, call: Callable[[], Any]) -> Future[Any]:
        self._refuse_closed()
        job = _Job(call, Future())
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise TooBusy(
                f"{self._jobs.maxsize} requests already wait for the model; try again in a moment"
            ) from None
        return job.future

    def _refuse_closed(self) -> None:
        if self._closing.is_set():
            raise _shutting_down()

    def _drain(self) -> None:
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            if job is not None and job.future.set_running_or_notify_cancel():
                job.future.set_exception(_shutting_down())

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
            del job  # an idle thread must not keep the last memory alive


class _Relay(Generic[_T]):
    """Items from the model's thread to the event loop, at most `_MAX_UNREAD` ahead of the reader."""

    def __init__(self, loop: asyncio.AbstractEventLoop, closing: threading.Event) -> None:
        self._loop = loop
        self._closing = closing
        self._stopped = threading.Event()
        self._room = threading.Semaphore(_MAX_UNREAD)
        self._items: asyncio.Queue[_T | _End] = asyncio.Queue()  # bounded by `_room`

    def pump(self, make_items: Callable[[Callable[[], bool]], Iterator[_T]]) -> None:
        """On the model's thread: hand over every item until the reader stops."""
        self._refuse_cancelled()
        items = make_items(self.cancelled)
        try:
            for item in items:
                while not self._room.acquire(timeout=0.1):
                    self._refuse_cancelled()
                self._refuse_cancelled()
                self._loop.call_soon_threadsafe(self._items.put_nowait, item)
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    def cancelled(self) -> bool:
        """Whether nobody wants another item."""
        return self._stopped.is_set() or self._closing.is_set()

    def stop(self) -> None:
        """On the loop: the reader is gone."""
        self._stopped.set()
        self._room.release()

    def end(self, _: object) -> None:
        """On the loop: the job is over, the items before it have all been handed over."""
        self._items.put_nowait(_End())

    async def get(self) -> _T | _End:
        """On the loop: the next item."""
        item = await self._items.get()
        self._room.release()
        return item

    def _refuse_cancelled(self) -> None:
        if self.cancelled():
            raise _shutting_down()


class _End:
    """Behind the last item of a stream."""


def _shutting_down() -> Cancelled:
    return Cancelled("the node is shutting down")
