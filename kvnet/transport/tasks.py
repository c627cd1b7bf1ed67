"""Run two halves of a stream at once; the first failure ends both and leaves as itself."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from kvnet.errors import KvnetError, PeerUnreachable


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
