"""kvnet.align.artefacts: maps and ports through their signed files, bit by bit or in halves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvnet.align.artefacts import load_map, load_port, sign_alignment
from kvnet.align.familiar import Familiar
from kvnet.align.map import AlignmentMap
from kvnet.align.port import Port, learn_port
from kvnet.align.residual import Residual
from kvnet.alignment import Intake, MapManifest, Method, feature_width, row_width
from kvnet.errors import BadSignature, MalformedFile, NotFinite
from kvnet.files.alignments import read_alignment
from kvnet.identity.keys import NodeKey
from kvnet.model.slots import Slots
from kvnet.types import DType
from tests.builders import RECEIVER, SENDER
from tests.files.alignment_files import RANK, RECEIVER_GEOMETRY, SOURCE_GEOMETRY, data_of, header_of
from tests.files.alignment_files import make_map as map_manifest
from tests.files.alignment_files import make_port as port_manifest

WIDTH = row_width(RECEIVER_GEOMETRY)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_port(rank: int = RANK) -> Port:
    rows = torch.randn(200, WIDTH, generator=seeded(0)) * 3 + 1
    return learn_port(rows, torch.randn(100, WIDTH, generator=seeded(1)), rank, Intake(RECEIVER_GEOMETRY))


def make_map(
    manifest: MapManifest, rank: int, *, has_anchor: bool = True, is_familiar: bool = True
) -> AlignmentMap:
    """One with every part that its manifest allows."""
    width = feature_width(manifest)
    randn = [
        torch.randn(width, rank, generator=seeded(2)) / width**0.5,
        torch.randn(rank, generator=seeded(3)),
    ]
    parts: dict[str, Any] = {}
    if has_anchor:
        parts |= {"anchor": torch.randn(width, generator=seeded(4)), "anchor_bias": torch.tensor(0.25)}
    if is_familiar:
        scale = torch.randn(rank, 2, generator=seeded(6)) * 1e5  # of directions that hardly varied
        parts["familiar"] = Familiar(torch.randn(rank, generator=seeded(5)), scale, torch.tensor(4.5))
    if manifest.method is Method.TRAINED:
        begun = Residual.begin(width, rank, seed=7, hidden_width=5)
        parts["residual"] = begun.changed(lambda tensor: torch.randn(tensor.shape, generator=seeded(8)) / 4)
    return AlignmentMap(manifest, *randn, **parts)


def draw_slots(num_slots: int = 12) -> Slots:
    rows = torch.randn(num_slots, row_width(SOURCE_GEOMETRY), generator=seeded(9))
    return Slots(SOURCE_GEOMETRY, rows, torch.arange(num_slots), num_slots)


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize("has_anchor", [True, False])
@pytest.mark.parametrize("is_familiar", [True, False])
@pytest.mark.parametrize("far", [{}, {"far_window": (-5, -2), "far_layers": (0, 1)}])
def test_map_of_any_parts_comes_back_from_its_file_bit_by_bit(
    method: Method, has_anchor: bool, is_familiar: bool, far: dict[str, Any]
) -> None:
    manifest = map_manifest(method=method, **far)
    alignment = make_map(manifest, WIDTH, has_anchor=has_anchor, is_familiar=is_familiar)
    verified = sign_alignment(manifest, alignment.to_tensors(), SENDER, dtype=DType.FLOAT32)
    found = load_map(read_alignment(bytes(verified.encoded)), None)
    assert found.to_tensors().keys() == alignment.to_tensors().keys()
    for name, tensor in alignment.to_tensors().items():
        assert torch.equal(found.to_tensors()[name], tensor)
    for one, other in zip(found.encode(draw_slots()), alignment.encode(draw_slots()), strict=True):
        assert torch.equal(one, other)
    encoded, _ = alignment.encode(draw_slots())
    assert found.strangeness(encoded) == alignment.strangeness(encoded)
    assert (alignment.strangeness(encoded) > 0) is is_familiar


def test_map_into_a_port_comes_back_with_its_port() -> None:
    port = make_port()
    signed_port = sign_alignment(port_manifest(), port.to_tensors(), SENDER, dtype=DType.FLOAT32)
    manifest = map_manifest(port=signed_port.manifest.id)
    alignment = make_map(manifest, RANK)
    signed = sign_alignment(manifest, alignment.to_tensors(), SENDER, dtype=DType.FLOAT32)
    loaded = load_port(read_alignment(bytes(signed_port.encoded)))
    found = load_map(read_alignment(bytes(signed.encoded)), loaded)
    for name, tensor in port.to_tensors().items():
        assert torch.equal(loaded.to_tensors()[name], tensor)
    expected = alignment.apply(draw_slots(), port)
    assert torch.equal(found.apply(draw_slots(), loaded).rows, expected.rows)


def test_halves_are_near_enough_and_vectors_stay_whole() -> None:
    manifest = map_manifest(method=Method.TRAINED)
    alignment = make_map(manifest, WIDTH)
    verified = sign_alignment(manifest, alignment.to_tensors(), SENDER)
    dtypes = {
        name: entry["dtype"] for name, entry in header_of(bytes(verified.encoded)).items() if "dtype" in entry
    }
    halves = {"encoder", "residual_in", "residual_out"}
    assert {name for name, dtype in dtypes.items() if dtype == "F16"} == halves
    found = load_map(verified, None)
    for one, other in zip(found.encode(draw_slots()), alignment.encode(draw_slots()), strict=True):
        assert torch.allclose(one, other, atol=2e-2)


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e4])
def test_port_in_halves_expands_as_the_whole_one_whatever_size_its_gradients_had(size: float) -> None:
    rows = torch.randn(200, WIDTH, generator=seeded(0)) * 3 + 1
    port = learn_port(rows, torch.randn(100, WIDTH, generator=seeded(1)) * size, 8, Intake(RECEIVER_GEOMETRY))
    found = load_port(sign_alignment(port_manifest(rank=8), port.to_tensors(), SENDER))
    whole, halves = (each.to_taken(each.to_coordinates(rows)) for each in (port, found))
    assert torch.allclose(halves, whole, atol=3e-2)


def test_manifest_of_a_signed_file_is_the_one_given_but_for_its_digest() -> None:
    verified = sign_alignment(port_manifest(), make_port().to_tensors(), SENDER)
    assert verified.manifest.tensors_digest.startswith("sha256:")
    assert verified.manifest == port_manifest(tensors_digest=verified.manifest.tensors_digest)
    assert verified.signer == SENDER.node_id


def test_id_is_of_the_numbers_and_not_of_the_signer() -> None:
    def sign(key: NodeKey, scale: float = 1.0) -> str:
        tensors = make_port().to_tensors()
        return str(
            sign_alignment(port_manifest(), tensors | {"mean": tensors["mean"] * scale}, key).manifest.id
        )

    assert sign(SENDER) == sign(RECEIVER)
    assert sign(SENDER) != sign(SENDER, 2.0)


def test_changed_number_is_refused_before_it_is_loaded() -> None:
    encoded = bytearray(sign_alignment(port_manifest(), make_port().to_tensors(), SENDER).encoded)
    encoded[len(encoded) - len(data_of(bytes(encoded))) + 5] ^= 1
    with pytest.raises(BadSignature):
        read_alignment(bytes(encoded))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_number_that_a_half_cannot_hold_is_refused_when_it_is_loaded(value: float) -> None:
    tensors = make_port().to_tensors()
    basis = tensors["basis"].clone()
    basis[0, 0] = value
    verified = sign_alignment(port_manifest(), tensors | {"basis": basis}, SENDER)
    with pytest.raises(NotFinite, match="basis of a port"):
        load_port(verified)


def test_step_of_0_is_refused_when_it_is_loaded() -> None:
    tensors = make_port().to_tensors()
    verified = sign_alignment(port_manifest(), tensors | {"step8": torch.zeros(RANK)}, SENDER)
    with pytest.raises(NotFinite, match="step"):
        load_port(verified)


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan")])
def test_bound_that_nothing_or_everything_is_within_is_refused_when_it_is_loaded(bound: float) -> None:
    manifest = map_manifest()
    tensors = make_map(manifest, WIDTH).to_tensors()
    verified = sign_alignment(manifest, tensors | {"known_bound": torch.tensor([bound])}, SENDER)
    with pytest.raises(NotFinite, match="known_bound"):
        load_map(verified, None)


def test_map_and_port_are_not_taken_for_each_other() -> None:
    manifest = map_manifest()
    a_map = sign_alignment(manifest, make_map(manifest, WIDTH).to_tensors(), SENDER)
    a_port = sign_alignment(port_manifest(), make_port().to_tensors(), SENDER)
    with pytest.raises(MalformedFile, match=rf"{a_map.manifest.id} is a map, wanted a port"):
        load_port(a_map)
    with pytest.raises(MalformedFile, match=rf"{a_port.manifest.id} is a port, wanted a map"):
        load_map(a_port, None)


def test_map_with_a_port_of_another_rank_or_without_its_port_is_refused() -> None:
    manifest = map_manifest(
        port=sign_alignment(port_manifest(), make_port().to_tensors(), SENDER).manifest.id
    )
    verified = sign_alignment(manifest, make_map(manifest, RANK).to_tensors(), SENDER)
    for port in (make_port(RANK + 1), None):
        with pytest.raises(MalformedFile, match="encoder"):
            load_map(verified, port)


def test_tensors_that_are_not_the_manifests_are_not_signed() -> None:
    with pytest.raises(ValueError, match="step4"):
        sign_alignment(
            port_manifest(), {n: t for n, t in make_port().to_tensors().items() if n != "step4"}, SENDER
        )
