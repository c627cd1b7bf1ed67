"""Draw training rows stage by stage. Knows the world and token ids; no tensors, no model.

A row is <bos> facts question answer<eos> question answer<eos> ... with every fact asked in turn.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Final

from transformers import PreTrainedTokenizerFast

from kvnet.model.reference.world import (
    TRAIN_FAMILIES,
    AskKind,
    Context,
    Style,
    ask,
    sample_context,
)

ANSWER_WEIGHT: Final = 1.0
OTHER_WEIGHT: Final = 0.02
_SHORT_NAMES: Final = (0.9, 0.1, 0.0)


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids and the loss weight of predicting each of them."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the curriculum: facts grow from `min_facts` to `max_facts` by `growth`.

    A `short_share` of its rows has between 2 and `short_max` facts instead.
    """

    style: Style
    min_facts: int
    max_facts: int
    growth: int = 1
    cloze_share: float = 0.4
    short_share: float = 0.3
    short_max: int = 40


_PLAIN = Style(plain_words=True, name_weights=(1.0, 0.0, 0.0), made_up_attributes=0.0)

STAGES: Final = (
    Stage(
        replace(_PLAIN, layout="column", families=("plain",), value_weights=(1.0, 0.0)),
        min_facts=3,
        max_facts=8,
        growth=2,
        cloze_share=1.0,
    ),
    Stage(
        replace(_PLAIN, families=("plain", "called", "of")),
        min_facts=4,
        max_facts=8,
        growth=2,
        cloze_share=0.6,
    ),
    Stage(_PLAIN, min_facts=6, max_facts=16, growth=2),
    Stage(Style(), min_facts=6, max_facts=16, growth=2),
    Stage(Style(), min_facts=16, max_facts=40, growth=4, short_share=0.7, short_max=18),
)


class RowSource:
    """Draws rows for one tokenizer from one seeded generator."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self.rng = random.Random(seed)
        self._backend = tokenizer.backend_tokenizer
        self._bos_id = int(tokenizer.bos_token_id)
        self._eos_id = int(tokenizer.eos_token_id)
        self._cache: dict[str, list[int]] = {}
        self._vocab_size = len(tokenizer)

    def recall_row(self, stage: Stage, num_facts: int, max_questions: int) -> Row:
        """A context of about `num_facts` facts, then up to `max_questions` of them asked."""
        style = self._vary(stage.style)
        context = sample_context(self.rng, num_facts, style=style)
        ids = [self._bos_id, *self._encode(context.text)]
        weights = [OTHER_WEIGHT] * len(ids)
        for prompt, answer in self._questions(context, stage, max_questions):
            ids += prompt + answer
            weights += [OTHER_WEIGHT] * len(prompt) + [ANSWER_WEIGHT] * len(answer)
        return Row(ids, weights)

    def repeat_row(self, max_tokens: int) -> Row:
        """Random tokens, then the same again; few distinct ones make longer matches needed."""
        num_tokens = self.rng.randint(4, max_tokens)
        if self.rng.random() < 0.3:
            alphabet = self.rng.choices(range(3, self._vocab_size), k=max(4, num_tokens // 2))
            tokens = self.rng.choices(alphabet, k=num_tokens)
        else:
            tokens = self.rng.choices(range(3, self._vocab_size), k=num_tokens)
        copied = [ANSWER_WEIGHT] * (num_tokens - 1)
        return Row([self._bos_id, *tokens, *tokens], [OTHER_WEIGHT] * (num_tokens + 2) + copied)

    def _vary(self, style: Style) -> Style:
        """Now and then another layout, idle sentences, lines: what people type is no full grid."""
        if style.layout == "grid" and self.rng.random() < 0.15:
            style = replace(style, layout=self.rng.choice(("column", "loose")))
        if style.families == TRAIN_FAMILIES and self.rng.random() < 0.15:
            style = replace(style, filler_share=0.2)
        if style.families == TRAIN_FAMILIES and self.rng.random() < 0.08:
            style = replace(style, separator="\n")
        return style

    def _questions(
        self, context: Context, stage: Stage, max_questions: int
    ) -> list[tuple[list[int], list[int]]]:
        echo = stage is STAGES[0]  # first in the very words that stated the fact
        facts = list(context.facts)
        self.rng.shuffle(facts)
        asked = []
        for fact in facts[:max_questions]:
            kind: AskKind = "cloze" if self.rng.random() < stage.cloze_share else "question"
            question = ask(fact, kind, self.rng)
            answer = [*self._encode(question.expected), self._eos_id]
            prompt = f"{fact.name}'s {fact.attribute} is" if echo else question.prompt
            asked.append((self._encode(prompt), answer))
        return asked

    def _encode(self, text: str) -> list[int]:
        """Token ids without <bos>, word by word from a cache (a word's tokens never depend on more)."""
        ids: list[int] = []
        for word in text.split(" "):
            if word not in self._cache:
                self._cache[word] = self._backend.encode(word, add_special_tokens=False).ids
            ids += self._cache[word]
        return ids
