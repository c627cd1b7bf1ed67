"""Work that holds the model's thread for longer than an answer takes: one at a time, and nobody waits for it.

Knows that it goes on, not what it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from weakref import WeakKeyDictionary

from kvnet.errors import TooBusy
from kvnet.model.runner import ModelRunner
from kvnetd.services import Services

_held: Final[WeakKeyDictionary[ModelRunner, str]] = WeakKeyDictionary()  # by what


@contextmanager
def holding(services: Services, what: str) -> Iterator[None]:
    """Hold the model for `what` ("a fit"). Raises TooBusy where something holds it already."""
    refuse_held(services)
    _held[services.runner] = what
    try:
        yield
    finally:
        del _held[services.runner]


def refuse_held(services: Services) -> None:
    """Raise TooBusy while something holds the model: whoever waited in line might wait for hours."""
    what = _held.get(services.runner)
    if what is not None:
        raise TooBusy(
            f"{services.config.name}: {what} of a map holds its model now; try again when that has ended"
        )
