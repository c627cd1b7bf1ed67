"""Calibrations as files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvnet.codec.basis import Basis, LayerBasis
from kvnet.errors import MalformedFile
from kvnet.types import Kind
from tests.codec.strategies import make_geometry

GEOMETRY = make_geometry(2, 3)  # one layer, six channels


def make_basis(rank: int = 4, seed: int = 0) -> Basis:
    generator = torch.Generator().manual_seed(seed)
    return Basis.of(
        {
            (0, kind): LayerBasis(
                torch.randn(6, generator=generator),
                torch.randn(6, rank, generator=generator),
                torch.randn(rank, 6, generator=generator),
            )
            for kind in (Kind.KEY, Kind.VALUE)
        }
    )


@given(st.integers(1, 6), st.integers(0, 2**32))
def test_basis_survives_its_file(rank: int, seed: int) -> None:
    basis = make_basis(rank, seed)
    read = Basis.from_bytes(basis.to_bytes(), GEOMETRY)
    assert read.digest == basis.digest == make_basis(rank, seed).digest
    assert read.num_components == 2 * rank
    for place, layer in basis.layers.items():
        assert torch.equal(read.layers[place].forward, layer.forward)
        assert torch.equal(read.layers[place].backward, layer.backward)
        assert torch.equal(read.layers[place].mean, layer.mean)


def test_scaled_basis_has_larger_steps_and_another_name() -> None:
    basis = make_basis()
    scaled = basis.scaled(2.0)
    assert scaled.digest != basis.digest
    for place, layer in basis.layers.items():
        assert torch.allclose(scaled.layers[place].forward * 2, layer.forward)
        assert torch.allclose(scaled.layers[place].backward, layer.backward * 2)


def drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["0.key.mean"]


def add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["1.key.mean"] = torch.zeros(6)


def narrow(tensors: dict[str, torch.Tensor]) -> None:
    tensors["0.value.forward"] = torch.zeros(5, 4)


def mismatch(tensors: dict[str, torch.Tensor]) -> None:
    tensors["0.value.backward"] = torch.zeros(3, 6)


def empty(tensors: dict[str, torch.Tensor]) -> None:
    tensors["0.key.forward"], tensors["0.key.backward"] = torch.zeros(6, 0), torch.zeros(0, 6)


def widen(tensors: dict[str, torch.Tensor]) -> None:
    tensors["0.key.forward"], tensors["0.key.backward"] = torch.zeros(6, 7), torch.zeros(7, 6)


def infinite(tensors: dict[str, torch.Tensor]) -> None:
    tensors["0.key.mean"][0] = float("inf")


def halve(tensors: dict[str, torch.Tensor]) -> None:
    tensors["0.key.mean"] = tensors["0.key.mean"].half()


@pytest.mark.parametrize("change", [drop, add, narrow, mismatch, empty, widen, infinite, halve])
def test_calibration_that_breaks_the_format_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    tensors = safetensors.torch.load(make_basis().to_bytes())
    change(tensors)
    with pytest.raises(MalformedFile):
        Basis.from_bytes(safetensors.torch.save(tensors), GEOMETRY)


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
def test_cut_off_calibration_is_refused(size: int) -> None:
    with pytest.raises(MalformedFile):
        Basis.from_bytes(make_basis().to_bytes()[:size], GEOMETRY)
