"""kvnet.align.window: neighbours, near and far, stand where they should, and a column says what it is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvnet.align.window import RowShape, stack_window, stack_windows
from kvnet.alignment import windows_width
from tests.builders import make_geometry

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


def gathered(
    rows: torch.Tensor, slot: int, parts: list[tuple[tuple[int, ...], tuple[int, int]]], num_layers: int
) -> list[float]:
    """The windows of one slot, a number at a time; each part is (layers, window)."""
    width = rows.shape[1] // num_layers
    found = []
    for layers, (low, high) in parts:
        for neighbour in range(slot + low, slot + high + 1):
            for layer_idx in layers:
                for column in range(layer_idx * width, (layer_idx + 1) * width):
                    inside = 0 <= neighbour < len(rows)
                    found.append(rows[neighbour, column].item() if inside else 0.0)
    return found


@given(
    num_slots=st.integers(1, 8),
    layers=st.permutations(range(3)).flatmap(lambda order: st.integers(1, 3).map(lambda n: tuple(order[:n]))),
    far_layers=st.sampled_from([(0,), (0, 1), (2,), (0, 1, 2)]),
    window=st.tuples(st.integers(-3, 0), st.integers(0, 2)),
    extent=st.integers(0, 4),
    is_before=st.booleans(),
)
def test_windows_hold_near_layers_and_behind_them_far_ones(
    num_slots: int,
    layers: tuple[int, ...],
    far_layers: tuple[int, ...],
    window: tuple[int, int],
    extent: int,
    is_before: bool,
) -> None:
    low, high = window
    far = (low - 1 - extent, low - 1) if is_before else (high + 1, high + 1 + extent)
    rows = torch.arange(1.0, 1 + num_slots * 12).view(num_slots, 12)  # three layers
    stacked = stack_windows(rows, 3, layers, window, far_layers, far)
    geometry = make_geometry(num_layers=3, num_kv_heads=1, head_dim=2)
    assert stacked.shape == (num_slots, windows_width(geometry, layers, window, far_layers, far))
    parts = [(layers, window), (far_layers, far)]
    assert stacked.tolist() == [gathered(rows, slot, parts, 3) for slot in range(num_slots)]


def test_picked_slots_see_far_ones_that_were_not_picked() -> None:
    rows = torch.arange(1.0, 41.0).view(10, 4)  # two layers
    args = (rows, 2, (1,), (-1, 0), (0,), (-5, -3))
    assert torch.equal(stack_windows(*args, torch.tensor([9, 0, 4])), stack_windows(*args)[[9, 0, 4]])


def test_without_a_far_window_the_windows_are_the_near_one() -> None:
    assert torch.equal(stack_windows(ROWS, 2, (0, 1), (-1, 1)), stack_window(ROWS, (-1, 1)))


@pytest.mark.parametrize(
    ("far_layers", "far_window"),
    [((0,), None), ((), (-4, -2)), ((0,), (-2, -1)), ((0,), (1, 3)), ((0,), (-2, 2)), ((0,), (0, 0))],
)
def test_far_window_without_layers_or_over_the_near_one_is_refused(
    far_layers: tuple[int, ...], far_window: tuple[int, int] | None
) -> None:
    with pytest.raises(ValueError, match="far"):
        stack_windows(ROWS, 2, (0,), (-1, 1), far_layers, far_window)
