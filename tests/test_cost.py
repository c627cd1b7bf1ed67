"""What a hand-over costs, by pure arithmetic."""

from __future__ import annotations

import itertools
import random

import pytest

from kvnet.cost import Costs, Line, Load, Mode, best_head, costs_of, should_switch, split_s, window_s

LINK = Line.of(0.02, 1e-6)  # 20 ms and 1 MB/s
READING = Line.of(0.01, 2e-3)  # 10 ms and 500 tokens/s


@pytest.mark.parametrize(("base_s", "unit_s"), [(0.0, 1e-9), (0.05, 1e-8), (3.0, 2e-3)])
def test_line_finds_again_what_was_measured_with_noise(base_s: float, unit_s: float) -> None:
    rng = random.Random(3)
    line = Line()
    for _ in range(40):
        units = 10 ** rng.uniform(3, 6)
        line = line.seen(units, (base_s + unit_s * units) * rng.uniform(0.97, 1.03))
    for units in (2e3, 3e5, 2e6):
        assert line.seconds(units) == pytest.approx(base_s + unit_s * units, rel=0.12)


def test_one_measurement_is_a_rate() -> None:
    line = Line().seen(1000, 2.0)
    assert line.fit == (0.0, pytest.approx(2e-3))
    assert line.seen(1000, 2.0).seconds(500) == pytest.approx(1.0)


def test_nothing_measured_is_no_line() -> None:
    assert not Line().is_known
    assert Line().seconds(10) == 0


def test_young_measurements_outweigh_old_ones() -> None:
    line = Line.of(0.0, 1e-6)
    for _ in range(20):
        line = line.seen(1e6, 10.0).seen(2e6, 20.0)
    assert line.seconds(4e6) == pytest.approx(40, rel=0.05)


@pytest.mark.parametrize("seconds", [(2.0, 1.0), (1.0, 1.0), (0.001, 5.0)])
def test_line_never_predicts_less_than_nothing(seconds: tuple[float, float]) -> None:
    line = Line().seen(1000, seconds[0]).seen(2000, seconds[1])
    assert min(line.fit) >= 0
    assert line.seconds(1) >= 0


@pytest.mark.parametrize("num_tokens", [2, 3, 10, 1000])
@pytest.mark.parametrize("token_nbytes", [10, 2_000, 100_000])
def test_best_head_is_the_best_of_all(num_tokens: int, token_nbytes: int) -> None:
    load = Load(num_tokens, num_tokens * token_nbytes, text_nbytes=4 * num_tokens)
    found = split_s(load, best_head(load, link=LINK, reading=READING), link=LINK, reading=READING)
    every = [split_s(load, head, link=LINK, reading=READING) for head in range(1, num_tokens)]
    one_token_s = READING.fit[1] + token_nbytes * LINK.fit[1]
    assert min(every) <= found <= min(every) + one_token_s


def test_slow_link_and_fast_reader_choose_the_text_and_the_other_way_round_the_transfer() -> None:
    load = Load(1000, 20_000_000, 4000)
    assert costs_of(load, link=LINK, reading=Line.of(0, 1e-5)).choice is Mode.TEXT
    assert costs_of(load, link=Line.of(0, 1e-9), reading=READING).choice is Mode.TRANSFER


def test_even_match_chooses_the_split_and_saves_half() -> None:
    load = Load(1000, 2_000_000, 4000)  # 2 s either way
    found = costs_of(load, link=LINK, reading=READING)
    assert found.choice is Mode.SPLIT
    assert found.split_s == pytest.approx(1.0, rel=0.1)


def test_split_that_saves_less_than_a_tenth_is_not_chosen() -> None:
    assert Costs(1.0, text_s=5.0, split_s=0.95, split_tokens=3).choice is Mode.TRANSFER
    assert Costs(1.0, text_s=5.0, split_s=0.85, split_tokens=3).choice is Mode.SPLIT


@pytest.mark.parametrize(
    ("load", "reading"),
    [(Load(100, 1000), READING), (Load(100, 1000, 400), None), (Load(1, 1000, 4), READING)],
)
def test_without_text_reader_or_second_token_only_the_transfer_has_a_price(
    load: Load, reading: Line | None
) -> None:
    found = costs_of(load, link=LINK, reading=reading)
    assert (found.text_s, found.split_s, found.choice) == (None, None, Mode.TRANSFER)
    assert found.seconds(Mode.TEXT) is None
    assert found.seconds(Mode.AUTO) == found.transfer_s


def paced(*legs: tuple[float, float]) -> list[tuple[float, float]]:
    """Samples each quarter of a second: (seconds, share a second) one leg after the other."""
    now, share = 0.0, 0.0
    samples = [(now, share)]
    for seconds, pace in legs:
        for _ in range(round(seconds * 4)):
            now, share = now + 0.25, min(1.0, share + pace / 4)
            samples.append((now, share))
    return samples


def test_link_that_drops_to_a_hundredth_is_noticed_within_two_windows() -> None:
    samples = paced((3, 0.1), (4, 0.001))
    heard = [should_switch(samples[:n], window_s=2, other_s=5) for n in range(len(samples))]
    assert not any(heard[:13])
    assert samples[heard.index(True)][0] <= 3 + 2 * 2


def test_link_that_drops_is_sat_out_where_the_other_way_takes_longer_still() -> None:
    samples = paced((3, 0.1), (4, 0.05))
    assert not any(should_switch(samples[:n], window_s=2, other_s=30) for n in range(len(samples)))


def test_stalled_transfer_is_switched_and_a_complete_one_never() -> None:
    assert should_switch(paced((5, 0.0)), window_s=2, other_s=1000)
    assert not should_switch(paced((5, 0.5), (5, 0.0)), window_s=2, other_s=0.001)
    assert not should_switch([], window_s=2, other_s=1)


def test_window_holds_some_chunks_of_a_slow_link() -> None:
    assert window_s(0.5, 100) == 2
    assert window_s(80, 8) == 30
    assert all(window_s(p, c) >= 2 for p, c in itertools.product((0, 1, 9), (0, 1, 50)))
