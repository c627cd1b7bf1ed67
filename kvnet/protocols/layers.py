"""Which layers carry what: each left out, each alone, keys and values apart, for words and for grammar."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import torch

from kvnet.align.corpus import FAMILIAR, Lesson, Question
from kvnet.align.exam import Asked, Say
from kvnet.errors import RequestError
from kvnet.model.blinding import Blindfold, blinding
from kvnet.model.host import ModelHost
from kvnet.model.reference.world import sample_context
from kvnet.model.slots import Slots
from kvnet.protocols.protocol import CellLog, Protocol, Setting
from kvnet.protocols.settings import Lab, stranger_to
from kvnet.protocols.trial import Trial

PROBES: Final = ("value", "verb", "stop")  # meaning; then grammar: "is", and the full stop
_FACTS: Final = 8


def measure(lab: Lab, setting: Setting, log: CellLog) -> None:
    """Arms `without` and `only` hide layers' memory; `keys`, `values`: the other half is another text's."""
    probe, name = setting["probe"], setting["model"]
    if probe not in PROBES:
        raise RequestError(f"probe is {probe!r:.40}, it must be one of {', '.join(PROBES)}")
    lessons = tuple(_draw(setting["lessons"], setting["questions"], setting.seed))
    other = stranger_to(name, setting["other"])
    trial = lab.trial_of("facts", name, other, lessons, lambda *one: _asked_of(probe, *one))
    trial.log_controls(log)
    slots = [reading.slots for reading in trial.own]
    every = frozenset(range(trial.exam.host.geometry.num_layers))
    for layer in sorted(every):
        trial.log_arm(log, "without", _blinded(trial, frozenset({layer})), layer=layer)
        trial.log_arm(log, "only", _blinded(trial, every - {layer}), layer=layer)
    choices: list[tuple[frozenset[int], dict[str, Any]]] = [(every, {})]
    choices += [(frozenset({layer}), {"layer": layer}) for layer in sorted(every)]
    for layers, parameters in choices:
        for arm, half in (("keys", 1), ("values", 0)):
            mixed = [_swap(one, slots[(i + 1) % len(slots)], layers, half) for i, one in enumerate(slots)]
            trial.log_arm(log, arm, trial.behind(mixed.__getitem__), **parameters)


def _blinded(trial: Trial, layers: frozenset[int]) -> Say:
    """How answers sound where `layers` do not see the memory, though they see the question."""
    host = trial.exam.host
    say = trial.behind(lambda i: trial.own[i].slots)

    def said(asked: Asked) -> torch.Tensor:
        num_slots = trial.own[asked.lesson_idx].slots.num_slots
        with blinding(host.module, Blindfold(layers, host.num_sinks, host.num_sinks + num_slots)):
            return say(asked)

    return said


def _swap(slots: Slots, other: Slots, layers: frozenset[int], half: int) -> Slots:
    """`half` (0: keys, 1: values) of `layers` from another text's slots, repeated where those are too few."""
    shape = (-1, slots.geometry.num_layers, 2, slots.geometry.num_kv_heads * slots.geometry.head_dim)
    rows = slots.rows.view(shape).clone()
    at = torch.arange(slots.num_slots) % other.num_slots
    for layer in layers:
        rows[:, layer, half] = other.rows.view(shape)[at, layer, half]
    return replace(slots, rows=rows.flatten(1))


def _draw(count: int, num_questions: int, seed: int) -> Iterator[Lesson]:
    """Facts; a question is what a fact is about, and its value."""
    rng = random.Random(f"layers {seed}")
    for _ in range(count):
        context = sample_context(rng, _FACTS, style=FAMILIAR)
        facts = rng.sample(context.facts, min(num_questions, _FACTS))
        yield Lesson(context.text, tuple(Question(f"{f.name}'s {f.attribute}", f.value) for f in facts))


def _asked_of(probe: str, host: ModelHost, lesson: Lesson, lesson_idx: int) -> list[Asked]:
    """What follows "Ada's pet": the verb; after it the value; after that the full stop."""

    def encode(text: str) -> list[int]:
        return list(host.tokenizer.encode(text, add_special_tokens=False))

    found = []
    for question in lesson.questions:
        said = f"{question.prompt} is {question.expected}"
        cuts = [encode(question.prompt), encode(f"{question.prompt} is"), encode(said), encode(f"{said}.")]
        place = {"verb": 0, "value": 1, "stop": 2}[probe]
        before, whole = cuts[place], cuts[place + 1]
        if whole[: len(before)] == before and len(whole) > len(before):
            found.append(Asked(lesson_idx, tuple(whole[:-1]), len(before) - 1, tuple(whole[len(before) :])))
    return found


PROTOCOL = Protocol(
    name="layers",
    version=1,
    question="Which layers carry what, and is it their keys or their values?",
    measure=measure,
)
