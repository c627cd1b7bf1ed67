"""Slots of two tokenizers paired by the characters they cover. Knows no tokenizer: spans are numbers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import torch

from kvnet.errors import UnalignableTokens

MIN_COVERAGE: Final = 0.5

Span = tuple[int, int]  # first character and the one after the last


def pair_slots(
    source_spans: Sequence[Span], target_spans: Sequence[Span]
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Pair each target slot with the source slot that covers its last character.

    Both cut one text; spans are in characters, in the order of the slots. Returns the paired slots
    (source_idx int64 [m], target_idx int64 [m]), ascending in the target, and the coverage: of the target
    slots that cover a character, the share that found a pair. A zero-width span, as special tokens have,
    covers no character: it is never paired and does not count. Where several source slots cover the character
    (pieces of one character of many bytes, which tokenizers report with one span), the last is taken: only it
    has read the whole character. So every target slot has at most one source slot, while a long source token
    may serve several targets.

    Raises UnalignableTokens if the coverage is below MIN_COVERAGE or spans do not follow each other.
    """
    source = _covering(source_spans)
    target = _covering(target_spans)
    starts = [start for _, (start, _) in source]
    source_idx, target_idx = [], []
    for slot, (_, stop) in target:
        place = bisect_right(starts, stop - 1) - 1  # the last that starts at or before the last character
        if place >= 0 and source[place][1][1] >= stop:
            source_idx.append(source[place][0])
            target_idx.append(slot)
    coverage = len(target_idx) / len(target) if target else 0.0
    if coverage < MIN_COVERAGE:
        raise UnalignableTokens(
            f"{len(target_idx)} of {len(target)} tokens found a partner in the other tokenizer, wanted "
            f"{MIN_COVERAGE:.0%} or more; check that both read the same text"
        )
    return torch.tensor(source_idx), torch.tensor(target_idx), coverage


def _covering(spans: Sequence[Span]) -> list[tuple[int, Span]]:
    """The slots that cover a character, with their spans."""
    covering = [(slot, (start, stop)) for slot, (start, stop) in enumerate(spans) if start < stop]
    for (_, (start, stop)), (slot, (next_start, next_stop)) in pairwise(covering):
        if next_start < start or next_stop < stop:
            raise UnalignableTokens(
                f"slot {slot} covers characters {next_start} to {next_stop} after {start} to {stop}, wanted "
                "ascending spans; this tokenizer cannot be paired by characters"
            )
    return covering
