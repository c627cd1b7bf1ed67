"""kvnet.align.layers: the layer that holds the signal is found from sums alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvnet.align.layers import held_out_table, pick_source_layers
from kvnet.align.moments import MomentPair
from kvnet.align.window import RowShape, stack_window
from kvnet.alignment import LayerStrategy

SOURCE, TARGET = RowShape(4, 2, 3), RowShape(3, 1, 4)
PLANTED = (2, 0, 3)  # which source layer each target layer is made from


def planted_pair(window: tuple[int, int] = (-1, 0)) -> MomentPair:
    """Contexts whose target layers are linear in the previous slot of one source layer each, with noise."""
    generator = torch.Generator().manual_seed(0)
    mixes = [torch.randn(SOURCE.layer_width, TARGET.layer_width, generator=generator) for _ in PLANTED]
    pair = MomentPair.empty((window[1] - window[0] + 1) * SOURCE.width, TARGET.width, held_out_every=4)
    for context_idx in range(20):
        rows = torch.randn(40, SOURCE.width, generator=generator)
        before = stack_window(rows, (-1, -1)).view(40, SOURCE.num_layers, SOURCE.layer_width)
        made = [before[:, layer_idx] @ mix for layer_idx, mix in zip(PLANTED, mixes, strict=True)]
        noise = torch.randn(40, TARGET.width, generator=generator)
        pair.add(context_idx, stack_window(rows, window), torch.cat(made, 1) + noise)
    return pair


def test_linear_takes_the_layer_at_the_same_depth() -> None:
    assert pick_source_layers(LayerStrategy.LINEAR, 4, 4) == ((0,), (1,), (2,), (3,))
    assert pick_source_layers(LayerStrategy.LINEAR, 9, 3) == ((0,), (4,), (8,))
    assert pick_source_layers(LayerStrategy.LINEAR, 3, 5) == ((0,), (0,), (1,), (2,), (2,))
    assert pick_source_layers(LayerStrategy.LINEAR, 6, 1) == ((0,),)


@given(st.integers(1, 80), st.integers(2, 80))
def test_linear_rises_from_the_first_layer_to_the_last(num_source: int, num_target: int) -> None:
    picked = [layers[0] for layers in pick_source_layers(LayerStrategy.LINEAR, num_source, num_target)]
    assert picked == sorted(picked)
    assert (picked[0], picked[-1], len(picked)) == (0, num_source - 1, num_target)


def test_skip_takes_the_same_index_and_none_beyond_the_source() -> None:
    assert pick_source_layers(LayerStrategy.SKIP, 2, 4) == ((0,), (1,), (), ())
    assert pick_source_layers(LayerStrategy.SKIP, 4, 2) == ((0,), (1,))


def test_learned_takes_the_best_of_each_column_and_the_shallower_of_equals() -> None:
    table = torch.tensor([[0.1, 0.5, 0.2], [0.9, 0.5, 0.1], [0.3, 0.5, 0.8]])
    assert pick_source_layers(LayerStrategy.LEARNED, 3, 3, table=table) == ((1,), (0,), (2,))
    picked = pick_source_layers(LayerStrategy.LEARNED, 3, 3, table=table, num_picked=2)
    assert picked == ((1, 2), (0, 1), (0, 2))
    assert pick_source_layers(LayerStrategy.LEARNED, 300, 1, table=torch.zeros(300, 1)) == ((0,),)


def test_learned_without_a_table_of_these_layers_is_a_bug() -> None:
    for table in (None, torch.zeros(2, 3)):
        with pytest.raises(ValueError, match="no held-out table of 3 by 2"):
            pick_source_layers(LayerStrategy.LEARNED, 3, 2, table=table)


def test_held_out_table_finds_the_layers_that_hold_the_signal() -> None:
    table = held_out_table(planted_pair(), SOURCE, TARGET, 1e-6)
    picked = pick_source_layers(LayerStrategy.LEARNED, 4, 3, table=table)
    assert picked == tuple((layer_idx,) for layer_idx in PLANTED)
    for target_idx, source_idx in enumerate(PLANTED):
        assert table[source_idx, target_idx] > 0.7
        others = [layer_idx for layer_idx in range(4) if layer_idx != source_idx]
        assert table[others, target_idx].max() < 0.1


def test_held_out_table_sees_only_the_offsets_of_the_window() -> None:
    table = held_out_table(planted_pair(window=(0, 0)), SOURCE, TARGET, 1e-6)
    assert table.max() < 0.1


def test_sums_of_other_rows_are_a_bug() -> None:
    with pytest.raises(ValueError, match="are not of rows of 48 to 24"):
        held_out_table(MomentPair.empty(50, 24, held_out_every=2), SOURCE, TARGET, 1e-6)
