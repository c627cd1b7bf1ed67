"""Ask a model for facts it has read and count exact answers. Knows models and the world; trains nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from kvnet.model.reference.world import AskKind, Context, Question, Style, ask, sample_context

_KINDS: Final[tuple[AskKind, ...]] = ("cloze", "question")


@dataclass(frozen=True, slots=True)
class Recall:
    """`num_right` of `num_asked` questions answered exactly, terminator and <eos> included."""

    num_right: int
    num_asked: int

    @property
    def share(self) -> float:
        return self.num_right / self.num_asked


def measure_recall(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    style: Style,
    *,
    num_facts: int,
    num_questions: int,
    kind: AskKind | None = None,
    with_context: bool = True,
    seed: int = 99,
) -> Recall:
    """Recall over fresh contexts of `num_facts` facts, at most 12 questions a context."""
    rng = random.Random(f"{seed} {num_facts}")
    kinds = (kind,) if kind else _KINDS
    num_right = num_asked = 0
    while num_asked < num_questions:
        context = sample_context(rng, num_facts, style=style)
        facts = rng.sample(context.facts, min(12, num_facts, num_questions - num_asked))
        questions = [ask(fact, rng.choice(kinds), rng) for fact in facts]
        right = answer_exactly(model, tokenizer, context if with_context else None, questions)
        num_right += sum(right)
        num_asked += len(right)
    return Recall(num_right, num_asked)


def mean_context_tokens(tokenizer: PreTrainedTokenizerFast, num_facts: int) -> int:
    """Tokens of an average context of `num_facts` facts, <bos> included."""
    rng = random.Random(num_facts)
    texts = [sample_context(rng, num_facts, "train").text for _ in range(50)]
    return round(sum(len(tokenizer.encode(text)) for text in texts) / len(texts))


@torch.inference_mode()
def answer_exactly(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    context: Context | None,
    questions: Sequence[Question],
) -> list[bool]:
    """Whether the greedy answer to each question is the expected one.

    A chain of argmaxes under the expected tokens is right if and only if greedy decoding is, so one
    forward pass decides. The context is prefilled once; the questions share its cache.
    """
    memory_ids = tokenizer.encode(context.text if context else "")
    prompts = [tokenizer.encode(q.prompt, add_special_tokens=False) for q in questions]
    answers = [
        [*tokenizer.encode(q.expected, add_special_tokens=False), tokenizer.eos_token_id] for q in questions
    ]
    seq_len = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    batch = torch.full((len(questions), seq_len), int(tokenizer.pad_token_id))
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        batch[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
    cache = model(torch.tensor([memory_ids]), use_cache=True).past_key_values
    cache.batch_repeat_interleave(len(questions))
    choice = model(batch, past_key_values=cache).logits.argmax(-1)  # [questions, seq_len]
    return [
        choice[row, len(p) - 1 : len(p) + len(a) - 1].tolist() == a
        for row, (p, a) in enumerate(zip(prompts, answers, strict=True))
    ]
