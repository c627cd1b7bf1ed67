"""kvnet.align.pairs: a target slot is paired with the source slot that has read as far."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnet.align.pairs import MIN_COVERAGE, Span, pair_slots
from kvnet.errors import UnalignableTokens


def pairs(source: list[Span], target: list[Span]) -> list[tuple[int, int]]:
    source_idx, target_idx, _ = pair_slots(source, target)
    return list(zip(source_idx.tolist(), target_idx.tolist(), strict=True))


def cut(lengths: list[int]) -> list[Span]:
    spans, start = [], 0
    for length in lengths:
        spans.append((start, start + length))
        start += length
    return spans


def test_a_word_pairs_with_the_last_of_its_pieces() -> None:
    assert pairs(cut([2, 2, 1]), cut([4, 1])) == [(1, 0), (2, 1)]


def test_pieces_of_a_word_pair_with_the_whole_word() -> None:
    assert pairs(cut([4, 1]), cut([2, 2, 1])) == [(0, 0), (0, 1), (1, 2)]


def test_zero_width_spans_are_passed_over_wherever_they_stand() -> None:
    source = [(0, 0), (0, 3), (3, 3), (3, 6), (0, 0)]
    target = [(0, 0), (0, 3), (3, 6), (6, 6)]
    assert pairs(source, target) == [(1, 1), (3, 2)]
    assert pair_slots(source, target)[2] == 1.0


def test_of_the_pieces_of_one_character_the_last_is_taken() -> None:
    source = [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)]  # the second character is three byte tokens
    assert pairs(source, cut([1, 1, 1])) == [(0, 0), (3, 1), (4, 2)]


def test_slot_whose_last_character_no_source_slot_covers_is_left_out_and_lowers_the_coverage() -> None:
    source, target = [(0, 3), (4, 7), (8, 9)], [(0, 3), (3, 7), (7, 8), (8, 9)]  # the source drops blanks
    assert pairs(source, target) == [(0, 0), (1, 1), (2, 3)]
    assert pair_slots(source, target)[2] == 0.75


@pytest.mark.parametrize(
    ("source", "target"), [(cut([5]), cut([5, 5, 5])), (cut([5]), []), (cut([5]), [(0, 0)]), ([], cut([5]))]
)
def test_too_few_partners_are_refused(source: list[Span], target: list[Span]) -> None:
    with pytest.raises(UnalignableTokens, match="check that both read the same text"):
        pair_slots(source, target)


def test_coverage_at_the_bound_is_taken() -> None:
    assert pair_slots(cut([5]), cut([5, 5]))[2] == MIN_COVERAGE


@pytest.mark.parametrize("spans", [[(0, 3), (2, 4), (1, 5)], [(0, 5), (2, 4)]])
def test_spans_that_go_back_are_refused(spans: list[Span]) -> None:
    for source, target in ((spans, cut([3, 3])), (cut([3, 3]), spans)):
        with pytest.raises(UnalignableTokens, match="wanted ascending spans"):
            pair_slots(source, target)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.data())
def test_two_cuts_of_one_text_pair_completely_and_in_order(lengths: list[int], data: st.DataObject) -> None:
    num_chars = sum(lengths)
    places = data.draw(st.sets(st.integers(0, num_chars)))
    edges = sorted(places | {0, num_chars})
    source, target = cut(lengths), list(pairwise(edges))
    if not target:
        return
    found = pairs(source, target)
    assert [target_idx for _, target_idx in found] == list(range(len(target)))
    for source_idx, target_idx in found:
        start, stop = source[source_idx]
        assert start < target[target_idx][1] <= stop
    assert pairs(target, target) == [(slot, slot) for slot in range(len(target))]
