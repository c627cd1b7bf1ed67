"""A far window from end to end: what a fit sums, what it finds, and what a map does with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvnet.align.artefacts import load_map, sign_alignment
from kvnet.align.corpus import Lesson
from kvnet.align.fit import Fit
from kvnet.align.fit_state import FitPlan
from kvnet.align.map import AlignmentMap, score_slots, stack_features
from kvnet.align.moments import MomentPair
from kvnet.align.port import Port
from kvnet.align.reading import LocalReader
from kvnet.align.solve import held_out_error, solve_ridge
from kvnet.align.window import stack_windows
from kvnet.alignment import Intake, feature_width, row_width
from kvnet.files.alignments import read_alignment
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from kvnet.model.reference.catalog import REFERENCE_MODELS
from kvnet.model.slots import Slots
from tests.builders import SENDER
from tests.files.alignment_files import RECEIVER_GEOMETRY, SOURCE_GEOMETRY, make_map

FAR = {"far_window": (-5, -3), "far_layers": (0,)}
FAR_BEHIND = {"far_window": (2, 9), "far_layers": (0, 1)}
NUM_LAYERS = SOURCE_GEOMETRY.num_layers


def make_slots(num_slots: int, *, seed: int = 0) -> Slots:
    """Random slots of the tests' source."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_slots, row_width(SOURCE_GEOMETRY), generator=generator)
    return Slots(SOURCE_GEOMETRY, rows, torch.arange(num_slots), num_slots)


def make_alignment(**changes: Any) -> AlignmentMap:
    """A map of small random halves, which a file keeps as they are."""
    generator = torch.Generator().manual_seed(1)
    manifest = make_map(**changes)
    width, out = feature_width(manifest), row_width(RECEIVER_GEOMETRY)
    encoder, bias, anchor = (
        torch.randint(-64, 65, shape, generator=generator) / 64 for shape in ((width, out), (out,), (width,))
    )
    return AlignmentMap(manifest, encoder, bias, anchor, torch.tensor(0.5))


@pytest.mark.parametrize("num_slots", [1, 3, 20])
@pytest.mark.parametrize("far", [{}, FAR, FAR_BEHIND], ids=["near", "before", "behind"])
def test_score_is_the_features_times_the_anchor(far: dict[str, Any], num_slots: int) -> None:
    alignment, rows = make_alignment(**far, source_layers=(1,)), make_slots(num_slots).rows
    assert alignment.anchor is not None
    expected = stack_features(rows, alignment.manifest) @ alignment.anchor
    assert torch.allclose(score_slots(rows, alignment.manifest, alignment.anchor), expected, atol=1e-4)


@pytest.mark.parametrize("far", [FAR, FAR_BEHIND], ids=["before", "behind"])
def test_map_that_was_signed_and_read_back_gives_the_same_coordinates(far: dict[str, Any]) -> None:
    alignment, slots = make_alignment(**far), make_slots(20)
    signed = sign_alignment(alignment.manifest, alignment.to_tensors(), SENDER)
    loaded = load_map(read_alignment(bytes(signed.encoded)), None)
    encoded, at = alignment.encode(slots)
    found, found_at = loaded.encode(slots)
    assert 0 < len(at) < slots.num_slots
    assert torch.equal(found_at, at)
    assert torch.equal(found, encoded)


def planted_r2(far_layers: tuple[int, ...], far_window: tuple[int, int] | None) -> float:
    """Held-out R² of a fit to texts whose slots follow, near, slot i - 1 and, far, layer 0 of slot i - 4."""
    width = row_width(SOURCE_GEOMETRY)
    weights = torch.randn(width + width // NUM_LAYERS, 6, generator=torch.Generator().manual_seed(2))
    pair: MomentPair | None = None
    for context_idx in range(12):
        rows = make_slots(60, seed=context_idx).rows
        y = stack_windows(rows, NUM_LAYERS, (0, 1), (-1, -1), (0,), (-4, -4)) @ weights
        x = stack_windows(rows, NUM_LAYERS, (0, 1), (-1, 0), far_layers, far_window)
        pair = pair or MomentPair.empty(x.shape[1], y.shape[1], 4)
        pair.add(context_idx, x, y)
    assert pair is not None
    return float(held_out_error(solve_ridge(pair.fit, 1e-9), pair.held_out).min())


def test_what_a_far_slot_holds_is_found_with_a_far_window_and_not_without() -> None:
    assert planted_r2((0,), (-5, -3)) > 0.999
    assert planted_r2((), None) < 0.9
    assert planted_r2((1,), (-5, -3)) < 0.9  # the other layer does not know
    assert planted_r2((0,), (-8, -5)) < 0.9  # nor do slots further away


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ModelHost:
    return ModelHost.load(ModelSpec(min(REFERENCE_MODELS), device="cpu"), tmp_path_factory.mktemp("cache"))


def test_fit_sums_the_windows_that_its_map_reads(host: ModelHost) -> None:
    geometry, reader = host.geometry, LocalReader(host)
    lessons = [Lesson(f"Anna keeps key {number} in the blue tin.", ()) for number in range(16)]
    plan = FitPlan(source_layers=(1,), window=(-1, 0), far_window=(-3, -2), far_layers=(0,))
    port = Port.identity(Intake(geometry))
    fit = Fit.begin(reader, host, port, plan)
    fit.run(lessons)
    manifest = make_map(
        source_geometry=geometry, source_layers=(1,), window=(-1, 0), far_window=(-3, -2), far_layers=(0,)
    )
    readings = list(reader.read([lesson.text for lesson in lessons]))
    features = torch.cat([stack_features(reading.slots.rows, manifest) for reading in readings])
    sums = fit.state.sums.fit
    sums.merge(fit.state.sums.held_out)
    assert sums.num_rows == len(features) == fit.state.num_rows
    assert torch.allclose(sums.mean_x, features.double().mean(0), atol=1e-6)
    centred = features.double() - features.double().mean(0)
    assert torch.allclose(sums.xx, centred.T @ centred, rtol=1e-6, atol=1e-6)
