"""Keys and values of a generation, cut off in segments while it goes on. Knows caches; no memories."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kvnet.model.cache import Cache, LayerKV, copy_layers, join_layers

_Item = TypeVar("_Item")
_End = TypeVar("_End")


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens from position `start` on, and their layers, each [1, num_kv_heads, num_tokens, head_dim]."""

    start: int
    token_ids: tuple[int, ...]
    layers: tuple[LayerKV, ...]


class Cutter:
    """Cuts a segment off a growing cache whenever `every` tokens more are in it."""

    def __init__(self, cache: Cache, start: int, every: int) -> None:
        """Nothing before position `start` is cut off: that is a memory already."""
        self._cache = cache
        self._start = start
        self._every = every
        self._token_ids: list[int] = []
        self._num_generated = 0
        self._due: list[Segment] = []

    def prompt(self, token_ids: Sequence[int]) -> None:
        """These were read; they go with the first tokens that are generated."""
        self._token_ids += token_ids

    def generated(self, token_id: int) -> None:
        """This one is in the cache too."""
        self._token_ids.append(token_id)
        self._num_generated += 1
        if self._num_generated == self._every:
            self.cut()

    def cut(self) -> None:
        """Cut off what is there."""
        if self._token_ids:
            stop = self._start + len(self._token_ids)
            layers = copy_layers(self._cache, self._start, stop)
            self._due.append(Segment(self._start, tuple(self._token_ids), layers))
            self._start, self._token_ids = stop, []
        self._num_generated = 0

    def due(self) -> Generator[Segment, None, None]:
        """The segments that were cut off and not asked for yet."""
        while self._due:
            yield self._due.pop(0)


def interleaved(
    items: Generator[_Item, None, _End], cutter: Cutter | None
) -> Generator[_Item | Segment, None, _End]:
    """`items`, with segments between them as they are cut."""
    if cutter is None:
        return (yield from items)
    while True:
        try:
            item = next(items)
        except StopIteration as end:
            yield from cutter.due()
            result: _End = end.value
            return result
        yield from cutter.due()
        yield item


def joined(segments: Sequence[Segment]) -> Segment:
    """Segments that follow one another, as one."""
    first = segments[0]
    if len(segments) == 1:
        return first
    token_ids = tuple(token_id for segment in segments for token_id in segment.token_ids)
    return Segment(first.start, token_ids, join_layers([segment.layers for segment in segments]))
