"""A residual begins as nothing, learns in measures of its own, and travels as three plain tensors."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvnet.align.artefacts import load_map, sign_alignment
from kvnet.align.map import AlignmentMap
from kvnet.align.residual import Residual, Scales
from kvnet.alignment import Method, feature_width, row_width
from kvnet.errors import MalformedFile
from kvnet.files.alignments import read_alignment
from kvnet.files.alignments.manifests import MAX_RESIDUAL_WIDTH
from kvnet.model.slots import Slots
from kvnet.types import DType
from tests.builders import SENDER
from tests.files.alignment_files import data_of, header_of, make_map, signed

HIDDEN = 5


def random_residual(feature_width: int, rank: int, *, seed: int = 0) -> Residual:
    """One that does something."""
    begun = Residual.begin(feature_width, rank, seed=seed, hidden_width=HIDDEN)
    generator = torch.Generator().manual_seed(seed + 1)
    return begun.changed(lambda tensor: torch.randn(tensor.shape, generator=generator) / 4)


def random_map(*, method: Method = Method.TRAINED) -> AlignmentMap:
    """A map into rows, of the small models that files are tested with."""
    manifest = make_map(method=method)
    width, rank = feature_width(manifest), row_width(manifest.receiver_geometry)
    generator = torch.Generator().manual_seed(2)
    encoder = torch.randn(width, rank, generator=generator) / width**0.5
    bias = torch.randn(rank, generator=generator)
    residual = random_residual(width, rank) if method is Method.TRAINED else None
    return AlignmentMap(manifest, encoder, bias, residual=residual)


def random_slots(alignment: AlignmentMap, num_slots: int = 6) -> Slots:
    """Slots that the map takes."""
    geometry = alignment.manifest.source_geometry
    rows = torch.randn(num_slots, row_width(geometry), generator=torch.Generator().manual_seed(3))
    return Slots(geometry, rows, torch.arange(num_slots), num_slots)


def test_new_residual_changes_no_bit_of_a_map() -> None:
    closed_form = random_map(method=Method.RIDGE)
    begun = replace(closed_form, residual=Residual.begin(*closed_form.encoder.shape, seed=0))
    slots = random_slots(closed_form)
    assert torch.equal(begun.encode(slots)[0], closed_form.encode(slots)[0])


def test_new_residual_has_a_gradient_all_the_same() -> None:
    outer = torch.zeros(HIDDEN, 3, requires_grad=True)
    begun = replace(Residual.begin(8, 3, seed=0, hidden_width=HIDDEN), outer=outer)
    begun.apply(torch.randn(4, 8)).sum().backward()
    assert outer.grad is not None
    assert bool(outer.grad.any())


def test_trained_map_is_the_closed_form_plus_the_network_of_its_windows() -> None:
    trained = random_map()
    assert trained.residual is not None
    slots = random_slots(trained)
    features, _ = trained.features_of(slots)
    hidden = features @ trained.residual.inner + trained.residual.inner_bias
    gelu = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    expected = replace(trained, residual=None).encode(slots)[0] + gelu @ trained.residual.outer
    assert torch.allclose(trained.encode(slots)[0], expected, atol=1e-5)


@given(seed=st.integers(0, 99), size=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_folded_residual_is_the_one_that_scales_measure(seed: int, size: float, shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = (torch.randn(50, 7, generator=generator) + shift) * size
    coordinates = torch.randn(50, 3, generator=generator) * torch.tensor([1.0, 10.0, 100.0])
    scales, residual = Scales.of(features, coordinates), random_residual(7, 3, seed=seed)
    standard = (features - features.mean(0)) / features.std(0)
    expected = residual.apply(standard) * coordinates.std(0)
    assert torch.allclose(scales.fold(residual).apply(features), expected, rtol=1e-3, atol=1e-2)


def test_column_of_one_value_does_not_blow_the_residual_up() -> None:
    features = torch.randn(20, 4)
    features[:, 1] = 3.0
    folded = Scales.of(features, torch.randn(20, 2)).fold(random_residual(4, 2))
    assert float(folded.inner[1].abs().max()) < 1e3


@pytest.mark.parametrize("method", list(Method))
def test_map_with_or_without_residual_comes_back_from_its_file(method: Method) -> None:
    alignment = random_map(method=method)
    verified = sign_alignment(alignment.manifest, alignment.to_tensors(), SENDER, dtype=DType.FLOAT32)
    found = load_map(read_alignment(verified.encoded), None)
    assert found.manifest.method is method
    assert found.to_tensors().keys() == alignment.to_tensors().keys()
    for name, tensor in alignment.to_tensors().items():
        assert torch.equal(found.to_tensors()[name], tensor)


def test_halves_of_a_residual_are_near_enough() -> None:
    trained = random_map()
    found = load_map(sign_alignment(trained.manifest, trained.to_tensors(), SENDER), None)
    slots = random_slots(trained)
    assert torch.allclose(found.encode(slots)[0], trained.encode(slots)[0], atol=2e-2)


@pytest.mark.parametrize("lost", ["residual_in", "residual_in_bias", "residual_out"])
def test_trained_map_without_a_part_of_its_residual_is_refused(lost: str) -> None:
    trained = random_map()
    tensors = {name: tensor for name, tensor in trained.to_tensors().items() if name != lost}
    with pytest.raises(MalformedFile, match="residual"):
        AlignmentMap.from_tensors(trained.manifest, tensors, rank=trained.encoder.shape[1])
    with pytest.raises(ValueError, match="residual"):
        sign_alignment(trained.manifest, tensors, SENDER)


def test_closed_form_with_a_residual_is_refused() -> None:
    trained = random_map()
    manifest = replace(trained.manifest, method=Method.RIDGE)
    with pytest.raises(MalformedFile, match="residual"):
        AlignmentMap.from_tensors(manifest, trained.to_tensors(), rank=trained.encoder.shape[1])
    with pytest.raises(ValueError, match="residual"):
        sign_alignment(manifest, trained.to_tensors(), SENDER)


@pytest.mark.parametrize("claimed", [0, MAX_RESIDUAL_WIDTH + 1, -1, True, None, "5"])
def test_residual_of_an_impossible_width_is_refused_from_the_header_alone(claimed: object) -> None:
    trained = random_map()
    encoded = bytes(sign_alignment(trained.manifest, trained.to_tensors(), SENDER).encoded)
    header = json.loads(json.dumps(header_of(encoded)))
    header["residual_in"]["shape"][1] = claimed
    with pytest.raises(MalformedFile, match="hidden numbers"):
        read_alignment(signed(header, data_of(encoded)))


def test_residual_whose_parts_disagree_is_refused() -> None:
    trained = random_map()
    tensors = trained.to_tensors()
    tensors["residual_out"] = torch.zeros(HIDDEN + 1, trained.encoder.shape[1])
    with pytest.raises(MalformedFile, match="residual_out"):
        AlignmentMap.from_tensors(trained.manifest, tensors, rank=trained.encoder.shape[1])
    with pytest.raises(ValueError, match="residual_out"):
        sign_alignment(trained.manifest, tensors, SENDER)
