"""Questions put to a model behind a memory, scored against what it says having read the text itself.

Knows models and slots; not how the slots came to be. Gap recovered is (memory - none) / (text - none), in
recall of whole answers (DESIGN §7).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from kvnet.align.corpus import Lesson, Question
from kvnet.alignment import Interval
from kvnet.errors import TooFewSamples
from kvnet.model.cache import Cache, cache_seq_len, crop_cache
from kvnet.model.generation import never, refuse_cancelled
from kvnet.model.host import ModelHost
from kvnet.model.slots import Slots

SlotsFor = Callable[[int], Slots | None]  # the memory of the i-th lesson, or none
# Log-probabilities [answer length, vocab_size] of an answer, however the model came to be asked.
Say = Callable[["Asked"], torch.Tensor]
AskedOf = Callable[[ModelHost, Lesson, int], list["Asked"]]  # what is asked of the i-th lesson
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Asked:
    """One question of one lesson; the predictions from `first_scored` on are those of the answer."""

    lesson_idx: int
    token_ids: tuple[int, ...]
    first_scored: int
    answer_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """One question in one arm. `kl` (text || arm), `nll` and `nll_text` are nats a token of the answer;
    `top1` is the share of its tokens where both say the same.
    """

    right: bool
    kl: float
    top1: float
    nll: float
    nll_text: float
    num_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Marks:
    """One arm: for each question whether the whole answer was right, and KL(text || arm) in nats."""

    right: torch.Tensor  # float64 [num_questions], 0 or 1
    kl: torch.Tensor  # float64 [num_questions], mean over the answer's tokens

    @property
    def recall(self) -> float:
        """Share of whole answers that were right."""
        return float(self.right.mean())

    @property
    def mean_kl(self) -> float:
        """Mean over questions, in nats."""
        return float(self.kl.mean())


class Exam:
    """Lessons that one model was asked about having read them, and may be asked about again."""

    def __init__(
        self,
        host: ModelHost,
        lessons: Sequence[Lesson],
        *,
        asking: AskedOf | None = None,
        cancelled: Callable[[], bool] = never,
    ) -> None:
        self.host = host
        self.lessons = lessons
        self.asked: list[Asked] = []
        self._heard: list[torch.Tensor] = []  # log-probabilities [answer length, vocab_size] after the text
        right = []
        for lesson_idx, lesson in enumerate(lessons):
            refuse_cancelled(cancelled)
            cache = host.new_cache()
            host.prefill(host.tokenize_context(lesson.text), cache)
            for asked in (asking or asked_of)(host, lesson, lesson_idx):
                heard = answer_behind(host, cache, asked)
                self.asked.append(asked)
                self._heard.append(heard)
                right.append(_is_right(heard, asked))
        if not right:
            raise TooFewSamples("the exam has no question whose answer can be told from it; give other texts")
        self.text = Marks(
            torch.tensor(right, dtype=torch.float64), torch.zeros(len(right), dtype=torch.float64)
        )

    def sit(self, slots_for: SlotsFor, *, cancelled: Callable[[], bool] = never) -> Marks:
        """The marks of one arm: every question behind what `slots_for` gives for its lesson."""

        def begin(lesson_idx: int) -> tuple[Cache, int]:
            refuse_cancelled(cancelled)
            return _begin(self.host, slots_for(lesson_idx))

        found = list(self.mark(self.behind(begin)))
        return Marks(
            torch.tensor([mark.right for mark in found], dtype=torch.float64),
            torch.tensor([mark.kl for mark in found], dtype=torch.float64),
        )

    def behind(self, begin: Callable[[int], tuple[Cache, int]]) -> Say:
        """How answers sound behind `begin(lesson_idx)`: a cache, which no question changes, and its gaps."""
        held: dict[int, tuple[Cache, int]] = {}

        def say(asked: Asked) -> torch.Tensor:
            if asked.lesson_idx not in held:
                held.clear()  # one cache at a time: questions come lesson by lesson
                held[asked.lesson_idx] = begin(asked.lesson_idx)
            cache, num_gaps = held[asked.lesson_idx]
            return answer_behind(self.host, cache, asked, num_gaps=num_gaps)

        return say

    def mark(self, say: Say | None = None) -> Iterator[Mark]:
        """One mark a question, in the order of `asked`; without `say` those of the text itself."""
        for asked, heard in zip(self.asked, self._heard, strict=True):
            yield _mark(asked, heard, heard if say is None else say(asked))

    def gap_recovered(self, arm: Marks, none: Marks, *, seed: int = 0) -> Interval:
        """(arm - none) / (text - none) in recall, with a paired bootstrap over lessons."""
        lesson_idx = torch.tensor([asked.lesson_idx for asked in self.asked])
        sums = torch.zeros(len(self.lessons), 3, dtype=torch.float64)
        sums.index_add_(0, lesson_idx, torch.stack([arm.right, none.right, self.text.right], 1))
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(len(sums), (_RESAMPLES, len(sums)), generator=generator)
        gaps = _gap(sums[drawn].sum(1)).sort().values  # [resamples, lessons, 3] -> [resamples]
        low, high = (float(gaps[round(q * (_RESAMPLES - 1))]) for q in (0.025, 0.975))
        return Interval(float(_gap(sums.sum(0))), low, high)


def _gap(sums: torch.Tensor) -> torch.Tensor:
    """[..., 3] right answers of arm, none and text -> [...]; 0 where the text itself taught nothing."""
    arm, none, text = sums.unbind(-1)
    taught = text - none
    return torch.where(taught > 0, (arm - none) / taught.clamp_min(1e-9), torch.zeros_like(taught))


def asked_of(host: ModelHost, lesson: Lesson, lesson_idx: int) -> list[Asked]:
    """The lesson's questions as this model's tokens; without those whose answer melts into the prompt."""
    found = []
    for question in lesson.questions:
        prompt_ids, whole = _tokens_of(host, question)
        first = max(len(prompt_ids), 1)
        if whole[: len(prompt_ids)] == prompt_ids and len(whole) > first:
            found.append(Asked(lesson_idx, tuple(whole[:-1]), first - 1, tuple(whole[first:])))
    return found


@contextmanager
def ask_behind(cache: Cache) -> Iterator[None]:
    """Whatever is read inside, the cache is as it was afterwards."""
    length = cache_seq_len(cache)
    try:
        yield
    finally:
        crop_cache(cache, length)


def _tokens_of(host: ModelHost, question: Question) -> tuple[list[int], list[int]]:
    """(the prompt, the prompt and its answer): the reply to a turn if the model is a chat model."""
    if not question.prompt:
        return [], _plain(host, question.expected)
    prompt_ids = host.tokenize_question(question.prompt, after_memory=True)
    if host.tokenizer.chat_template:
        return prompt_ids, prompt_ids + _plain(host, question.expected)
    return prompt_ids, _plain(host, f"{question.prompt} {question.expected}".strip())


def _plain(host: ModelHost, text: str) -> list[int]:
    return list(host.tokenizer.encode(text, add_special_tokens=False))


def _begin(host: ModelHost, slots: Slots | None) -> tuple[Cache, int]:
    """A cache to ask behind, and how many positions before the question have no slot."""
    if slots is None:
        return host.sink_cache(), 0
    return host.inject_slots(slots), slots.span - slots.num_slots


def answer_behind(host: ModelHost, cache: Cache, asked: Asked, *, num_gaps: int = 0) -> torch.Tensor:
    """Log-probabilities [answer length, vocab_size] where the answer is predicted; the cache stays as is."""
    with ask_behind(cache):
        logits = host.all_logits(asked.token_ids, cache, num_gaps=num_gaps)
    return logits[asked.first_scored :].float().log_softmax(-1)


def _mark(asked: Asked, heard: torch.Tensor, said: torch.Tensor) -> Mark:
    answer = torch.tensor(asked.answer_ids, device=said.device)[:, None]
    nll, nll_text = (-float(one.gather(1, answer).mean()) for one in (said, heard))
    return Mark(
        right=_is_right(said, asked),
        kl=float((heard.exp() * (heard - said)).sum(-1).mean()),
        top1=float((said.argmax(-1) == heard.argmax(-1)).double().mean()),
        nll=nll,
        nll_text=nll_text,
        num_tokens=len(asked.answer_ids),
    )


def _is_right(said: torch.Tensor, asked: Asked) -> bool:
    return said.argmax(-1).tolist() == list(asked.answer_ids)
