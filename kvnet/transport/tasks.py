"""Tasks that belong together: two halves of a stream, or all handlers of a server."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from kvnet.errors import KvnetError, PeerUnreachable


class Running:
    """The tasks that are inside a block now; a server that stops waits for them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    @contextmanager
    def task(self) -> Iterator[None]:
        """Count the current task for the length of the block."""
        task = asyncio.current_task()
        if task is None:
            raise AssertionError("not inside a task")
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    async def drained(self, timeout_s: float = 10.0) -> None:
        """Wait until no task is inside. grpc.aio's `stop` returns before cancelled handlers have ended."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout_s)


async def run_together(*halves: Coroutine[Any, Any, None]) -> None:
    """A TaskGroup whose ExceptionGroup is reduced to the one error that says most.

    When a peer aborts a stream, one half sees the reason and the other only that the stream is
    gone: the reason wins.
    """
    try:
        async with asyncio.TaskGroup() as group:
            for half in halves:
                group.create_task(half)
    except BaseExceptionGroup as failures:
        raise _most_telling(failures) from None


def _most_telling(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    flat: list[BaseException] = []
    pending: list[BaseException] = [failures]
    while pending:
        failure = pending.pop(0)
        if isinstance(failure, BaseExceptionGroup):
            pending.extend(failure.exceptions)
        else:
            flat.append(failure)
    telling = [f for f in flat if isinstance(f, KvnetError) and not isinstance(f, PeerUnreachable)]
    return (telling or flat)[0]
