"""Stages before quantization."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given

from kvnet.codec.mixing import Hadamard, PruneHeads
from kvnet.codec.piece import Piece
from tests.codec.strategies import fill, make_geometry, make_piece, pieces


@given(pieces())
def test_hadamard_is_its_own_inverse(made: tuple[Piece, torch.Tensor]) -> None:
    piece, tensor = made
    numbers = tensor.float()
    mixed = Hadamard().encode(numbers, 0, piece)
    assert torch.allclose(Hadamard().decode(mixed, 0, piece), numbers, atol=float(numbers.abs().max()) * 1e-5)


@pytest.mark.parametrize(("head_dim", "width"), [(8, 8), (12, 4), (7, 1)])
def test_hadamard_mixes_blocks_of_the_largest_power_of_two(head_dim: int, width: int) -> None:
    piece = make_piece(make_geometry(1, head_dim), 1)
    spike = torch.zeros(1, 1, head_dim)
    spike[0, 0, 0] = 1.0
    mixed = Hadamard().encode(spike, 0, piece)
    assert int(mixed.count_nonzero()) == width
    assert torch.allclose(mixed[0, 0, :width], torch.full((width,), width**-0.5))


def test_second_row_of_the_matrix_is_sylvesters() -> None:
    piece = make_piece(make_geometry(1, 4), 1)
    unit = torch.tensor([[[0.0, 1.0, 0.0, 0.0]]])
    assert Hadamard().encode(unit, 0, piece).flatten().tolist() == [0.5, -0.5, 0.5, -0.5]


def test_pruned_heads_are_zero_and_the_original_stays() -> None:
    piece = make_piece(make_geometry(3, 4), 2)
    tensor = fill("equal", piece, 0)
    pruned = PruneHeads((0, 2)).encode(tensor, 0, piece)
    assert pruned[[0, 2]].count_nonzero() == 0
    assert torch.equal(pruned[1], tensor[1])
    assert tensor.count_nonzero() == tensor.numel()
    assert PruneHeads((0, 2)).decode(pruned, 0, piece) is pruned
