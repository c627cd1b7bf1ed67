"""Who passes a memory on to whom when it goes to many. Pure: knows no sockets, no clock and no trust list.

The origin uploads one copy. Whoever receives it passes it on while it arrives, to one node (a chain) or to
several (a tree), and each of those has a share of the others behind it. Source: FORMAT.md §5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from kvnet.types import NodeId

MAX_BRANCHES: Final = 4  # copies that one relay uploads at once
# What a hop costs before its first byte, and the rate of a link: on eight nodes at 100 Mbit/s that share two
# cores (scripts/bench/fanout). Only their ratio to the memory's size decides, and only between shapes.
HOP_S: Final = 0.1
LINK_NBYTES_PER_S: Final = 12.5e6


@dataclass(frozen=True, slots=True)
class Candidate:
    """A receiver that answered: only nodes of one kind take the very same bytes."""

    node_id: NodeId
    kind: str  # the digest of the fingerprint that it hosts


@dataclass(frozen=True, slots=True)
class Branch:
    """A node that gets a copy, and those to whom it passes the memory on, nearest first."""

    head: NodeId
    behind: tuple[NodeId, ...]


def plan(candidates: Sequence[Candidate]) -> tuple[Branch, ...]:
    """What the origin sends itself: for each kind one branch, in the order in which they were named."""
    kinds: dict[str, list[NodeId]] = {}
    for candidate in candidates:
        kinds.setdefault(candidate.kind, []).append(candidate.node_id)
    return tuple(Branch(nodes[0], tuple(nodes[1:])) for nodes in kinds.values())


def split(nodes: Sequence[NodeId], width: int) -> tuple[Branch, ...]:
    """Cut those behind a node into at most `width` branches of nearly equal length, none lost, none twice."""
    width = min(width, len(nodes))
    bounds = [len(nodes) * number // width for number in range(width + 1)] if width else []
    return tuple(Branch(nodes[start], tuple(nodes[start + 1 : stop])) for start, stop in pairwise(bounds))


def choose_width(
    num_nodes: int, nbytes: int, *, hop_s: float = HOP_S, nbytes_per_s: float = LINK_NBYTES_PER_S
) -> int:
    """How many branches each relay should have, so that the last of `num_nodes` is done first.

    A wider tree is less deep, but sends each copy at a fraction of the link: a chain, but for small memories.
    """

    def seconds(width: int) -> float:
        return width * nbytes / nbytes_per_s + depth_of(num_nodes, width) * hop_s

    return min(range(1, MAX_BRANCHES + 1), key=seconds)


def depth_of(num_nodes: int, width: int) -> int:
    """Hops to the last of `num_nodes` behind a node, where each has `width` branches."""
    if width == 1:
        return num_nodes
    depth = reached = 0
    while reached < num_nodes:
        depth += 1
        reached += width**depth
    return depth


def branches(behind: Sequence[NodeId], nbytes: int) -> tuple[Branch, ...]:
    """To whom a relay uploads, where these nodes are behind it and the memory has so many bytes."""
    return split(behind, choose_width(len(behind), nbytes))
