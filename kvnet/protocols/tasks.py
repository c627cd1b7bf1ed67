"""What models are asked in an experiment: texts with questions, from a seed or from a user's file.

Knows texts; a model only to find out whether a task fits it. No text here is drawn from a seed that anything
was trained, calibrated or admitted on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Final

from kvnet.align.corpus import FAMILIAR, Lesson, Question, fact_lessons
from kvnet.align.exam import asked_of
from kvnet.errors import MalformedMessage, RequestError
from kvnet.format import strict_json
from kvnet.model.host import ModelHost
from kvnet.model.reference import words
from kvnet.model.reference.world import HELDOUT_FAMILY, sample_context, state

_SEED: Final = 4_000_000  # calibration takes 1000 * seed + i, exams 10,000 to 20,000
_COPIED_WORDS: Final = 44
_COPY_STEP: Final = 2  # words between the beginnings of two questions
_COPY_PROMPT: Final = 3  # words
_CHAINS: Final = 4  # of two facts each, in a multi-hop text
_RESTATED_FACTS: Final = 8
_MOST_FILE_NBYTES: Final = 64 << 20
_MOST_CHARS: Final = 1 << 20  # of a context in it


@dataclass(frozen=True, slots=True)
class Task:
    """`draw(count, num_questions, seed)` gives that many lessons, at most so many questions each."""

    name: str
    about: str
    draw: Callable[[int, int, int], Iterator[Lesson]]


def find_task(name: str) -> Task:
    """A task by name, or that of a JSONL file. Raises RequestError for one that does not exist."""
    if name.endswith(".jsonl"):
        return Task(Path(name).name, "a user's own", lambda count, most, _: _from_file(name, count, most))
    if name not in TASKS:
        raise RequestError(
            f"no task {name!r:.60}; there are {', '.join(TASKS)}, or a file that ends in .jsonl"
        )
    return TASKS[name]


def draw_lessons(name: str, host: ModelHost, count: int, num_questions: int, seed: int) -> tuple[Lesson, ...]:
    """A task's lessons, if they fit the model. Raises RequestError, naming what does not fit."""
    task = find_task(name)
    lessons = tuple(task.draw(count, num_questions, seed))
    if len(lessons) < 2:
        raise RequestError(
            f"task {task.name} has {len(lessons)} texts, the control of another text needs 2; give more"
        )
    refuse_unfit(task, host, lessons)
    return lessons


def refuse_unfit(task: Task, host: ModelHost, lessons: Sequence[Lesson]) -> None:
    """Raise RequestError for lessons that the model cannot read whole, or be asked about."""
    num_asked = 0
    for lesson_idx, lesson in enumerate(lessons):
        asked = asked_of(host, lesson, lesson_idx)
        num_asked += len(asked)
        num_tokens = len(host.tokenize_context(lesson.text)) + max(
            (len(a.token_ids) for a in asked), default=0
        )
        if num_tokens > host.max_seq_len:
            raise RequestError(
                f"task {task.name} does not fit {host.name}: text and question have {num_tokens} tokens, "
                f"the model holds {host.max_seq_len}; give a model that holds more, or a shorter task"
            )
    if not num_asked:
        raise RequestError(
            f"task {task.name} does not fit {host.name}: its tokenizer melts every answer into its question, "
            "so none can be scored; give other questions, or another model"
        )


def _facts(count: int, num_questions: int, seed: int) -> Iterator[Lesson]:
    return fact_lessons(count, seed=_SEED + seed, num_questions=num_questions)


def _unseen(count: int, num_questions: int, seed: int) -> Iterator[Lesson]:
    style = replace(FAMILIAR, families=(HELDOUT_FAMILY,))
    return fact_lessons(count, seed=_SEED + seed, style=style, num_questions=num_questions)


