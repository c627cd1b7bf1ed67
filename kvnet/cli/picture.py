"""Small pictures of numbers for a terminal: bars and sparklines. Knows nothing of memories."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final


@dataclass(frozen=True, slots=True)
class Glyphs:
    """What pictures are made of, from nothing to full."""

    bar: str  # parts of one cell, the last one full
    spark: str


BLOCKS: Final = Glyphs(bar="▏▎▍▌▋▊▉█", spark="▁▂▃▄▅▆▇█")
PLAIN: Final = Glyphs(bar="#", spark="_.-=+*#@")


def glyphs() -> Glyphs:
    """Blocks, or plain characters where stdout takes no others."""
    try:
        (BLOCKS.bar + BLOCKS.spark).encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return PLAIN
    return BLOCKS


def bar(value: int, full: int, *, width: int, made_of: Glyphs) -> str:
    """`value` as a bar in `width` cells, of which `full` takes all. Anything above nothing shows."""
    num_parts = len(made_of.bar)
    parts = round(width * num_parts * value / full) if full > 0 else 0
    parts = min(max(parts, 1 if value > 0 else 0), width * num_parts)
    whole, rest = divmod(parts, num_parts)
    drawn = made_of.bar[-1] * whole + (made_of.bar[rest - 1] if rest else "")
    return drawn.ljust(width)


def sparkline(values: Sequence[float], full: float, *, max_width: int, made_of: Glyphs) -> str:
    """One character a value between 0 and `full`; of more than `max_width` values, neighbours share one."""
    width = min(len(values), max_width)
    edges = [i * len(values) // width for i in range(width + 1)] if width else [0]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    top = len(made_of.spark) - 1
    return "".join(
        made_of.spark[min(top, int(len(made_of.spark) * v / full)) if full > 0 else 0] for v in means
    )
