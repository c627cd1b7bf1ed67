"""Which faults come in which order: a function of the seed alone. Knows no node and no clock."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """What can go wrong."""

    DELAY = "delay"
    CUT = "cut"
    FLIP = "flip"
    STALL = "stall"
    PARTITION = "partition"
    REFUSE = "refuse"
    FLAP = "flap"
    READDRESS = "readdress"
    DISK_FULL = "disk_full"
    CLOCK_SENDER = "clock_sender"
    CLOCK_RECEIVER = "clock_receiver"
    KILL_SENDER = "kill_sender"
    KILL_RECEIVER = "kill_receiver"
    FAILPOINT_SENDER = "failpoint_sender"
    FAILPOINT_RECEIVER = "failpoint_receiver"


WEIGHTS: Final = {
    Kind.DELAY: 6,
    Kind.CUT: 20,
    Kind.FLIP: 18,
    Kind.STALL: 9,
    Kind.PARTITION: 8,
    Kind.REFUSE: 5,
    Kind.FLAP: 5,
    Kind.READDRESS: 5,
    Kind.DISK_FULL: 5,
    Kind.CLOCK_SENDER: 2,
    Kind.CLOCK_RECEIVER: 3,
    Kind.KILL_SENDER: 4,
    Kind.KILL_RECEIVER: 6,
    Kind.FAILPOINT_SENDER: 3,
    Kind.FAILPOINT_RECEIVER: 6,
}
RESTARTS: Final = frozenset(kind for kind in Kind if kind.startswith(("kill", "failpoint")))
CLOCKS: Final = frozenset({Kind.CLOCK_SENDER, Kind.CLOCK_RECEIVER})
FAILPOINTS: Final = {
    Kind.FAILPOINT_SENDER: ("offer.kept", "ledger.completing", "ledger.completed", "outbox.queued"),
    Kind.FAILPOINT_RECEIVER: (
        *("chunk.written", "chunk.written:3", "chunk.synced", "chunk.synced:3", "chunk.logged"),
        *("chunk.logged:3", "memory.laid-out", "memory.aside", "memory.in-place"),
        *("ledger.completing", "ledger.completed"),
    ),
}
NUM_MEMORIES: Final = 12
# In the last part no node is restarted on purpose, so that growth can be read from it.
LONG_LIVED_SHARE: Final = 0.4
_JUMPS_S: Final = (-30 * 3600, -3600, -400, -90, 90, 400, 3600, 30 * 3600)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, and the messages that are under way in it: each of another memory, by its index."""

    number: int
    kind: Kind
    memories: tuple[int, ...]
    place: float  # where on the way, as a share of what travels; above 1 there is nothing left to hit
    in_hello: bool  # it hits the call before the transfer
    from_receiver: bool  # the direction that is hit
    num_faulty: int  # connections that suffer
    moment_s: float  # after the messages were sent off
    hold_s: float  # until it is mended
    failpoint: str
    jump_s: float
    forgets: bool  # afterwards the receiver forgets the memories, so that the next ones come anew

    @property
    def targets_receiver(self) -> bool:
        """Whether it is the receiver's process or machine that suffers."""
        return self.kind.endswith("receiver")


def make_plan(count: int, seed: int, kinds: Iterable[Kind] = tuple(Kind)) -> tuple[Fault, ...]:
    """`count` faults; restarts only before the last `LONG_LIVED_SHARE` of them."""
    rng = random.Random(f"soak {seed}")
    allowed = [kind for kind in Kind if kind in set(kinds)]
    living = [kind for kind in allowed if kind not in RESTARTS] or allowed
    num_restless = count - int(count * LONG_LIVED_SHARE)
    return tuple(_draw(number, allowed if number < num_restless else living, rng) for number in range(count))


def _draw(number: int, kinds: list[Kind], rng: random.Random) -> Fault:
    (kind,) = rng.choices(kinds, [WEIGHTS[kind] for kind in kinds])
    num_messages = rng.choice((1, 1, 1, 2, 3))
    return Fault(
        number=number,
        kind=kind,
        memories=tuple(rng.sample(range(NUM_MEMORIES), num_messages)),
        place=rng.uniform(0.0, 1.02),
        in_hello=rng.random() < 0.15,
        from_receiver=rng.random() < 0.35,
        num_faulty=rng.randint(2, 2 + 2 * num_messages),
        moment_s=rng.uniform(0.0, 0.18),
        hold_s=rng.choice((0.05, 0.1, 0.2, 0.4, 0.8)),
        failpoint=rng.choice(FAILPOINTS.get(kind, ("",))),
        jump_s=float(rng.choice(_JUMPS_S)),
        forgets=rng.random() < 0.5,
    )
