"""Bars and sparklines: as long as the number, never longer than the room."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvnet.cli.picture import BLOCKS, PLAIN, bar, sparkline


@given(value=st.integers(0, 2**62), full=st.integers(0, 2**62), width=st.integers(1, 40))
def test_a_bar_takes_its_width(value: int, full: int, width: int) -> None:
    for made_of in (BLOCKS, PLAIN):
        assert len(bar(value, full, width=width, made_of=made_of)) == width


def test_a_bar_grows_by_parts_of_a_cell() -> None:
    drawn = [bar(value, 16, width=2, made_of=BLOCKS) for value in (0, 1, 8, 9, 16)]
    assert drawn == ["  ", "▏ ", "█ ", "█▏", "██"]


def test_anything_above_nothing_shows() -> None:
    assert bar(1, 10**6, width=4, made_of=BLOCKS).strip()
    assert bar(0, 10**6, width=4, made_of=BLOCKS).strip() == ""


@given(values=st.lists(st.floats(0, 10), max_size=200), max_width=st.integers(1, 40))
def test_a_sparkline_has_a_character_for_each_value_while_there_is_room(
    values: list[float], max_width: int
) -> None:
    assert len(sparkline(values, 10.0, max_width=max_width, made_of=BLOCKS)) == min(len(values), max_width)


def test_a_sparkline_goes_from_nothing_to_full() -> None:
    assert sparkline([0, 1, 2, 4, 7, 8], 8, max_width=9, made_of=BLOCKS) == "▁▂▃▅██"


def test_neighbours_share_a_character_where_there_is_no_room() -> None:
    assert sparkline([0, 8, 8, 8], 8, max_width=2, made_of=BLOCKS) == "▅█"


def test_a_scale_of_nothing_draws_nothing() -> None:
    assert sparkline([0.0], 0.0, max_width=4, made_of=BLOCKS) == "▁"
