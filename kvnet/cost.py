"""What a hand-over costs: seconds for sending a memory, for reading its text again, and for a split of both.

Pure functions of what was measured. A split is that of Cake (arXiv:2410.03065): the receiver computes from
the first token on while the last ones load. Knows no clock, no files, no peers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from enum import StrEnum
from typing import Final

_DECAY: Final = 0.9  # what a measurement counts, once a younger one is there
_DECAY_SURPRISED: Final = 0.1  # where that one is twice as much, or half
_FLAT: Final = 1e-6  # below this share, all sizes measured are as good as one
SPLIT_GAIN: Final = 0.9  # a split keeps both ends busy: it has to save a tenth
MIN_WINDOW_S: Final = 2.0
CHUNKS_PER_WINDOW: Final = 3
PATIENCE: Final = 2.0  # how many times longer than the other way a transfer may still take


class Mode(StrEnum):
    """How a memory reaches its receiver."""

    TRANSFER = "transfer"  # its keys and values
    TEXT = "text"  # its text, and the last token's keys and values
    SPLIT = "split"  # the text of its head, the keys and values of its tail
    AUTO = "auto"  # what the estimate says


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds as a base and so many for each unit, fitted to measurements; young and near ones count more.

    Least squares of relative errors, since a quarter too much is as wrong for a small memory as for a large
    one. The fields are its sums.
    """

    weight: float = 0.0
    n: float = 0.0
    s: float = 0.0
    nn: float = 0.0
    ns: float = 0.0

    @classmethod
    def of(cls, base_s: float, unit_s: float) -> Line:
        """The line through two made-up measurements."""
        return cls().seen(1, base_s + unit_s).seen(1_000_000, base_s + 1_000_000 * unit_s)

    def seen(self, units: float, seconds: float) -> Line:
        """With one more measurement."""
        weight = 1 / max(seconds, 1e-6) ** 2
        told = self.seconds(units)
        # What was fast weighs much: once a link is another, it would be believed for ever.
        decay = _DECAY if told / 2 <= seconds <= told * 2 else _DECAY_SURPRISED
        now = (1.0, units, seconds, units * units, units * seconds)
        kept = (decay * old for old in astuple(self))
        return Line(*(old + weight * new for old, new in zip(kept, now, strict=True)))

    @property
    def is_known(self) -> bool:
        """Whether anything was measured."""
        return self.weight > 0

    @property
    def fit(self) -> tuple[float, float]:
        """(base in s, s for each unit), neither of them negative."""
        if not self.nn:
            return 0.0, 0.0
        spread = self.weight * self.nn - self.n * self.n
        if spread <= _FLAT * self.weight * self.nn:
            return 0.0, self.ns / self.nn
        unit_s = (self.weight * self.ns - self.n * self.s) / spread
        base_s = (self.s - unit_s * self.n) / self.weight
        if unit_s <= 0 or base_s < 0:
            return 0.0, self.ns / self.nn
        return base_s, unit_s

    def seconds(self, units: float) -> float:
        """What so many units take."""
        base_s, unit_s = self.fit
        return base_s + unit_s * units


@dataclass(frozen=True, slots=True)
class Load:
    """What there is to hand over; `text_nbytes` 0 where no text can be read for it."""

    num_tokens: int
    wire_nbytes: int
    text_nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds by each way; None for one that is closed. A split reads the first `split_tokens` anew."""

    transfer_s: float
    text_s: float | None = None
    split_s: float | None = None
    split_tokens: int = 0

    @property
    def choice(self) -> Mode:
        """The fastest way; a split only where it saves a tenth."""
        best, best_s = Mode.TRANSFER, self.transfer_s
        if self.text_s is not None and self.text_s < best_s:
            best, best_s = Mode.TEXT, self.text_s
        if self.split_s is not None and self.split_s < SPLIT_GAIN * best_s:
            best = Mode.SPLIT
        return best

    def seconds(self, mode: Mode) -> float | None:
        """What a way takes; None if it is closed."""
        way = self.choice if mode is Mode.AUTO else mode
        return {Mode.TRANSFER: self.transfer_s, Mode.TEXT: self.text_s, Mode.SPLIT: self.split_s}[way]


def costs_of(load: Load, *, link: Line, reading: Line | None) -> Costs:
    """Price every way. `link` is in bytes, from offer to receipt; `reading` in tokens, at the receiver.

    Without `reading`, or a text, or a second token, only the transfer is priced.
    """
    transfer_s = link.seconds(load.wire_nbytes)
    if reading is None or not reading.is_known or not load.text_nbytes or load.num_tokens < 2:
        return Costs(transfer_s)
    head = best_head(load, link=link, reading=reading)
    return Costs(
        transfer_s,
        text_s=split_s(load, load.num_tokens - 1, link=link, reading=reading),
        split_s=split_s(load, head, link=link, reading=reading),
        split_tokens=head,
    )


def best_head(load: Load, *, link: Line, reading: Line) -> int:
    """How many tokens to read anew so that reading and loading end together: 1 up to all but the last."""
    _, byte_s = link.fit
    base_s, token_s = reading.fit
    token_nbytes = load.wire_nbytes / load.num_tokens
    all_s = byte_s * (load.text_nbytes + load.wire_nbytes)
    head = (all_s - base_s) / max(token_s + byte_s * token_nbytes, 1e-12)
    return min(max(round(head), 1), load.num_tokens - 1)


def split_s(load: Load, head: int, *, link: Line, reading: Line) -> float:
    """Seconds where the first `head` tokens are read while the others load."""
    base_s, byte_s = link.fit
    tail_nbytes = load.wire_nbytes * (load.num_tokens - head) / load.num_tokens
    return base_s + max(reading.seconds(head), byte_s * (load.text_nbytes + tail_nbytes))


def window_s(predicted_s: float, num_chunks: int) -> float:
    """Over how long a transfer's pace is judged: never so short that no chunk could have come through."""
    return max(MIN_WINDOW_S, CHUNKS_PER_WINDOW * predicted_s / max(num_chunks, 1))


def should_switch(samples: Sequence[tuple[float, float]], *, window_s: float, other_s: float) -> bool:
    """Whether what is left of a transfer takes far longer than another way would in all.

    `samples` are (s since it began, share that is durable), oldest first; what is older than the window
    does not count. Nothing is said before a window is full.
    """
    if not samples:
        return False
    now_s, share = samples[-1]
    before = [sample for sample in samples if sample[0] <= now_s - window_s]
    if not before:
        return False
    then_s, was = before[-1]
    pace = (share - was) / (now_s - then_s)
    left_s = (1 - share) / pace if pace > 0 else float("inf")
    return share < 1 and left_s > PATIENCE * other_s
