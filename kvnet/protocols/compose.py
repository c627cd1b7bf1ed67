"""Several memories as one: each put behind the one before, though none was read with it in view."""

from __future__ import annotations

import random
from collections.abc import Sequence

from kvnet.align.corpus import FAMILIAR, Lesson, Question
from kvnet.align.exam import asked_of
from kvnet.align.reading import LocalReader, hold
from kvnet.errors import RequestError
from kvnet.model.host import ModelHost
from kvnet.model.reference.world import ask, sample_context
from kvnet.model.slots import Slots, join
from kvnet.protocols.protocol import CellLog, Protocol, Setting
from kvnet.protocols.settings import Lab, stranger_to

_MOST_DRAWS = 200  # until parts speak of different people


def measure(lab: Lab, setting: Setting, log: CellLog) -> None:
    """Arms `joined`, `closed` (joined, each part read with a few words behind it), `reversed` (the parts in
    the other order), `first` and `last` (one part alone), `mapped` (joined, each part from the first model of
    `path`, behind its map's own closing words). The parameter `part` is the one that is asked about.
    """
    names = setting["path"].split("+")
    if len(names) > 2 or not all(names):
        raise RequestError(f"path is {setting['path']!r:.60}, wanted one model, or two as in ref-a+ref-b")
    num_parts, name = setting["parts"], names[-1]
    drawn = [
        draw_parts(
            random.Random(f"compose {setting.seed} {i}"), num_parts, setting["facts"], setting["questions"]
        )
        for i in range(setting["lessons"])
    ]
    whole = [
        Lesson(" ".join(p.text for p in parts), tuple(q for p in parts for q in p.questions))
        for parts in drawn
    ]
    trial = lab.trial_of("facts", name, stranger_to(name, names[0]), whole)
    part_of = [_part_of(trial.exam.host, parts, i) for i, parts in enumerate(drawn)]
    flat = [place for places in part_of for place in places]
    trial.parameters_of = lambda question: {"part": flat[question]}
    trial.log_controls(log)
    held = [_read(trial.exam.host, parts) for parts in drawn]
    joined = {
        "joined": [join(parts) for parts in held],
        "closed": [join(_read(trial.exam.host, parts, setting["closing"])) for parts in drawn],
        "reversed": [join(parts[::-1]) for parts in held],
        "first": [parts[0] for parts in held],
        "last": [parts[-1] for parts in held],
    }
    if len(names) == 2:
        joined["mapped"] = [join(_mapped(lab, names, parts)) for parts in drawn]
    for arm, slots in joined.items():
        source = names[0] if arm == "mapped" else name
        trial.log_arm(log, arm, trial.behind(slots.__getitem__), source=source)


def draw_parts(rng: random.Random, num_parts: int, num_facts: int, num_questions: int) -> tuple[Lesson, ...]:
    """Texts of which no two speak of the same person, so that each question has one answer."""
    parts: list[Lesson] = []
    known: set[str] = set()
    for _ in range(_MOST_DRAWS):
        context = sample_context(rng, num_facts, style=FAMILIAR)
        names = {fact.name for fact in context.facts}
        if names & known:
            continue
        known |= names
        facts = rng.sample(context.facts, min(num_questions, num_facts))
        asked = [ask(fact, "question" if i % 2 else "cloze", rng) for i, fact in enumerate(facts)]
        parts.append(Lesson(context.text, tuple(Question(q.prompt, q.expected) for q in asked)))
        if len(parts) == num_parts:
            return tuple(parts)
    raise RequestError(f"no {num_parts} texts of {num_facts} facts speak of different people; ask for fewer")


def _part_of(host: ModelHost, parts: Sequence[Lesson], lesson_idx: int) -> list[int]:
    return [i for i, part in enumerate(parts) for _ in asked_of(host, part, lesson_idx)]


def _read(host: ModelHost, parts: Sequence[Lesson], closing: str = "") -> list[Slots]:
    return [
        reading.slots for reading in hold(LocalReader(host).read([part.text + closing for part in parts]))
    ]


def _mapped(lab: Lab, names: Sequence[str], parts: Sequence[Lesson]) -> list[Slots]:
    """Each part through the map by itself."""
    source, receiver = (lab.host(name) for name in names)
    bridge = lab.bridge(source, receiver)
    texts = [part.text + bridge.alignment.manifest.closing for part in parts]
    readings = hold(LocalReader(source).read(texts))
    return [bridge.alignment.apply(one.slots, bridge.port, rows_of=receiver.rows_of) for one in readings]


PROTOCOL = Protocol(
    name="compose",
    version=1,
    question="Can several memories be joined without reading their texts again?",
    measure=measure,
)
