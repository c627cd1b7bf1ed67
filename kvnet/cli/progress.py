"""Progress bars on stderr, drawn only where a person watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

LastT = TypeVar("LastT")


def last_of(
    steps: Iterable[Any],
    wanted: type[LastT],
    show: Callable[[int, int], None],
    tell: Callable[[Any], None] = lambda step: None,
) -> LastT:
    """What the daemon's steps end with; each before it has `done` and `total` to show, and is told."""
    last: LastT | None = None
    for step in steps:
        if isinstance(step, wanted):
            last = step
        else:
            show(step.done, step.total)
            tell(step)
    if last is None:
        raise AssertionError(f"the daemon ended without a {wanted.__name__}")
    return last


@contextmanager
def layer_bar(title: str, *, with_eta: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Yields `show(done, total)`; silent unless stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    # rich takes a tenth of a second to import; only a terminal pays for it.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        *((TextColumn("left"), TimeRemainingColumn()) if with_eta else ()),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def waiting(title: str) -> Iterator[None]:
    """A spinner while something has no measure."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(title):
        yield
