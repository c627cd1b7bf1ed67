"""kvnet.align.window: neighbours stand where they should, and a column says what it is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvnet.align.window import RowShape, stack_window

ROWS = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])


def test_neighbours_are_stacked_lowest_offset_first_and_zeros_stand_beyond_the_ends() -> None:
    expected = [[0, 0, 1, 10, 2, 20], [1, 10, 2, 20, 3, 30], [2, 20, 3, 30, 0, 0]]
    assert stack_window(ROWS, (-1, 1)).tolist() == expected


def test_picked_slots_see_neighbours_that_were_not_picked() -> None:
    at = torch.tensor([2, 0])
    assert stack_window(ROWS, (-1, 0), at).tolist() == [[2, 20, 3, 30], [0, 0, 1, 10]]


@given(st.integers(0, 6), st.integers(-4, 3), st.integers(0, 4))
def test_each_offset_is_the_rows_shifted_by_it(num_slots: int, low: int, extent: int) -> None:
    rows = torch.arange(1.0, 1 + num_slots * 2).view(num_slots, 2)
    stacked = stack_window(rows, (low, low + extent)).view(num_slots, extent + 1, 2)
    for slot in range(num_slots):
        for place in range(extent + 1):
            neighbour = slot + low + place
            expected = rows[neighbour] if 0 <= neighbour < num_slots else torch.zeros(2)
            assert torch.equal(stacked[slot, place], expected)


def test_stacking_leaves_the_rows_as_they_were() -> None:
    rows = ROWS.clone()
    stack_window(rows, (-2, 2)).fill_(9)
    assert torch.equal(rows, ROWS)


@pytest.mark.parametrize("at", [[3], [-1]])
def test_slot_outside_the_sequence_is_refused(at: list[int]) -> None:
    with pytest.raises(ValueError, match="a sequence of 3"):
        stack_window(ROWS, (0, 0), torch.tensor(at))


def test_empty_window_is_refused() -> None:
    with pytest.raises(ValueError, match="from 1 to 0 is empty"):
        stack_window(ROWS, (1, 0))


def test_columns_name_offset_layer_kind_head_and_channel() -> None:
    shape = RowShape(num_layers=3, num_kv_heads=2, head_dim=4)
    # Rows written the other way: layer by layer, keys then values, head by head.
    layers = [[torch.full((2, 4), 100.0 * layer + 10 * kind) for kind in (0, 1)] for layer in range(3)]
    row = torch.cat([part.flatten() for layer in layers for part in layer])[None]
    assert row.shape == (1, shape.width)
    stacked = stack_window(row.expand(2, -1), (-1, 0))
    columns = shape.columns(2)
    assert stacked[1, columns[1, 2, 1]].unique().tolist() == [210.0]
    assert stacked[0, columns[0]].unique().tolist() == [0.0]
