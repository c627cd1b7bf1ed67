"""How a memory reaches many receivers, event by event: the chain and the tree of `kvnet.transfer.fanout`.

Pure and seeded. Chunks leave a node once they are durable there, one at a time over its one uplink, to its
branches by turns; a downlink is never the limit, because a node has one parent. What it assumes is in
`Assumptions`, and printed by the bench.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from itertools import count

from kvnet.transfer.fanout import choose_width, split
from kvnet.types import NodeId

CHOSEN = 0  # as a width: what `choose_width` says at each node


@dataclass(frozen=True, slots=True)
class Assumptions:
    """Times in seconds. The defaults were measured by `scripts/bench/fanout`: eight nodes on two cores."""

    link_nbytes_per_s: float = 11.9e6  # what 100 Mbit/s carry of payload
    latency_s: float = 0.0002  # one way
    setup_s: float = 0.06  # from a node's admission to that of the next: connection, offer, accept
    chunk_nbytes: int = 1 << 20
    relay_s: float = 0.01  # from a chunk's last byte to its first byte out: verify, sync, sign
    finish_s: float = 0.1  # from the last chunk to the receipt
    confirm_s: float = 0.06  # the origin's own message to a receiver that holds everything,
    confirm_s_per_nbyte: float = 2e-8  # which reads back what it holds,
    confirm_nbytes: int = 17_000  # and what that uploads
    at_once: int = 4  # such messages
    failure_rate: float = 0.0  # of the relays, each at a chunk of its own
    detect_s: float = 1.0  # until a dead relay is noticed: its sockets close
    cpu_s_per_nbyte: float = 2.5e-8  # of a core, to take a byte and to pass it on
    cores: int = 0  # that all nodes share, as on the bench's one machine; 0: each has its own


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run came to; `num_lost` relays died and got nothing more."""

    copies_s: float  # until the last receiver that lives holds every chunk
    delivered_s: float  # until the last one has its message
    uploaded_nbytes: int  # by the origin
    num_lost: int


@dataclass(slots=True)
class _Node:
    parent: int
    children: list[int] = field(default_factory=list)
    arrived: int = 0
    sent_to: dict[int, int] = field(default_factory=dict)  # chunks that left for a child which is open
    turn: int = 0
    is_busy: bool = False
    dies_at: int = 0  # chunk; 0 is never
    is_dead: bool = False


def one_by_one(num_receivers: int, nbytes: int, told: Assumptions) -> Outcome:
    """The origin uploads a copy for each, one behind the other."""
    chunk_s = told.relay_s + told.latency_s
    each_s = told.setup_s + nbytes / told.link_nbytes_per_s + chunk_s + told.finish_s
    whole = num_receivers * each_s
    return Outcome(whole, whole, num_receivers * (nbytes + told.confirm_nbytes), 0)


