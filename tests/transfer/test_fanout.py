"""Who passes on to whom: nobody twice, nobody left out, and never back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvnet.transfer.fanout import (
    MAX_BRANCHES,
    Branch,
    Candidate,
    branches,
    choose_width,
    depth_of,
    plan,
    split,
)
from kvnet.types import NodeId

BIG, SMALL = 64 << 20, 10_000


def nodes(count: int) -> tuple[NodeId, ...]:
    return tuple(NodeId(f"n{number}") for number in range(count))


def reached(branch: Branch, nbytes: int) -> list[NodeId]:
    """Everybody that a branch reaches, as each relay plans for those behind it."""
    found = [branch.head]
    for inner in branches(branch.behind, nbytes):
        found += reached(inner, nbytes)
    return found


@given(st.integers(0, 64), st.sampled_from([BIG, SMALL, 1 << 20]))
def test_every_node_is_reached_once(count: int, nbytes: int) -> None:
    found = [node for branch in branches(nodes(count), nbytes) for node in reached(branch, nbytes)]
    assert sorted(found) == sorted(nodes(count))


@given(st.integers(0, 64), st.integers(1, 70))
def test_what_is_behind_a_node_shrinks_from_hop_to_hop(count: int, width: int) -> None:
    parts = split(nodes(count), width)
    assert len(parts) == min(count, width)
    assert all(len(part.behind) < count and part.head not in part.behind for part in parts)
    assert (
        max((len(p.behind) for p in parts), default=0) - min((len(p.behind) for p in parts), default=0) <= 1
    )


def test_the_origin_uploads_one_copy_for_each_kind_of_model() -> None:
    a, b, c, d = nodes(4)
    found = plan([Candidate(a, "x"), Candidate(b, "y"), Candidate(c, "x"), Candidate(d, "x")])
    assert found == (Branch(a, (c, d)), Branch(b, ()))
    assert plan([]) == ()


def test_a_large_memory_goes_along_a_chain_and_a_small_one_down_a_tree() -> None:
    assert choose_width(7, BIG) == 1
    assert branches(nodes(3), BIG) == (Branch(nodes(3)[0], nodes(3)[1:]),)
    assert 1 < choose_width(64, SMALL) <= MAX_BRANCHES


def test_depth_counts_the_hops_to_the_last_node() -> None:
    assert [depth_of(count, 1) for count in (0, 1, 5)] == [0, 1, 5]
    assert [depth_of(count, 2) for count in (0, 1, 2, 3, 6, 7)] == [0, 1, 1, 2, 2, 3]
