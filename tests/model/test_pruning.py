"""Which heads the seed's entropy rule names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnet.model.pruning import prunable_heads
from kvnet.types import AttentionMetadata


def layer(layer_index: int, *entropies: float) -> AttentionMetadata:
    return AttentionMetadata(layer_index, 0.5, entropies, (0,))


def test_kv_head_goes_only_when_all_its_query_heads_are_focused() -> None:
    attention = [layer(0, 0.05, 0.09, 0.05, 0.11), layer(1, 0.2, 0.01, 0.0, 0.0)]
    assert prunable_heads(attention, num_kv_heads=2) == ((0, 0), (1, 1))


def test_entropy_at_the_threshold_keeps_the_head() -> None:
    assert prunable_heads([layer(0, 0.1)], num_kv_heads=1) == ()
    assert prunable_heads([layer(0, 0.1)], num_kv_heads=1, threshold=0.11) == ((0, 0),)


def test_without_groups_each_head_stands_for_itself() -> None:
    assert prunable_heads([layer(3, 0.0, 1.0, 0.0)], num_kv_heads=3) == ((3, 0), (3, 2))


def test_pairs_ascend_whatever_the_order_of_the_layers() -> None:
    assert prunable_heads([layer(2, 0.0), layer(0, 0.0)], num_kv_heads=1) == ((0, 0), (2, 0))


@pytest.mark.parametrize("num_kv_heads", [0, 2, 4])
def test_heads_that_do_not_divide_are_a_bug(num_kv_heads: int) -> None:
    with pytest.raises(ValueError, match="3 heads"):
        prunable_heads([layer(0, 0.0, 0.0, 0.0)], num_kv_heads=num_kv_heads)


@given(
    st.lists(st.lists(st.floats(0, 8), min_size=4, max_size=4), max_size=5),
    st.sampled_from([1, 2, 4]),
    st.floats(0, 8),
)
def test_a_kept_head_has_a_query_head_above_and_a_pruned_one_has_none(
    entropies: list[list[float]], num_kv_heads: int, threshold: float
) -> None:
    attention = [layer(i, *values) for i, values in enumerate(entropies)]
    named = set(prunable_heads(attention, num_kv_heads=num_kv_heads, threshold=threshold))
    group = 4 // num_kv_heads
    for index, values in enumerate(entropies):
        for kv_head in range(num_kv_heads):
            own = values[kv_head * group : (kv_head + 1) * group]
            assert ((index, kv_head) in named) == all(entropy < threshold for entropy in own)