def simulate(
    num_receivers: int, nbytes: int, told: Assumptions, *, width: int = CHOSEN, seed: int = 0
) -> Outcome:
    """Node 0 sends to all others through one of them. `width` 1 is a chain; CHOSEN is what kvnet would do."""
    run = _Run(_tree(num_receivers, nbytes, width), max(1, -(-nbytes // told.chunk_nbytes)), nbytes, told)
    run.doom(random.Random(seed))
    copies_s = run.until_done()
    alive = num_receivers - run.num_lost
    at_once = told.at_once
    if told.cores:
        copies_s = max(copies_s, alive * nbytes * told.cpu_s_per_nbyte / told.cores)
        at_once = min(at_once, told.cores)
    rounds = -(-max(0, alive - 2) // at_once)  # the second shows whether it worked, then several at once
    confirm_s = told.confirm_s + told.confirm_s_per_nbyte * nbytes
    confirming_s = run.head_done_s + told.finish_s + confirm_s * ((alive > 1) + rounds)
    delivered_s = max(copies_s + told.finish_s, confirming_s)
    uploaded = run.uploaded_nbytes + told.confirm_nbytes * alive
    return Outcome(copies_s, delivered_s, uploaded, run.num_lost)


def _tree(num_receivers: int, nbytes: int, width: int) -> list[_Node]:
    nodes = [_Node(-1)] + [_Node(0) for _ in range(num_receivers)]
    names = [NodeId(str(number)) for number in range(1, num_receivers + 1)]
    pending = [(0, tuple(names))]
    while pending:
        parent, behind = pending.pop()
        branches = 1 if parent == 0 else width or choose_width(len(behind), nbytes)
        for branch in split(behind, branches):
            child = int(branch.head)
            nodes[child].parent = parent
            nodes[parent].children.append(child)
            if branch.behind:
                pending.append((child, branch.behind))
    return nodes


class _Run:
    """One simulation at work: a heap of what happens next."""

    def __init__(self, nodes: list[_Node], num_chunks: int, nbytes: int, told: Assumptions) -> None:
        self.num_lost = 0
        self.uploaded_nbytes = 0
        self.head_done_s = 0.0
        self._nodes = nodes
        self._num_chunks = num_chunks
        self._chunk_nbytes = nbytes / num_chunks
        self._told = told
        self._order = count()
        self._events: list[tuple[float, int, str, int, int]] = []
        nodes[0].arrived = num_chunks
        self._at(told.setup_s, "open", 0, nodes[0].children[0])

    def doom(self, rng: random.Random) -> None:
        """Choose which relays die, and at which chunk; the first one lives."""
        for number, node in enumerate(self._nodes):
            if number > 1 and node.children and rng.random() < self._told.failure_rate:
                node.dies_at = rng.randint(1, self._num_chunks)

    def until_done(self) -> float:
        """Run; returns when the last chunk arrived."""
        last_s = 0.0
        while self._events:
            now, _, what, number, child = heapq.heappop(self._events)
            if what == "open":
                self._open(now, number, child)
            elif what == "sent":
                self._nodes[number].is_busy = False
                self._at(now + self._told.latency_s + self._told.relay_s, "arrive", child, number)
                self._pump(now, number)
            elif what == "arrive":
                last_s = max(last_s, self._arrive(now, number))
            else:
                self._replace(now, number, child)
        return last_s

    def _open(self, now: float, number: int, child: int) -> None:
        """A child is ready for chunks, and begins to pass on."""
        node, told = self._nodes[number], self._told
        if node.is_dead:
            return
        node.sent_to[child] = self._nodes[child].arrived
        for grandchild in self._nodes[child].children:
            if self._nodes[grandchild].parent == child and grandchild not in self._nodes[child].sent_to:
                self._at(now + told.setup_s, "open", child, grandchild)
        self._pump(now, number)

    def _pump(self, now: float, number: int) -> None:
        """Send the next chunk that is here and somebody lacks, if the uplink is free."""
        node = self._nodes[number]
        if node.is_busy or node.is_dead:
            return
        opened = [child for child in node.children if child in node.sent_to]
        for step in range(len(opened)):
            child = opened[(node.turn + step) % len(opened)]
            if node.sent_to[child] < node.arrived and not self._nodes[child].is_dead:
                node.sent_to[child] += 1
                node.turn += step + 1
                node.is_busy = True
                if number == 0:
                    self.uploaded_nbytes += round(self._chunk_nbytes)
                self._at(now + self._chunk_nbytes / self._told.link_nbytes_per_s, "sent", number, child)
                return

    def _arrive(self, now: float, number: int) -> float:
        node = self._nodes[number]
        if node.is_dead:
            return 0.0
        node.arrived += 1
        if node.dies_at == node.arrived:
            node.is_dead = True
            self.num_lost += 1
            self._at(now + self._told.detect_s, "replace", node.parent, number)
            return 0.0
        if number == 1 and node.arrived == self._num_chunks:
            self.head_done_s = now
        self._pump(now, number)
        return now

    def _replace(self, now: float, number: int, dead: int) -> None:
        """The next one behind a dead relay takes its place, and the others of its branch behind it."""
        while self._nodes[number].is_dead:
            number = self._nodes[number].parent
        node, (first, *others) = self._nodes[number], self._nodes[dead].children
        node.children = [child for child in node.children if child != dead] + [first]
        self._nodes[first].parent = number
        for other in others:
            self._nodes[first].children.append(other)
            self._nodes[other].parent = first
            self._at(now + 2 * self._told.setup_s, "open", first, other)
        self._at(now + self._told.setup_s, "open", number, first)

    def _at(self, when_s: float, what: str, number: int, child: int) -> None:
        heapq.heappush(self._events, (when_s, next(self._order), what, number, child))
