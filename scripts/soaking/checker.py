"""What must hold of messages that were sent and of what arrived: a function of what was observed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Message:
    """A memory that was sent under a note that no other message has."""

    note: str
    memory: str
    nbytes: int
    chunks: int
    accepted: bool = False  # the sender said that it is delivered, or waits
    acked_chunks: int = 0  # acknowledged as durable in attempts that came to nothing
    resumed_chunks: int | None = None  # that the receiver went on from; None where it is not known

    was_in_place: bool = False  # the receiver, started again, had all of it as a memory, with no receipt yet

    @property
    def lost_chunks(self) -> int:
        """Chunks that were acknowledged and were not there any more."""
        if self.resumed_chunks is None or self.was_in_place:
            return 0
        return max(0, self.acked_chunks - self.resumed_chunks)


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message in the receiver's inbox."""

    id: str
    note: str
    memory: str


@dataclass(slots=True)
class Verdict:
    """How often each promise was broken, and a sentence for each time."""

    lost: int = 0
    duplicates: int = 0
    mismatches: int = 0
    bytes_lost: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, other: Verdict) -> None:
        """Count another verdict in."""
        self.lost += other.lost
        self.duplicates += other.duplicates
        self.mismatches += other.mismatches
        self.bytes_lost += other.bytes_lost
        self.problems += other.problems


def check(
    messages: Sequence[Message],
    inbox: Iterable[Arrived],
    *,
    sent: Mapping[str, str],
    kept: Mapping[str, str],
) -> Verdict:
    """Every accepted message is there once, as it was sent, and what was acknowledged did not travel twice.

    `sent` and `kept` give, by memory, the digest of its file at the sender and at the receiver; a memory
    that `kept` does not name was not looked at.
    """
    verdict = Verdict()
    by_note: dict[str, list[Arrived]] = {}
    for arrived in {one.id: one for one in inbox}.values():
        by_note.setdefault(arrived.note, []).append(arrived)
    for message in messages:
        there = by_note.pop(message.note, [])
        _check_one(message, there, verdict)
    for note, there in by_note.items():
        verdict.mismatches += len(there)
        verdict.problems.append(f"{note!r:.60}: arrived and was never sent")
    for memory in sorted({message.memory for message in messages} & kept.keys()):
        if kept[memory] != sent[memory]:
            verdict.mismatches += 1
            verdict.problems.append(f"{memory}: its file at the receiver has digest {kept[memory] or 'none'}")
    return verdict


def _check_one(message: Message, there: Sequence[Arrived], verdict: Verdict) -> None:
    if not there and message.accepted:
        verdict.lost += 1
        verdict.bytes_lost += message.nbytes
        verdict.problems.append(f"{message.note}: was accepted and did not arrive")
    if len(there) > 1:
        verdict.duplicates += len(there) - 1
        verdict.problems.append(f"{message.note}: arrived {len(there)} times")
    for arrived in there:
        if arrived.memory != message.memory:
            verdict.mismatches += 1
            verdict.problems.append(f"{message.note}: brought {arrived.memory}, wanted {message.memory}")
    if message.lost_chunks:
        verdict.lost += 1
        verdict.bytes_lost += message.nbytes * message.lost_chunks // message.chunks
        verdict.problems.append(
            f"{message.note}: {message.acked_chunks} chunks were acknowledged, "
            f"the receiver went on from {message.resumed_chunks}"
        )


def count_kinds(kinds: Iterable[str]) -> dict[str, int]:
    """How often each came, by name."""
    return dict(sorted(Counter(kinds).items()))
