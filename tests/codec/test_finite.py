"""NaN and infinity, by their bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given

from kvnet.codec.finite import finite_peak
from kvnet.codec.piece import Piece
from kvnet.errors import NotFinite
from tests.codec.strategies import pieces


@given(pieces())
def test_peak_is_the_largest_absolute_value(made: tuple[Piece, torch.Tensor]) -> None:
    _, tensor = made
    assert finite_peak(tensor, "it") == float(tensor.float().abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused_in_every_dtype(dtype: torch.dtype, bad: float) -> None:
    tensor = torch.tensor([[1.0, bad], [torch.finfo(dtype).max, 0.0]], dtype=dtype)
    with pytest.raises(NotFinite, match="it holds"):
        finite_peak(tensor, "it")
    with pytest.raises(NotFinite):
        finite_peak(tensor.T, "it")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_largest_numbers_of_a_dtype_are_finite(dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    assert finite_peak(torch.tensor([-most, torch.finfo(dtype).tiny], dtype=dtype), "it") == most
