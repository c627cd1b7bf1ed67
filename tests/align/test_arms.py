"""The table of a map: which arms there are, in which order, and that controls carry nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvnet.align.arms import EVERY_ARM, Arm, measure_arms
from kvnet.align.corpus import fact_lessons
from kvnet.align.exam import Exam
from kvnet.align.examine import Sitting
from kvnet.align.map import AlignmentMap
from kvnet.align.port import Port
from kvnet.align.reading import LocalReader
from kvnet.alignment import Intake, row_width
from kvnet.errors import Cancelled
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from tests.files.alignment_files import make_map


@pytest.fixture(scope="module")
def sitting(tmp_path_factory: pytest.TempPathFactory) -> Sitting:
    """A model that is its own source."""
    torch.set_num_threads(1)
    host = ModelHost.load(ModelSpec("ref-a"), tmp_path_factory.mktemp("cache"))
    exam = Exam(host, list(fact_lessons(3, seed=9, fact_counts=(4,), num_questions=4)))
    return Sitting.of(LocalReader(host), exam)


@pytest.fixture(scope="module")
def identity(sitting: Sitting) -> AlignmentMap:
    """The map that changes nothing."""
    host = sitting.exam.host
    manifest = make_map(
        source=host.fingerprint,
        receiver=host.fingerprint,
        source_geometry=host.geometry,
        receiver_geometry=host.geometry,
        source_layers=tuple(range(host.geometry.num_layers)),
        window=(0, 0),
        far_window=None,
        far_layers=(),
        closing="",
    )
    width = row_width(host.geometry)
    return AlignmentMap(manifest, torch.eye(width), torch.zeros(width))


def test_map_that_changes_nothing_recovers_all_and_its_controls_nothing(
    sitting: Sitting, identity: AlignmentMap
) -> None:
    found = {one.arm: one for one in measure_arms(sitting, identity, None)}
    assert list(found) == [arm for arm in EVERY_ARM if arm not in (Arm.PORT8, Arm.PORT4)]
    assert {one.num_questions for one in found.values()} == {len(sitting.exam.asked)}
    assert found["text"].recall > found["none"].recall
    for arm in ("text", "own", "mapped", "raw"):
        assert found[arm].gap_recovered.value == 1.0
        assert found[arm].kl < 1e-4
    for arm in ("shuffled", "zeroed", "random", "none"):
        assert found[arm].gap_recovered.value < 0.3
        assert found[arm].kl > 0.1


def test_port_adds_the_arms_of_the_wire(sitting: Sitting, identity: AlignmentMap) -> None:
    port = Port.identity(Intake(sitting.exam.host.geometry))
    fine = replace(port, steps={8: port.steps[8] / 20, 4: port.steps[4] / 2})
    found = {one.arm: one for one in measure_arms(sitting, identity, fine, (Arm.PORT4, Arm.PORT8))}
    assert list(found) == ["port4", "port8"]
    assert found["port8"].kl < found["port4"].kl


def test_raw_rows_are_no_arm_where_their_widths_differ(sitting: Sitting, identity: AlignmentMap) -> None:
    geometry = replace(sitting.exam.host.geometry, num_layers=1)
    narrow = replace(identity, manifest=replace(identity.manifest, source_geometry=geometry))
    assert measure_arms(sitting, narrow, None, (Arm.RAW,)) == []


def test_random_map_is_another_with_another_seed_and_the_same_with_the_same(
    sitting: Sitting, identity: AlignmentMap
) -> None:
    kls = [measure_arms(sitting, identity, None, (Arm.RANDOM,), seed=seed)[0].kl for seed in (1, 1, 2)]
    assert kls[0] == kls[1] != kls[2]


def test_caller_that_leaves_ends_it(sitting: Sitting, identity: AlignmentMap) -> None:
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        told.append((done, total))

    with pytest.raises(Cancelled):
        measure_arms(sitting, identity, None, progress=progress, cancelled=lambda: len(told) > 1)
    assert told[:2] == [(0, 8), (1, 8)]
