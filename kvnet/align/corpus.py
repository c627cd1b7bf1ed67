"""What maps are fitted to and examined on: texts with questions whose answers are in them.

Knows texts and where they come from; no models, no tensors.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Final

from kvnet.errors import RequestError, TooFewSamples
from kvnet.model.reference.world import Style, ask, sample_context
from kvnet.types import canonical_json, sha256_hex, to_plain

FAMILIAR: Final = Style(
    "train",
    plain_words=True,
    name_weights=(1.0, 0.0, 0.0),
    value_weights=(1.0, 0.0),
    made_up_attributes=0.0,
)
_FACT_COUNTS: Final = (8, 12, 16)
_LONGEST_TEXT: Final = 4000  # characters: a few hundred tokens
_LEAST_TEXTS: Final = 16
_MOST_CORPUS_NBYTES: Final = 64 << 20
_BLANK_LINES: Final = re.compile(r"\n\s*\n")
_QUESTION_SHARE: Final = 0.25  # of a text without questions: its end follows its beginning


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt to put behind a text, and the reply that the text calls for."""

    prompt: str
    expected: str


@dataclass(frozen=True, slots=True)
class Lesson:
    """A text, and what may be asked of it."""

    text: str
    questions: tuple[Question, ...]


def fact_lessons(
    count: int,
    *,
    seed: int,
    style: Style = FAMILIAR,
    fact_counts: Sequence[int] = _FACT_COUNTS,
    num_questions: int = 16,
) -> Iterator[Lesson]:
    """Random facts in random phrasings, at most `num_questions` of a text asked for; as the seed has it."""
    rng = random.Random(f"lessons {seed}")
    for _ in range(count):
        context = sample_context(rng, rng.choice(fact_counts), style=style)
        facts = rng.sample(context.facts, min(num_questions, len(context.facts)))
        asked = (ask(fact, "question" if i % 2 else "cloze", rng) for i, fact in enumerate(facts))
        yield Lesson(context.text, tuple(Question(q.prompt, q.expected) for q in asked))


def calibration_lessons(count: int, *, seed: int, num_questions: int = 16) -> Iterator[Lesson]:
    """Facts as `fact_lessons` has them; one text in eight with idle sentences, one in eight a fact a line.

    A map knows what stood in its texts, so these have some of what surrounds facts elsewhere.
    """
    styles = (FAMILIAR,) * 6 + (replace(FAMILIAR, filler_share=0.4), replace(FAMILIAR, separator="\n"))
    drawn = [
        fact_lessons(-(-count // len(styles)), seed=1000 * seed + i, style=style, num_questions=num_questions)
        for i, style in enumerate(styles)
    ]
    return islice(chain.from_iterable(zip(*drawn, strict=True)), count)


def read_lessons(path: Path) -> tuple[Lesson, ...]:
    """The paragraphs of a text file, apart by blank lines; the last quarter of each stands for a question.

    Raises RequestError for a file that is no text or too large, TooFewSamples for fewer than 16 paragraphs.
    """
    if path.stat().st_size > _MOST_CORPUS_NBYTES:
        raise RequestError(
            f"{path}: {path.stat().st_size} bytes of corpus, at most {_MOST_CORPUS_NBYTES}; cut it"
        )
    try:
        whole = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise RequestError(f"{path}: not UTF-8 at byte {exc.start}; give a plain text file") from exc
    lessons = []
    for paragraph in _BLANK_LINES.split(whole):
        words = " ".join(paragraph.split())[:_LONGEST_TEXT].split(" ")
        cut = len(words) - round(_QUESTION_SHARE * len(words))
        if 0 < cut < len(words):
            lessons.append(Lesson(" ".join(words[:cut]), (Question("", " ".join(words[cut:])),)))
    if len(lessons) < _LEAST_TEXTS:
        raise TooFewSamples(
            f"{path} has {len(lessons)} paragraphs of several words, a fit needs {_LEAST_TEXTS}; "
            "put a blank line between paragraphs, or give more text"
        )
    return tuple(lessons)


def digest_lessons(lessons: Sequence[Lesson]) -> str:
    """sha256:<hex> over the texts and the questions, in order."""
    return sha256_hex(canonical_json([to_plain(lesson) for lesson in lessons]))
