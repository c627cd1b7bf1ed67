"""What protocols do to memories: slots kept, rounded, recast, blinded; and the harness with its faults."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from kvnet.align.corpus import fact_lessons
from kvnet.model.blinding import Blindfold, blinding
from kvnet.protocols.compose import draw_parts
from kvnet.protocols.fraction import importance, keep, round_slots
from kvnet.protocols.original import Fault, ask_all
from kvnet.protocols.protocol import Setting
from kvnet.protocols.settings import Lab, stranger_to
from kvnet.protocols.trial import Trial, recast


@pytest.fixture(scope="module")
def lab(cache_dir: Path) -> Lab:
    torch.set_num_threads(1)
    return Lab(cache_dir)


@pytest.fixture(scope="module")
def trial(lab: Lab) -> Trial:
    parameters = {"model": "ref-a", "other": "auto", "task": "facts", "lessons": 4, "questions": 4}
    with torch.no_grad():
        return lab.trial_for(Setting("c", parameters, 0))


def test_kept_slots_stay_where_they_were(trial: Trial) -> None:
    slots = trial.own[0].slots
    kept = keep(slots, torch.arange(slots.num_slots - 1, -1, -1), 0.25)
    assert kept.span == slots.span
    assert kept.positions.tolist() == list(range(slots.span))[-kept.num_slots :]
    assert torch.equal(kept.rows, slots.rows[-kept.num_slots :])
    assert keep(slots, torch.arange(slots.num_slots), 1.0).num_slots == slots.num_slots


def test_rounding_errs_by_at_most_half_a_step_and_less_with_more_bits(trial: Trial) -> None:
    slots = trial.own[0].slots
    peak = (
        slots.rows.view(slots.num_slots, -1, slots.geometry.head_dim).abs().amax(-1).repeat_interleave(32, 1)
    )
    for bits in (2, 4, 8):
        error = (round_slots(slots, bits).rows - slots.rows).abs()
        assert bool((error <= peak / (2 ** (bits - 1) - 1) / 2 + 1e-5).all())
    assert float(error.max()) < 0.1


def test_last_slot_gets_no_attention_from_behind(trial: Trial) -> None:
    found = importance(trial.exam.host, trial.exam.lessons[0].text)
    assert found.shape == (trial.own[0].slots.num_slots,)
    assert float(found[-1]) == 0
    assert float(found.max()) > 0


def test_recast_slots_keep_what_both_shapes_have(lab: Lab, trial: Trial) -> None:
    slots, larger = trial.own[0].slots, lab.host("ref-b").geometry
    there = recast(slots, larger)
    back = recast(there, slots.geometry)
    assert there.rows.shape[1] == 2 * larger.num_layers * larger.num_kv_heads * larger.head_dim
    assert torch.equal(back.rows, slots.rows)


def test_stranger_is_never_the_model_itself() -> None:
    for model in ("ref-a", "ref-b", "ref-c"):
        assert stranger_to(model) != model
        assert stranger_to(model, model) != model
        assert stranger_to(model, "another") == "another"


def test_model_whose_every_layer_is_blinded_answers_as_without_a_memory(trial: Trial) -> None:
    host, asked = trial.exam.host, trial.exam.asked[0]
    slots = trial.own[0].slots
    say = trial.behind(lambda i: trial.own[i].slots)
    seen = say(asked)
    every = frozenset(range(host.geometry.num_layers))
    hidden = Blindfold(every, host.num_sinks, host.num_sinks + slots.num_slots)
    with blinding(host.module, hidden):
        blinded = say(asked)
    with blinding(host.module, Blindfold(frozenset(), 0, 0)):
        unhidden = say(asked)
    far_behind_nothing = trial.exam.behind(lambda _: (host.sink_cache(), slots.span))(asked)
    assert torch.allclose(unhidden, seen, atol=1e-3)
    assert not torch.allclose(blinded, seen, atol=1.0)
    assert torch.allclose(blinded, far_behind_nothing, atol=1e-3)
    assert torch.equal(say(asked), seen)  # it is as it was


def test_sound_harness_is_right_and_a_short_mask_alone_makes_it_find_nothing(trial: Trial) -> None:
    lessons = list(fact_lessons(4, seed=5, num_questions=4))
    found = {
        faults: list(ask_all(trial.exam.host, lessons, faults))
        for faults in (frozenset(), frozenset({Fault.SHORT_MASK}), frozenset({Fault.SECOND_BOS}))
    }
    sound, short, second = found.values()
    assert len(sound) == len(short) == 16
    assert sum(reply.exact for reply in sound) >= 14
    assert sum(reply.exact for reply in short) == 0
    assert sum(reply.exact for reply in second) >= 12


def test_parts_speak_of_different_people() -> None:
    parts = draw_parts(random.Random("parts"), 3, 4, 2)
    assert len(parts) == 3
    spoken = [{word for word in part.text.split() if word.endswith("'s")} for part in parts]
    assert not spoken[0] & spoken[1]
    assert not spoken[1] & spoken[2]
