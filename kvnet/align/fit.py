"""The fit of a map: two models read the same texts, and sums of what they hold are solved for the map.

Nothing but the sums is kept of the texts behind the first few, so a fit can be left and taken up again, and
the source may be anywhere. Knows models and readers; no daemons, no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import torch

from kvnet.align.anchors import PAID_ABOVE, attention_paid, with_followers
from kvnet.align.corpus import Lesson
from kvnet.align.fit_state import FitPlan, FitState
from kvnet.align.moments import MomentPair, Moments
from kvnet.align.pairs import pair_slots
from kvnet.align.port import Port
from kvnet.align.reading import LocalReader, Reader, Reading, refuse_too_large
from kvnet.align.solve import (
    Block,
    LinearMap,
    Solver,
    choose_solver,
    head_blocks,
    solve_by_rows,
    solve_ridge,
    widest,
)
from kvnet.align.window import shape_of, stack_windows
from kvnet.alignment import Pairing, windows_width
from kvnet.errors import IncompatibleModel, TooFewSamples
from kvnet.model.generation import never, refuse_cancelled
from kvnet.model.host import ModelHost

LAMBDAS: Final = (1e-9, 1e-7, 1e-5, 1e-3)
_ANCHOR_LAMBDA: Final = 1e-5
_SENT_ABOVE: Final = 0.5
_HELD_OUT_EVERY: Final = 10
LEAST_LESSONS: Final = 16

Progress = Callable[[int, int], None]  # lessons done, and of how many


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A fit in progress between a source and the model here."""

    reader: Reader
    host: ModelHost
    port: Port
    plan: FitPlan
    state: FitState = field(repr=False)

    @classmethod
    def begin(
        cls, reader: Reader, host: ModelHost, port: Port, plan: FitPlan, state: FitState | None = None
    ) -> Fit:
        """A new fit, or one that goes on from `state`. Raises RequestError for sums that are too large."""
        if state is None:
            width = windows_width(
                reader.geometry, plan.source_layers, plan.window, plan.far_layers, plan.far_window
            )
            state = FitState(MomentPair.empty(width, port.rank, _HELD_OUT_EVERY))
        return cls(reader, host, port, plan, state)

    def run(
        self,
        lessons: Sequence[Lesson],
        *,
        progress: Progress = lambda done, total: None,
        saved: Callable[[FitState], None] = lambda state: None,
        cancelled: Callable[[], bool] = never,
    ) -> None:
        """Read the lessons that are not read yet; `saved` is called now and then with what to resume from.

        `progress` is told as each is read. Raises TooFewSamples, UnalignableTokens, NotFinite, Cancelled,
        RequestError for more than may be held, and what the reader raises.
        """
        if len(lessons) < LEAST_LESSONS:
            raise TooFewSamples(f"{len(lessons)} texts to fit a map on, at least {LEAST_LESSONS}; give more")
        pairs = self._read(lessons, progress, cancelled)
        if self.plan.critical_layers is not None and self.state.anchor is None:
            self._learn_anchors(pairs, lessons, saved, cancelled)
        for source, own in pairs:
            self._add(source, own)
            if self.state.num_done % LEAST_LESSONS == 0 or self.state.num_done == len(lessons):
                saved(self.state)

    def solve(self, relative_lambda: float) -> LinearMap:
        """The map of one lambda. Raises SingularStatistics."""
        return solve_ridge(self.state.sums.fit, relative_lambda)

    def candidates(self, relative_lambdas: Sequence[float] = LAMBDAS) -> Iterator[tuple[float, LinearMap]]:
        """The maps that so many rows allow for, as `solve_by_rows` does, which raises what this does."""
        return solve_by_rows(self.state.sums.fit, relative_lambdas, self._blocks())

    @property
    def solver(self) -> Solver:
        """How `candidates` are solved for. Raises TooFewSamples."""
        sums = self.state.sums.fit
        return choose_solver(sums.num_rows, widest(self._blocks()) or sums.width_x)

    def _blocks(self) -> tuple[Block, ...]:
        """What each part of the receiver's rows is predicted from; () where that is everything."""
        if not self.plan.head_local:
            return ()
        source, plan = self.reader.geometry, self.plan
        return head_blocks(
            shape_of(source, len(plan.source_layers)),
            shape_of(self.host.geometry),
            _num_offsets(plan.window),
            shape_of(source, len(plan.far_layers)) if plan.far_window else None,
            _num_offsets(plan.far_window) if plan.far_window else 0,
        )

    def _read(
        self, lessons: Sequence[Lesson], progress: Progress, cancelled: Callable[[], bool]
    ) -> Iterator[tuple[Reading, Reading]]:
        """Each text that is not read yet, as the source holds it and as the model here does."""
        done = self.state.num_done
        texts = [lesson.text + self.plan.closing for lesson in lessons[done:]]
        own = LocalReader(self.host, self.port.intake).read(texts)
        for pair in zip(self.reader.read(texts), own, strict=True):
            refuse_cancelled(cancelled)
            done += 1
            progress(done, len(lessons))
            yield pair

    def _learn_anchors(
        self,
        pairs: Iterator[tuple[Reading, Reading]],
        lessons: Sequence[Lesson],
        saved: Callable[[FitState], None],
        cancelled: Callable[[], bool],
    ) -> None:
        """Learn from the first lessons which slots are read, then add their rows; saved after each."""
        kept = self._label(islice(pairs, self.plan.num_labelled), lessons)
        saved(self.state)
        for source, own in kept:
            refuse_cancelled(cancelled)
            self._add(source, own)
        saved(self.state)

    def _label(
        self, pairs: Iterable[tuple[Reading, Reading]], lessons: Sequence[Lesson]
    ) -> list[tuple[Reading, Reading]]:
        """Learn what tells from the source's windows which slots answers read here: 1 for those, else 0.

        A lesson is labelled as it comes, while its source reads the next one. Returns the pairs. Raises
        RequestError for more than may be held.
        """
        plan = self.plan
        labels: Moments | None = None
        kept: list[tuple[Reading, Reading]] = []
        nbytes = 0
        for (source, own), lesson in zip(pairs, lessons, strict=False):
            nbytes += source.nbytes + own.nbytes
            refuse_too_large(nbytes)
            kept.append((source, own))
            paid = attention_paid(self.host, lesson, own, plan.critical_layers or ())
            source_idx, own_idx = pair_readings(source, own, same_tokens=self._same_tokens)
            x = self._features(source, source_idx)
            labels = labels or Moments(x.shape[1], 1)
            read = with_followers(paid > PAID_ABOVE, plan.num_followers)
            labels.add(x, read[own_idx].float()[:, None])
        if labels is None:
            raise TooFewSamples("no text to learn from which slots are read; give more")
        self.state.anchor = solve_ridge(labels, _ANCHOR_LAMBDA)
        return kept

    def _rows(self, source: Reading, own: Reading) -> tuple[torch.Tensor, torch.Tensor]:
        """(what is seen of the source, coordinates here) of all slots, or of those that will be sent."""
        source_idx, own_idx = pair_readings(source, own, same_tokens=self._same_tokens)
        x = self._features(source, source_idx)
        if self.state.anchor is not None:
            sent = ~(self.state.anchor.apply(x)[:, 0] <= _SENT_ABOVE)  # NaN is sent, for the sums to refuse
            x, own_idx = x[sent], own_idx[sent]
        return x, self.port.to_coordinates(own.taken(self.port.intake)[own_idx])

    def _add(self, source: Reading, own: Reading) -> None:
        """Add one lesson's rows to the sums."""
        x, z = self._rows(source, own)
        if len(x):
            self.state.sums.add(self.state.num_done, x, z)
        self.state.num_rows += len(x)
        self.state.num_done += 1

    @property
    def _same_tokens(self) -> bool:
        return pairing_of(self.reader, self.host) is Pairing.TOKENS

    def _features(self, source: Reading, at: torch.Tensor) -> torch.Tensor:
        rows, num_layers, plan = source.slots.rows, self.reader.geometry.num_layers, self.plan
        return stack_windows(
            rows, num_layers, plan.source_layers, plan.window, plan.far_layers, plan.far_window, at
        )


def _num_offsets(window: tuple[int, int]) -> int:
    low, high = window
    return high - low + 1


def pairing_of(reader: Reader, host: ModelHost) -> Pairing:
    """How slots of the two are paired: one by one if they have one tokenizer."""
    same = reader.fingerprint.tokenizer_digest == host.fingerprint.tokenizer_digest
    return Pairing.TOKENS if same else Pairing.SPANS


def pair_readings(
    source: Reading, own: Reading, *, same_tokens: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(source slots, own slots), int64 [m] each: for a source slot the one that covers its last character.

    With `same_tokens` the two have one tokenizer: slots pair one by one even if it tells no characters.
    Raises UnalignableTokens, and IncompatibleModel for a source whose tokenizer tells no characters.
    """
    told = same_tokens or bool(source.spans)
    if told and source.slots.span == own.slots.span and source.spans == own.spans:
        every = torch.arange(source.slots.num_slots)
        return every, every
    if not source.spans or not own.spans:
        raise IncompatibleModel(
            "the two tokenizers differ and one of them does not tell which characters a token covers; "
            "host a model with a fast tokenizer"
        )
    own_idx, source_idx, _ = pair_slots(own.spans, source.spans)
    return source_idx, own_idx
