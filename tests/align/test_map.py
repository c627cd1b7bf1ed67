"""kvnet.align.map: what a map makes of slots, by the rules of FORMAT.md §10.2, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvnet.align.map import AlignmentMap, score_slots, stack_features
from kvnet.align.moments import Moments
from kvnet.align.port import Port, learn_port
from kvnet.align.solve import solve_ridge
from kvnet.alignment import Intake, MapManifest, feature_width, row_width
from kvnet.errors import IncompatibleModel, MalformedFile, NotFinite
from kvnet.model.slots import Slots
from tests.builders import make_geometry
from tests.files.alignment_files import RECEIVER_GEOMETRY, SOURCE_GEOMETRY, make_map

SOURCE_WIDTH, RECEIVER_WIDTH = row_width(SOURCE_GEOMETRY), row_width(RECEIVER_GEOMETRY)
INTAKE = Intake(RECEIVER_GEOMETRY)
MANIFESTS = {
    "near": make_map(),
    "here": make_map(window=(0, 0), source_layers=(1,)),
    "behind": make_map(window=(1, 2)),
    "far": make_map(far_window=(-6, -3), far_layers=(0,)),
    "ahead": make_map(window=(-1, 0), source_layers=(0, 1), far_window=(2, 3), far_layers=(0, 1)),
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw_slots(num_slots: int, seed: int = 0) -> Slots:
    """Slots of a text in which every third position is left out."""
    rows = torch.randn(num_slots, SOURCE_WIDTH, generator=seeded(seed))
    positions = torch.arange(num_slots) * 3 // 2
    return Slots(SOURCE_GEOMETRY, rows, positions, num_slots * 2)


def draw_map(
    manifest: MapManifest, *, seed: int = 1, rank: int = RECEIVER_WIDTH, **parts: Any
) -> AlignmentMap:
    width = feature_width(manifest)
    encoder = torch.randn(width, rank, generator=seeded(seed)) / width**0.5
    return AlignmentMap(manifest, encoder, torch.randn(rank, generator=seeded(seed + 1)), **parts)


def vector_of(slots: Slots, manifest: MapManifest, slot: int) -> list[float]:
    """What is seen of one slot, a number at a time (FORMAT.md §10.2)."""
    layer_width = SOURCE_WIDTH // SOURCE_GEOMETRY.num_layers
    parts = [(manifest.window, manifest.source_layers)]
    if manifest.far_window is not None:
        parts.append((manifest.far_window, manifest.far_layers))
    vector = []
    for (low, high), layers in parts:
        for neighbour in range(slot + low, slot + high + 1):
            for layer_idx in layers:
                for column in range(layer_idx * layer_width, (layer_idx + 1) * layer_width):
                    is_there = 0 <= neighbour < slots.num_slots
                    vector.append(float(slots.rows[neighbour, column]) if is_there else 0.0)
    return vector


# Encoding


@pytest.mark.parametrize("name", MANIFESTS)
def test_map_takes_each_slots_windows_to_vector_times_encoder_plus_bias(name: str) -> None:
    alignment, slots = draw_map(MANIFESTS[name]), draw_slots(9)
    encoded, at = alignment.encode(slots)
    assert at.tolist() == list(range(9))
    for slot in range(9):
        vector = torch.tensor(vector_of(slots, alignment.manifest, slot), dtype=torch.float64)
        expected = vector @ alignment.encoder.double() + alignment.bias.double()
        assert torch.allclose(encoded[slot].double(), expected, atol=1e-5)


def test_planted_map_is_found_by_a_fit_and_applied_to_slots_it_never_saw() -> None:
    planted = draw_map(MANIFESTS["far"])
    moments = Moments(feature_width(planted.manifest), RECEIVER_WIDTH)
    for seed in range(2, 12):
        lesson = draw_slots(40, seed)
        moments.add(stack_features(lesson.rows, planted.manifest), planted.apply(lesson).rows)
    found = solve_ridge(moments, 1e-9)
    fitted = AlignmentMap(planted.manifest, found.weight.float(), found.bias.float())
    fresh = draw_slots(20, 99)
    assert torch.allclose(fitted.apply(fresh).rows, planted.apply(fresh).rows, atol=1e-4)


def test_encoding_changes_no_slot() -> None:
    slots = draw_slots(6)
    draw_map(MANIFESTS["ahead"]).apply(slots).rows.zero_()
    assert torch.equal(slots.rows, draw_slots(6).rows)
    assert torch.equal(slots.positions, draw_slots(6).positions)


# Applying


def test_mapped_slots_stand_where_the_sources_stood_in_the_receivers_geometry() -> None:
    slots = draw_slots(7)
    mapped = draw_map(MANIFESTS["near"]).apply(slots)
    assert mapped.geometry == RECEIVER_GEOMETRY
    assert mapped.rows.shape == (7, RECEIVER_WIDTH)
    assert mapped.positions.tolist() == slots.positions.tolist()
    assert mapped.span == slots.span


def test_map_into_a_port_ends_in_the_rows_that_the_port_expands() -> None:
    rows = torch.randn(80, RECEIVER_WIDTH, generator=seeded(3)) * 2 + 1
    port = learn_port(rows, rows, 5, INTAKE)
    alignment, slots = draw_map(MANIFESTS["near"], rank=5), draw_slots(4)
    coordinates, _ = alignment.encode(slots)
    assert coordinates.shape == (4, 5)
    assert torch.equal(alignment.apply(slots, port).rows, port.mean + coordinates @ port.basis)


def test_port_of_identity_is_no_port() -> None:
    alignment, slots = draw_map(MANIFESTS["near"]), draw_slots(4)
    mapped = alignment.apply(slots, Port.identity(INTAKE))
    assert torch.equal(mapped.rows, alignment.apply(slots).rows)


def from_states(intake: Intake, taken: torch.Tensor) -> torch.Tensor:
    """What a model may make of its states: each a part of a row, and nothing else changed."""
    parts = list(torch.split(taken, list(intake.widths), 1))
    width = RECEIVER_WIDTH // RECEIVER_GEOMETRY.num_layers
    for layer_idx in intake.state_layers:
        parts[layer_idx] = 2 * parts[layer_idx].mean(1, keepdim=True).expand(-1, width)
    return torch.cat(parts, 1)


STATES = Intake(RECEIVER_GEOMETRY, state_layers=(2,), hidden_size=9)


def test_map_that_ends_in_states_ends_in_what_the_receiver_makes_of_them() -> None:
    manifest = make_map(state_layers=STATES.state_layers, hidden_size=STATES.hidden_size)
    alignment, slots = draw_map(manifest, rank=STATES.width), draw_slots(4)
    taken, _ = alignment.encode(slots)
    assert taken.shape == (4, STATES.width)
    mapped = alignment.apply(slots, rows_of=from_states)
    assert torch.equal(mapped.rows, from_states(STATES, taken))
    assert mapped.rows.shape == (4, RECEIVER_WIDTH)


def test_map_into_a_port_of_states_ends_in_what_the_receiver_makes_of_them() -> None:
    drawn = torch.randn(80, STATES.width, generator=seeded(3))
    port = learn_port(drawn, drawn, 5, STATES)
    alignment, slots = draw_map(MANIFESTS["near"], rank=5), draw_slots(4)
    coordinates, _ = alignment.encode(slots)
    mapped = alignment.apply(slots, port, rows_of=from_states)
    assert torch.equal(mapped.rows, from_states(STATES, port.to_taken(coordinates)))
    coarse = port.dequantize(port.quantize(coordinates, 4), 4)
    coarsely = alignment.apply(slots, port, rows_of=from_states, bits=4)
    assert torch.equal(coarsely.rows, from_states(STATES, port.to_taken(coarse)))


def test_states_without_the_model_whose_they_are_are_refused() -> None:
    manifest = make_map(state_layers=STATES.state_layers, hidden_size=STATES.hidden_size)
    slots = draw_slots(4)
    with pytest.raises(ValueError, match="needs the model whose they are"):
        draw_map(manifest, rank=STATES.width).apply(slots)
    with pytest.raises(ValueError, match="needs the model whose they are"):
        draw_map(MANIFESTS["near"], rank=STATES.width).apply(slots, Port.identity(STATES))


# Anchors


def picking(manifest: MapManifest, column: int, **parts: Any) -> AlignmentMap:
    """A map that sends slots of which this number of the vector is above one half."""
    anchor = torch.zeros(feature_width(manifest))
    anchor[column] = 1.0
    return draw_map(manifest, anchor=anchor, anchor_bias=torch.tensor(0.0), **parts)


def test_only_slots_that_score_above_one_half_are_sent_in_order() -> None:
    alignment, slots = picking(MANIFESTS["here"], 3), draw_slots(12)
    layer_width = SOURCE_WIDTH // SOURCE_GEOMETRY.num_layers
    slots.rows[:, layer_width + 3] = torch.tensor([0.0, 0.6, 0.5, 1.0] * 3)  # layer 1: the map's only one
    mapped = alignment.apply(slots)
    _, at = alignment.encode(slots)
    assert at.tolist() == [1, 3, 5, 7, 9, 11]
    assert mapped.positions.tolist() == slots.positions[at].tolist()
    assert mapped.span == slots.span
    everything = replace(alignment, anchor=None, anchor_bias=None).apply(slots)
    assert torch.allclose(mapped.rows, everything.rows[at], atol=1e-6)


def test_sent_slots_see_neighbours_that_are_not_sent() -> None:
    manifest = MANIFESTS["near"]
    alignment, slots = picking(manifest, 0), draw_slots(10)
    encoded, at = alignment.encode(slots)
    assert 0 < len(at) < 10
    whole = replace(alignment, anchor=None, anchor_bias=None).encode(slots)[0]
    assert torch.allclose(encoded, whole[at], atol=1e-6)


def test_bias_of_the_anchor_moves_its_bound() -> None:
    alignment, slots = picking(MANIFESTS["here"], 0), draw_slots(30)
    counts = [
        len(replace(alignment, anchor_bias=torch.tensor(bias)).encode(slots)[1])
        for bias in (-0.5, 0.0, 0.5, 9.0)
    ]
    assert counts == sorted(counts)
    assert counts[0] < counts[2] < counts[3] == 30


def test_of_a_text_without_an_anchor_nothing_is_sent() -> None:
    """A map that was fitted on anchors never saw such slots."""
    alignment = replace(picking(MANIFESTS["near"], 0), anchor_bias=torch.tensor(-99.0))
    slots = draw_slots(6)
    encoded, at = alignment.encode(slots)
    assert (encoded.shape, at.tolist()) == ((0, RECEIVER_WIDTH), [])
    mapped = alignment.apply(slots, Port.identity(INTAKE), bits=8)
    assert (mapped.num_slots, mapped.span) == (0, slots.span)


@pytest.mark.parametrize("name", MANIFESTS)
@given(num_slots=st.integers(1, 12), seed=st.integers(0, 99))
def test_scores_are_those_of_the_stacked_windows(name: str, num_slots: int, seed: int) -> None:
    manifest, slots = MANIFESTS[name], draw_slots(num_slots, seed)
    anchor = torch.randn(feature_width(manifest), generator=seeded(seed))
    expected = stack_features(slots.rows, manifest) @ anchor
    assert torch.allclose(score_slots(slots.rows, manifest, anchor), expected, atol=1e-4)


# Refusals


@pytest.mark.parametrize(
    "changes",
    [
        {"num_layers": 3},
        {"head_dim": 8},
        {"num_kv_heads": 3},
        {"num_layers": 1, "num_kv_heads": 2},  # rows as wide as the source's
        {"num_kv_heads": 4, "head_dim": 1},  # and of as many layers
    ],
)
def test_slots_of_another_geometry_are_refused(changes: dict[str, int]) -> None:
    geometry = replace(SOURCE_GEOMETRY, **changes)
    slots = Slots(geometry, torch.zeros(4, row_width(geometry)), torch.arange(4), 4)
    alignment = draw_map(MANIFESTS["near"])
    for use in (alignment.encode, alignment.apply, alignment.features_of):
        with pytest.raises(IncompatibleModel, match=r"the map of from takes \(2, 1, 4\); use its own map"):
            use(slots)


def test_slots_of_another_dtype_are_no_obstacle() -> None:
    slots = draw_slots(4)
    halves = replace(slots, geometry=replace(SOURCE_GEOMETRY, dtype="float16"))
    alignment = draw_map(MANIFESTS["near"])
    assert torch.equal(alignment.apply(halves).rows, alignment.apply(slots).rows)


# Tensors


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.parametrize("has_anchor", [True, False])
def test_map_comes_back_from_its_tensors(name: str, has_anchor: bool) -> None:
    manifest = MANIFESTS[name]
    alignment = picking(manifest, 1) if has_anchor else draw_map(manifest)
    found = AlignmentMap.from_tensors(manifest, alignment.to_tensors(), rank=RECEIVER_WIDTH)
    slots = draw_slots(8)
    assert (found.anchor is None) is not has_anchor
    for one, other in zip(found.encode(slots), alignment.encode(slots), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["encoder", "encoder_bias", "anchor", "anchor_bias"])
def test_tensor_that_is_missing_or_of_another_shape_is_refused(name: str) -> None:
    manifest = MANIFESTS["near"]
    tensors = picking(manifest, 0).to_tensors()
    for changed in (
        {key: value for key, value in tensors.items() if key != name},
        tensors | {name: tensors[name][:-1]},
        tensors | {name: tensors[name][..., None]},
    ):
        with pytest.raises(MalformedFile, match=rf"{name}.*make it again"):
            AlignmentMap.from_tensors(manifest, changed, rank=RECEIVER_WIDTH)


def test_map_of_another_window_than_its_manifest_says_is_refused() -> None:
    tensors = draw_map(MANIFESTS["near"]).to_tensors()
    with pytest.raises(MalformedFile, match="encoder of a map"):
        AlignmentMap.from_tensors(MANIFESTS["far"], tensors, rank=RECEIVER_WIDTH)


@pytest.mark.parametrize("name", ["encoder", "encoder_bias", "anchor", "anchor_bias"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_number_that_is_not_finite_is_refused(name: str, value: float) -> None:
    manifest = MANIFESTS["near"]
    tensors = {key: tensor.clone() for key, tensor in picking(manifest, 0).to_tensors().items()}
    tensors[name].view(-1)[0] = value
    with pytest.raises(NotFinite, match=f"{name} of a map"):
        AlignmentMap.from_tensors(manifest, tensors, rank=RECEIVER_WIDTH)


def test_map_of_another_receiver_is_refused_by_its_width() -> None:
    manifest = make_map(receiver_geometry=make_geometry(num_layers=4))
    with pytest.raises(MalformedFile, match="encoder"):
        AlignmentMap.from_tensors(
            manifest, draw_map(MANIFESTS["near"]).to_tensors(), rank=row_width(manifest.receiver_geometry)
        )
