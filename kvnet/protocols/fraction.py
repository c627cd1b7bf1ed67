"""How much of a cache can be left out: positions, by place or by the attention they get, and bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import torch

from kvnet.model.host import ModelHost
from kvnet.model.slots import Slots
from kvnet.protocols.protocol import MARK_METRICS, CellLog, Protocol, Setting
from kvnet.protocols.settings import Lab
from kvnet.protocols.trial import Trial

_DTYPES: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_LEAST_SCALE: Final = 1e-12


def measure(lab: Lab, setting: Setting, log: CellLog) -> None:
    """Arms `first`, `last`, `random`, `important` keep a `fraction` of the slots; `rounded` keeps `bits`."""
    trial = lab.trial_for(setting)
    trial.log_controls(log)
    slots = [reading.slots for reading in trial.own]
    ranks = _ranks(trial, setting.seed)
    for fraction in setting["fractions"]:
        for arm, ranked in ranks.items():
            kept = [keep(one, ranked[i], fraction) for i, one in enumerate(slots)]
            trial.log_arm(
                log, arm, trial.behind(kept.__getitem__), more=_kept_of(slots, kept), fraction=fraction
            )
    for dtype in setting["dtypes"]:
        cast = [replace(one, rows=one.rows.to(_DTYPES[dtype]).float()) for one in slots]
        trial.log_arm(log, dtype, trial.behind(cast.__getitem__), bits=16)
    for bits in setting["bits"]:
        coarse = [round_slots(one, bits) for one in slots]
        trial.log_arm(log, "rounded", trial.behind(coarse.__getitem__), bits=bits)


def keep(slots: Slots, ranked: torch.Tensor, fraction: float) -> Slots:
    """The share of the slots that stands first in `ranked`, at the positions where they were."""
    at = ranked[: round(fraction * slots.num_slots)].sort().values
    return replace(slots, rows=slots.rows[at], positions=slots.positions[at])


def round_slots(slots: Slots, bits: int) -> Slots:
    """Each head's keys and values of a slot rounded to `bits`, around zero, with a scale of their own."""
    groups = slots.rows.view(slots.num_slots, -1, slots.geometry.head_dim)
    most = 2 ** (bits - 1) - 1
    scale = (groups.abs().amax(-1, keepdim=True) / most).clamp_min(_LEAST_SCALE)
    return replace(slots, rows=((groups / scale).round().clamp(-most, most) * scale).flatten(1))


def importance(host: ModelHost, text: str) -> torch.Tensor:
    """[num_slots]: attention that each slot gets from those behind it, mean over layers and queries."""
    token_ids = host.tokenize_context(text)
    _, watch = host.watched_logits(token_ids, host.new_cache())
    weights = torch.stack(list(watch.weights.values())).tril(-1)  # [L, n, n] without what a slot gives itself
    followers = torch.arange(len(token_ids) - 1, -1, -1).clamp_min(1)
    return (weights.sum(1).mean(0) / followers)[host.num_sinks :]


def _ranks(trial: Trial, seed: int) -> dict[str, list[torch.Tensor]]:
    """By arm and lesson: its slots, those to be kept first. The question plays no part."""
    host = trial.exam.host
    generator = torch.Generator().manual_seed(seed)
    counts = [reading.slots.num_slots for reading in trial.own]
    attended = [importance(host, lesson.text) for lesson in trial.exam.lessons]
    return {
        "first": [torch.arange(count) for count in counts],
        "last": [torch.arange(count - 1, -1, -1) for count in counts],
        "random": [torch.randperm(count, generator=generator) for count in counts],
        "important": [one.argsort(descending=True, stable=True) for one in attended],
    }


def _kept_of(slots: list[Slots], kept: list[Slots]) -> Callable[[int], dict[str, float]]:
    return lambda i: {"kept": kept[i].num_slots / slots[i].num_slots}


PROTOCOL = Protocol(
    name="fraction",
    version=1,
    question="How much of a cache can be lost, by position and by precision, before a model forgets?",
    measure=measure,
    metrics={**MARK_METRICS, "kept": "share of the slots that were kept"},
)
