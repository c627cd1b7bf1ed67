"""The harness by which cache injection was once found to transfer nothing, with its faults one by one.

Each fault is a thing that a loop around a model's forward pass easily does wrong; kvnet does none of them.
Knows models and caches; no exams.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import torch

from kvnet.align.corpus import Lesson
from kvnet.model.cache import Cache, build_cache, cache_seq_len, export_layers
from kvnet.model.host import ModelHost
from kvnet.model.text import leading_bos

_OWN_TOKENS = 30  # that the original let its model go on for before it took the cache
_MOST_REPLY_TOKENS = 12


class Fault(StrEnum):
    """What the harness did; the first four are plain in its code."""

    CONTINUED = "continued"  # the cache comes from generate(30): it ends in the model's own ramble
    SECOND_BOS = "second-bos"  # the question brings a BOS along, in the middle of the sequence
    CUT_TURN = "cut-turn"  # the prompt lacks its end (there: the chat template), so the reply cannot begin
    REUSED = "reused"  # five questions are asked of one mutable cache, which keeps what was said
    SHORT_MASK = "short-mask"  # the attention mask is as long as the question, not as the sequence


VISIBLE = (Fault.CONTINUED, Fault.SECOND_BOS, Fault.CUT_TURN, Fault.REUSED)


@dataclass(frozen=True, slots=True)
class Reply:
    """A greedy reply. `exact`: it is the answer; `named`: the answer's words occur in it."""

    lesson: int
    exact: bool
    named: bool
    num_tokens: int


def ask_all(host: ModelHost, lessons: list[Lesson], faults: frozenset[Fault]) -> Iterator[Reply]:
    """Every question of every lesson, as a harness with these faults puts it."""
    for lesson_idx, lesson in enumerate(lessons):
        taken = _take_cache(host, lesson, faults)
        layers = export_layers(taken)
        for question in lesson.questions:
            cache = taken if Fault.REUSED in faults else build_cache(layers, host.module.config)
            said = _reply(host, cache, _prompt_ids(host, question.prompt, faults), faults)
            text = host.tokenizer.decode(said, skip_special_tokens=True).strip()
            answer = question.expected.rstrip(".")
            named = f" {answer} " in f" {text.replace('.', ' ')} "
            yield Reply(lesson_idx, text == question.expected, named, len(said))


def _take_cache(host: ModelHost, lesson: Lesson, faults: frozenset[Fault]) -> Cache:
    cache = host.new_cache()
    token_ids = host.tokenize_context(lesson.text)
    if Fault.CONTINUED in faults:
        _go_on(host, cache, token_ids, _OWN_TOKENS, stops=frozenset())
    else:
        host.prefill(token_ids, cache)
    return cache


def _prompt_ids(host: ModelHost, prompt: str, faults: frozenset[Fault]) -> list[int]:
    cut = prompt.rpartition(" ")[0] if Fault.CUT_TURN in faults else prompt
    bos = leading_bos(host.tokenizer) if Fault.SECOND_BOS in faults else []
    return bos + host.tokenize_question(cut, after_memory=True)


def _reply(host: ModelHost, cache: Cache, prompt_ids: list[int], faults: frozenset[Fault]) -> list[int]:
    short = len(prompt_ids) if Fault.SHORT_MASK in faults else None
    return _go_on(host, cache, prompt_ids, _MOST_REPLY_TOKENS, stops=host.eos_ids, mask_len=short)


def _go_on(
    host: ModelHost,
    cache: Cache,
    token_ids: list[int],
    most: int,
    *,
    stops: frozenset[int],
    mask_len: int | None = None,
) -> list[int]:
    """Feed `token_ids`, then go on greedily; the cache keeps all of it but the last token.

    `mask_len` is the length of an attention mask that does not count the cache; it grows by a token a step.
    """
    said: list[int] = []
    fed = token_ids
    while True:
        stop = cache_seq_len(cache) + len(fed)
        length = stop if mask_len is None else mask_len + len(said)
        logits = host.module(
            input_ids=torch.tensor([fed], device=host.device),
            attention_mask=torch.ones(1, length, dtype=torch.long, device=host.device),
            past_key_values=cache,
            use_cache=True,
        ).logits[0, -1]
        token_id = int(logits.argmax())
        if len(said) == most or token_id in stops:
            return said
        said.append(token_id)
        fed = [token_id]
