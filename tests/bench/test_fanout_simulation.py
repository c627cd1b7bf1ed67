"""The simulated fan-out: arithmetic that can be done by hand, and the same result from the same seed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "bench"))

from fanout_simulation import CHOSEN, Assumptions, one_by_one, simulate

MIB = 1 << 20
PLAIN = Assumptions(
    link_nbytes_per_s=MIB,
    latency_s=0.0,
    setup_s=0.0,
    relay_s=0.0,
    finish_s=0.0,
    confirm_s=0.0,
    confirm_s_per_nbyte=0.0,
    confirm_nbytes=0,
)


def test_a_chain_takes_one_copy_and_a_chunk_for_each_further_hop() -> None:
    assert simulate(1, 8 * MIB, PLAIN, width=1).copies_s == pytest.approx(8)
    assert simulate(5, 8 * MIB, PLAIN, width=1).copies_s == pytest.approx(8 + 4)
    assert simulate(5, 8 * MIB, PLAIN, width=1).uploaded_nbytes == 8 * MIB


def test_a_tree_shares_each_uplink_among_its_branches() -> None:
    # Node 1 serves two, each at half the rate: 16 s of sending behind the first chunk.
    assert simulate(3, 8 * MIB, PLAIN, width=2).copies_s == pytest.approx(1 + 16)


def test_one_by_one_grows_with_the_receivers_and_fan_out_does_not_upload_more() -> None:
    assert one_by_one(7, 8 * MIB, PLAIN).delivered_s == pytest.approx(56)
    assert simulate(7, 8 * MIB, PLAIN).uploaded_nbytes == one_by_one(1, 8 * MIB, PLAIN).uploaded_nbytes


@pytest.mark.parametrize("width", [1, 2, CHOSEN])
def test_everybody_who_lives_is_served_though_relays_die(width: int) -> None:
    told = Assumptions(failure_rate=0.1)
    first, again = (simulate(300, 8 * MIB, told, width=width, seed=5) for _ in range(2))
    assert first == again
    assert 0 < first.num_lost < 100
    assert first.copies_s > simulate(300, 8 * MIB, Assumptions(), width=width).copies_s
