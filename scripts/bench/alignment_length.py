"""How long a reply stays what it would have been: greedy tokens behind a map against the text's reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

import harness
import torch
from alignment_rows import Row
from alignment_setup import Pair, Trial, Workshop

from kvnet.align.exam import Asked, ask_behind
from kvnet.align.reading import LocalReader
from kvnet.model.cache import Cache
from kvnet.model.host import ModelHost
from kvnet.model.slots import Slots

LENGTHS: Final = (1, 4, 8, 16, 32)
_MOST_REPLIES: Final = 200  # each of the last length, in every arm


def length_rows(shop: Workshop, pairs: Sequence[Pair]) -> Iterator[Row]:
    """Agreement with the greedy reply of the receiver that read the text, by tokens generated.

    Each arm goes on from its own tokens, past the end of an answer too, where these models ask and answer on.
    """
    for pair in pairs:
        bridge = shop.bridge(pair)
        harness.say(f"generated length: {pair[0]} to {pair[1]}")
        trial = shop.trial(bridge.source, bridge.receiver, closing=bridge.closing)
        mapped = trial.sitting.mapped(bridge.alignment, bridge.port, bits=None if bridge.port is None else 8)
        own = LocalReader(bridge.receiver).read(lesson.text for lesson in trial.exam.lessons)
        arms: dict[str, Callable[[int], Slots]] = {
            "own": [reading.slots for reading in own].__getitem__,
            "mapped": mapped.__getitem__,
            "shuffled": trial.sitting.shuffled(mapped),
        }
        wanted = _replies(trial, partial(_after_text, trial))
        for arm, slots_for in arms.items():
            said = _replies(trial, partial(_behind, trial.exam.host, slots_for))
            same = said == wanted  # bool [num_replies, tokens]
            for length in LENGTHS:
                yield _row(pair, arm, same[:, :length])


def _row(pair: Pair, arm: str, same: torch.Tensor) -> Row:
    """`agreement`: the share of tokens that are the same; `whole`: of replies that are, from the first on."""
    return {
        "table": "generated length",
        "source": pair[0],
        "target": pair[1],
        "arm": arm,
        "tokens": same.shape[1],
        "agreement": float(same.double().mean()),
        "whole": float(same.all(1).double().mean()),
        "n": len(same),
    }


def _replies(trial: Trial, begin: Callable[[int], tuple[Cache, int]]) -> torch.Tensor:
    """int64 [num_replies, tokens]: a greedy reply to each question, behind its lesson's cache.

    `begin` makes the cache of a lesson, and says how many positions in it have no slot.
    """
    host, found = trial.exam.host, []
    lesson_idx, cache, num_gaps = -1, host.new_cache(), 0
    for asked in trial.exam.asked[:_MOST_REPLIES]:
        if asked.lesson_idx != lesson_idx:
            lesson_idx = asked.lesson_idx
            cache, num_gaps = begin(lesson_idx)
        found.append(_reply(host, cache, asked, num_gaps))
    return torch.tensor(found)


def _reply(host: ModelHost, cache: Cache, asked: Asked, num_gaps: int) -> list[int]:
    prompt_ids = asked.token_ids[: asked.first_scored + 1]
    with ask_behind(cache):
        token_ids = [int(host.next_logits(prompt_ids, cache, num_gaps=num_gaps).argmax())]
        while len(token_ids) < LENGTHS[-1]:
            token_ids.append(int(host.next_logits(token_ids[-1:], cache, num_gaps=num_gaps).argmax()))
    return token_ids


def _after_text(trial: Trial, lesson_idx: int) -> tuple[Cache, int]:
    host, lesson = trial.exam.host, trial.exam.lessons[lesson_idx]
    cache = host.new_cache()
    host.prefill(host.tokenize_context(lesson.text), cache)
    return cache, 0


def _behind(host: ModelHost, slots_for: Callable[[int], Slots], lesson_idx: int) -> tuple[Cache, int]:
    slots = slots_for(lesson_idx)
    return host.inject_slots(slots), slots.span - slots.num_slots