def _multi_hop(count: int, num_questions: int, seed: int) -> Iterator[Lesson]:
    """Ada's friend is Bob. Bob's pet is owl. -> Ada's friend's pet is: two facts for one answer."""
    rng = random.Random(f"multi-hop {seed}")
    for _ in range(count):
        names = rng.sample(words.REAL_NAMES, 2 * _CHAINS)
        pets = rng.sample(words.CATEGORIES["animal"], _CHAINS)
        chains = list(zip(names[:_CHAINS], names[_CHAINS:], pets, strict=True))
        facts = [f"{a}'s friend is {b}." for a, b, _ in chains] + [f"{b}'s pet is {p}." for _, b, p in chains]
        rng.shuffle(facts)
        asked = rng.sample(chains, min(num_questions, _CHAINS))
        yield Lesson(" ".join(facts), tuple(Question(f"{a}'s friend's pet is", f"{p}.") for a, _, p in asked))


def _copy(count: int, num_questions: int, seed: int) -> Iterator[Lesson]:
    """Words in no order; asked for the rest after a few of them, which is 32 tokens and more."""
    rng = random.Random(f"copy {seed}")
    listed = [word for category in words.CATEGORIES.values() for word in category]
    for _ in range(count):
        drawn = rng.sample(listed, _COPIED_WORDS)
        starts = range(0, _COPY_STEP * min(num_questions, 4), _COPY_STEP)
        parts = ((drawn[i : i + _COPY_PROMPT], drawn[i + _COPY_PROMPT :]) for i in starts)
        yield Lesson(" ".join(drawn), tuple(Question(" ".join(a), " ".join(b)) for a, b in parts))


def _continuation(count: int, num_questions: int, seed: int) -> Iterator[Lesson]:
    """Facts, and a text that states all of them again in another order and other words."""
    rng = random.Random(f"continuation {seed}")
    for _ in range(count):
        context = sample_context(rng, _RESTATED_FACTS, style=FAMILIAR)
        asked = []
        for _ in range(min(num_questions, 2)):
            facts = rng.sample(context.facts, len(context.facts))
            asked.append(Question("", " ".join(state(fact, rng) for fact in facts)))
        yield Lesson(context.text, tuple(asked))


TASKS: Final[dict[str, Task]] = {
    task.name: task
    for task in (
        Task("facts", "random facts of fresh seeds, in phrasings that models were trained on", _facts),
        Task(
            "unseen", "random facts in a family of phrasings that nothing was trained or fitted on", _unseen
        ),
        Task("multi-hop", "answers that need two facts", _multi_hop),
        Task("copy", "44 words in no order, to be said again", _copy),
        Task("continuation", "the facts again, in other words and another order", _continuation),
    )
}


@dataclass(frozen=True, slots=True)
class _Line:
    context: str = field(metadata={"max_chars": _MOST_CHARS})
    question: str = field(metadata={"max_chars": _MOST_CHARS})
    answer: str = field(metadata={"max_chars": _MOST_CHARS})


def _from_file(name: str, count: int, num_questions: int) -> Iterator[Lesson]:
    """At most `count` lessons: lines with the same context are one."""
    path = Path(name).expanduser()
    try:
        if path.stat().st_size > _MOST_FILE_NBYTES:
            raise RequestError(f"task {name}: more than {_MOST_FILE_NBYTES} bytes; cut it")
        lines = path.read_bytes().splitlines()
    except OSError as exc:
        raise RequestError(f"task {name}: cannot be read ({exc.strerror}); give a JSONL file") from exc
    found: dict[str, list[Question]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        what = f"task {path.name} line {number}"
        try:
            one = strict_json.decode(_Line, line, what=what, max_nbytes=8 * _MOST_CHARS)
        except MalformedMessage as exc:
            raise RequestError(f"{exc.message}; a line has context, question and answer") from exc
        if not (one.context.strip() and one.answer.strip()):
            raise RequestError(f"{what}: context and answer hold a word or more each")
        found.setdefault(one.context, []).append(Question(one.question, one.answer))
    lessons = (Lesson(context, tuple(asked[:num_questions])) for context, asked in found.items())
    return islice(lessons, count)
