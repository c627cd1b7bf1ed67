"""The decode loop: logits in, text out, one token at a time. Knows tokenizers; no caches, no memories."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from kvnet.errors import Cancelled, UnsupportedModel
from kvnet.model.sampling import Sampling, new_generator, pick_token
from kvnet.model.text import StopStrings, TextStream

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the reply."""

    text: str


@dataclass(frozen=True, slots=True)
class Generated:
    """The whole reply, and what it rests on."""

    text: str
    token_ids: tuple[int, ...]  # without the EOS
    reused_tokens: int  # positions whose keys and values came from the memory
    recomputed_tokens: int  # positions prefilled here before the first token
    ttft_s: float
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Continuation:
    """What the decode loop produced; `first_token_at` is on the clock of `time.perf_counter`."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    first_token_at: float


def never() -> bool:
    """A `cancelled` for callers that wait to the end."""
    return False


def decode(
    logits: torch.Tensor,
    step: Callable[[int], torch.Tensor],
    *,
    tokenizer: Any,
    eos_ids: Collection[int],
    sampling: Sampling,
    cancelled: Callable[[], bool],
) -> Generator[TextDelta, None, Continuation]:
    """Continue from `logits` [vocab_size]; `step` feeds one token and returns the logits after it.

    Raises Cancelled as soon as `cancelled()` is true.
    """
    generator, stream, stops = new_generator(sampling), TextStream(tokenizer), StopStrings(sampling.stop)
    token_ids: list[int] = []
    pieces: list[str] = []
    finish_reason: FinishReason = "length"
    first_token_at = 0.0
    while True:
        token_id = _pick(logits, sampling, generator)
        first_token_at = first_token_at or time.perf_counter()
        if token_id in eos_ids:
            finish_reason = "stop"
            break
        token_ids.append(token_id)
        if text := stops.push(stream.push(token_id)):
            pieces.append(text)
            yield TextDelta(text)
        if stops.found:
            finish_reason = "stop"
            break
        if len(token_ids) == sampling.max_tokens:
            break
        refuse_cancelled(cancelled)
        logits = step(token_id)
    if text := stops.push(stream.flush()) + stops.flush():
        pieces.append(text)
        yield TextDelta(text)
    return Continuation("".join(pieces), tuple(token_ids), finish_reason, first_token_at)


def refuse_cancelled(cancelled: Callable[[], bool]) -> None:
    """Raise Cancelled if the caller is gone."""
    if cancelled():
        raise Cancelled("the caller went away or cancelled")


def _pick(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    if torch.isnan(logits).any():
        raise UnsupportedModel("the model computes NaN; use another dtype, or another memory")
    return pick_token(logits, sampling, generator)
