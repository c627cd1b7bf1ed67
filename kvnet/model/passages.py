"""Contexts with what follows them: what calibration learns from, and what quality is measured on.

Knows tokenizers and texts; no tensors, no caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from kvnet.model.host import ModelHost
from kvnet.model.reference.world import Split, ask, sample_context
from kvnet.model.text import leading_bos

_WINDOW_TOKENS: Final = 576  # of a text: 7/8 are remembered, the rest follows
_LEAST_WINDOW_TOKENS: Final = 32


@dataclass(frozen=True, slots=True)
class Continuation:
    """Tokens that follow a context; the predictions after token `first_scored` and later ones count."""

    token_ids: tuple[int, ...]
    first_scored: int = 0


@dataclass(frozen=True, slots=True)
class Passage:
    """A context, and what may follow it."""

    context_ids: tuple[int, ...]
    continuations: tuple[Continuation, ...]


def cut_texts(host: ModelHost, texts: Sequence[str]) -> tuple[Passage, ...]:
    """Windows of the texts: the first 7/8 of each are its context, the rest its continuation."""
    bos = leading_bos(host.tokenizer)
    length = min(_WINDOW_TOKENS, host.max_seq_len) - len(bos)
    passages = []
    for text in texts:
        token_ids = host.tokenize_context(text)[len(bos) :]
        for start in range(0, len(token_ids), length):
            window = (*bos, *token_ids[start : start + length])
            if len(window) >= _LEAST_WINDOW_TOKENS:
                cut = len(window) * 7 // 8
                passages.append(Passage(window[:cut], (Continuation(window[cut:]),)))
    return tuple(passages)


def world_passage(
    host: ModelHost, rng: Random, num_facts: int, num_questions: int, split: Split = "heldout"
) -> tuple[Passage, tuple[tuple[int, ...], ...]]:
    """A context of the reference models' world with questions of both kinds, and the answers' tokens.

    The predictions that count are those of the answer, from its first token to its last.
    """
    context = sample_context(rng, num_facts, split)
    continuations, answers = [], []
    for place, fact in enumerate(rng.sample(context.facts, min(num_questions, num_facts))):
        question = ask(fact, "question" if place % 2 else "cloze", rng)
        asked = host.tokenize_question(question.prompt, after_memory=True)
        whole = host.tokenize_question(f"{question.prompt} {question.expected}", after_memory=True)
        continuations.append(Continuation(tuple(whole[:-1]), len(asked) - 1))
        answers.append(tuple(whole[len(asked) :]))
    return Passage(tuple(host.tokenize_context(context.text)), tuple(continuations)), tuple(answers)
