"""The fit of a map: two models read the same texts, and sums of what they hold are solved for the map.

Nothing but the sums is kept of the texts behind the first few, so a fit can be left and taken up again, and
the source may be anywhere. Knows models and readers; no daemons, no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Final

import torch

from kvnet.align.anchors import attention_paid, sensitivity
from kvnet.align.corpus import Lesson
from kvnet.align.moments import MomentPair, Moments
from kvnet.align.pairs import pair_slots
from kvnet.align.port import Port, learn_port
from kvnet.align.quadratic import lift_of, num_products, products_of
from kvnet.align.reading import LocalReader, Reader, Reading, hold, refuse_too_large
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
from kvnet.errors import IncompatibleModel, StateCorrupt, TooFewSamples
from kvnet.model.generation import never, refuse_cancelled
from kvnet.model.host import ModelHost

LAMBDAS: Final = (1e-9, 1e-7, 1e-5, 1e-3)
PAID_ABOVE: Final = 0.3  # attention from which on a slot counts as read
_ANCHOR_LAMBDA: Final = 1e-5
_GUESS_LAMBDA: Final = 1e-5
_SENT_ABOVE: Final = 0.5
_HELD_OUT_EVERY: Final = 10
_LEAST_LESSONS: Final = 16

Progress = Callable[[int, int], None]  # lessons done, and of how many


@dataclass(frozen=True, slots=True)
class FitPlan:
    """What is fitted: from which source layers, which neighbours, and where."""

    source_layers: tuple[int, ...]
    window: tuple[int, int]
    critical_layers: tuple[int, ...] | None = None  # where attention finds anchors; None maps every slot
    num_labelled: int = 200  # lessons that anchors are learned from
    closing: str = ""
    far_window: tuple[int, int] | None = None  # slots further away, of which far_layers alone are seen
    far_layers: tuple[int, ...] = ()
    num_directions: int = 0  # of a first guess, whose products are predicted from as well; 0: a linear map
    num_guessed: int = 400  # lessons that the first guess is made from
    head_local: bool = False  # predict a head from its namesake's numbers alone, where both have as many


@dataclass(slots=True)
class FitState:
    """All that a fit keeps: how far it is, the sums, and once known the anchors and the first guess."""

    sums: MomentPair
    num_done: int = 0
    num_rows: int = 0
    anchor: LinearMap | None = None
    lift: LinearMap | None = None

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """What a later run resumes from, to be saved before the next lesson."""
        tensors = self.sums.to_tensors() | {"progress": torch.tensor([self.num_done, self.num_rows])}
        for name, found in (("anchor", self.anchor), ("lift", self.lift)):
            if found is not None:
                tensors |= {f"{name}.weight": found.weight, f"{name}.bias": found.bias}
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> FitState:
        """Inverse of `to_tensors`. Raises StateCorrupt for sums that are none."""
        rest = dict(tensors)
        try:
            num_done, num_rows = rest.pop("progress").tolist()
            anchor, lift = (
                LinearMap(rest.pop(f"{name}.weight"), rest.pop(f"{name}.bias"))
                if f"{name}.weight" in rest
                else None
                for name in ("anchor", "lift")
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise StateCorrupt(f"a saved fit cannot be read ({exc}); start the fit again") from exc
        return cls(MomentPair.from_tensors(rest), num_done, num_rows, anchor, lift)


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
            width += num_products(plan.num_directions)
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
        if len(lessons) < _LEAST_LESSONS:
            raise TooFewSamples(f"{len(lessons)} texts to fit a map on, at least {_LEAST_LESSONS}; give more")
        pairs = self._read(lessons, progress, cancelled)
        if self.state.num_done == 0:
            self._learn_first(pairs, lessons, saved, cancelled)
            saved(self.state)
        for source, own in pairs:
            self._add(*self._rows(source, own))
            if self.state.num_done % _LEAST_LESSONS == 0 or self.state.num_done == len(lessons):
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
        own = LocalReader(self.host).read(texts)
        for pair in zip(self.reader.read(texts), own, strict=True):
            refuse_cancelled(cancelled)
            done += 1
            progress(done, len(lessons))
            yield pair

    def _learn_first(
        self,
        pairs: Iterator[tuple[Reading, Reading]],
        lessons: Sequence[Lesson],
        saved: Callable[[FitState], None],
        cancelled: Callable[[], bool],
    ) -> None:
        """Learn from the first lessons which slots are read and what to guess, then add their rows.

        Each of the two is saved once it is learned: on the way from an earlier call, it is there.
        """
        plan, state = self.plan, self.state
        kept: list[tuple[Reading, Reading]] = []
        num_labelled = 0 if plan.critical_layers is None else plan.num_labelled
        if num_labelled and state.anchor is None:
            kept = self._label(islice(pairs, num_labelled), lessons)
            saved(state)
        num_more = max(num_labelled, plan.num_guessed) - len(kept)
        if not plan.num_directions or state.lift is not None:
            num_more = 0
        rows = self._rows_of(chain(kept, islice(pairs, num_more)), cancelled)
        if plan.num_directions and state.lift is None:
            state.lift = self._fit_guess(rows)
            saved(state)
        for x, z in rows:
            refuse_cancelled(cancelled)
            self._add(x, z)

    def _label(
        self, pairs: Iterable[tuple[Reading, Reading]], lessons: Sequence[Lesson]
    ) -> list[tuple[Reading, Reading]]:
        """Learn what tells from the source's windows which slots answers read here: 1 for those, else 0.

        A lesson is labelled as it comes, while its source reads the next one. Returns the pairs. Raises
        RequestError for more than may be held.
        """
        labels: Moments | None = None
        kept: list[tuple[Reading, Reading]] = []
        nbytes = 0
        for (source, own), lesson in zip(pairs, lessons, strict=False):
            nbytes += source.slots.rows.nbytes + own.slots.rows.nbytes
            refuse_too_large(nbytes)
            kept.append((source, own))
            paid = attention_paid(self.host, lesson, own, self.plan.critical_layers or ())
            source_idx, own_idx = pair_readings(source, own, same_tokens=self._same_tokens)
            x = self._features(source, source_idx)
            labels = labels or Moments(x.shape[1], 1)
            labels.add(x, (paid[own_idx] > PAID_ABOVE).float()[:, None])
        if labels is None:
            raise TooFewSamples("no text to learn from which slots are read; give more")
        self.state.anchor = solve_ridge(labels, _ANCHOR_LAMBDA)
        return kept

    def _rows_of(
        self, pairs: Iterable[tuple[Reading, Reading]], cancelled: Callable[[], bool]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The rows of each pair. Raises RequestError for more than may be held."""
        rows, nbytes = [], 0
        for source, own in pairs:
            refuse_cancelled(cancelled)
            rows.append(self._rows(source, own))
            nbytes += sum(part.nbytes for part in rows[-1])
            refuse_too_large(nbytes)
        return rows

    def _fit_guess(self, rows: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> LinearMap:
        """The strongest coordinates as a linear map sees them, scaled to unit variance."""
        x, z = (torch.cat(parts) for parts in zip(*rows, strict=True))
        sums = Moments(x.shape[1], z.shape[1])
        sums.add(x, z)
        return lift_of(solve_ridge(sums, _GUESS_LAMBDA), x, self.plan.num_directions)

    def _rows(self, source: Reading, own: Reading) -> tuple[torch.Tensor, torch.Tensor]:
        """(what is seen of the source, coordinates here) of all slots, or of those that will be sent."""
        source_idx, own_idx = pair_readings(source, own, same_tokens=self._same_tokens)
        x = self._features(source, source_idx)
        if self.state.anchor is not None:
            sent = ~(self.state.anchor.apply(x)[:, 0] <= _SENT_ABOVE)  # NaN is sent, for the sums to refuse
            x, own_idx = x[sent], own_idx[sent]
        return x, self.port.to_coordinates(own.slots.rows[own_idx])

    def _add(self, x: torch.Tensor, z: torch.Tensor) -> None:
        """Add one lesson's rows to the sums."""
        if self.state.lift is not None:
            x = torch.cat([x, products_of(self.state.lift.apply(x).float())], 1)
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


def learn_port_of(
    host: ModelHost,
    lessons: Sequence[Lesson],
    critical_layers: tuple[int, ...] | None,
    rank: int,
    *,
    closing: str = "",
    cancelled: Callable[[], bool] = never,
) -> tuple[Port, int]:
    """A model's port from its own reading of the lessons, and from how many rows.

    With `critical_layers` only slots that answers read count. Raises TooFewSamples.
    """
    texts = [lesson.text + closing for lesson in lessons]
    readings = hold(LocalReader(host).read(texts), cancelled=cancelled)
    spread = torch.cat([reading.slots.rows for reading in readings]).std(0)
    generator = torch.Generator().manual_seed(0)
    rows, gradients = [], []
    for lesson, reading in zip(lessons, readings, strict=True):
        refuse_cancelled(cancelled)
        read = torch.ones(reading.slots.num_slots, dtype=torch.bool)
        if critical_layers is not None:
            read = attention_paid(host, lesson, reading, critical_layers) > PAID_ABOVE
        rows.append(reading.slots.rows[read])
        found = sensitivity(host, lesson, reading, spread, generator)[:, read]  # [questions, n, W]
        gradients.append(found.flatten(0, 1))
    every = torch.cat(rows)
    return learn_port(every, _strongest(torch.cat(gradients)), rank), len(every)


def _strongest(gradients: torch.Tensor) -> torch.Tensor:
    """Rows of [m, W] that are not nothing: most answers ignore most slots."""
    size = gradients.square().sum(1)
    return gradients[size.argsort(descending=True)[: max(1, len(size) // 4)]]
