"""Texts read into slots: by the model here, or by one elsewhere. Knows models; no maps, no sums."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import torch

from kvnet.align.pairs import Span
from kvnet.alignment import Intake
from kvnet.errors import RequestError
from kvnet.model.cache import export_layers
from kvnet.model.generation import never, refuse_cancelled
from kvnet.model.host import ModelHost
from kvnet.model.slots import Slots, rows_of_layers
from kvnet.model.states import join_taken
from kvnet.model.text import tokenize_with_spans
from kvnet.types import Fingerprint, Geometry

MAX_HELD_NBYTES: Final = 4 << 30  # of readings that are held at once, as of the sums of a fit


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One text as a model's slots, and which characters each of them covers; the model's own first token
    is in neither. No spans if its tokenizer tells none. `states` [num_slots, hidden_size] by layer are those
    that the reader was asked for.
    """

    slots: Slots
    spans: tuple[Span, ...]
    states: Mapping[int, torch.Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of its rows and states."""
        return self.slots.rows.nbytes + sum(state.nbytes for state in self.states.values())

    def taken(self, intake: Intake) -> torch.Tensor:
        """[num_slots, intake.width]: what the model that read this would take of each slot."""
        return join_taken(intake, self.slots.rows, self.states)


class Reader(Protocol):
    """A model that reads texts for a fit, wherever it is."""

    @property
    def fingerprint(self) -> Fingerprint: ...

    @property
    def geometry(self) -> Geometry: ...

    @property
    def num_sinks(self) -> int: ...

    def read(self, texts: Iterable[str]) -> Iterator[Reading]:
        """A reading of each text, in order."""
        ...


@dataclass(frozen=True, slots=True)
class LocalReader:
    """The reader that is a model of this process; it notes the states that `intake` has."""

    host: ModelHost
    intake: Intake | None = None

    @property
    def fingerprint(self) -> Fingerprint:
        """The model's."""
        return self.host.fingerprint

    @property
    def geometry(self) -> Geometry:
        """The model's."""
        return self.host.geometry

    @property
    def num_sinks(self) -> int:
        """The model's."""
        return self.host.num_sinks

    def read(self, texts: Iterable[str]) -> Iterator[Reading]:
        """A reading of each text, in order. Raises TextTooLong, and RequestError for a text of nothing."""
        for text in texts:
            yield self._read(text)

    def _read(self, text: str) -> Reading:
        if not text.strip():
            raise RequestError(
                "the text is empty; give one that holds a word or more"
            )  # as a peer refuses it
        token_ids, spans = tokenize_with_spans(self.host.tokenizer, text)
        cache = self.host.new_cache()
        with self.host.recording_states(self.intake or Intake(self.geometry)) as states:
            self.host.prefill(token_ids, cache, token_block=len(token_ids))
        num_sinks = self.num_sinks
        positions = torch.arange(num_sinks, len(token_ids))
        rows = rows_of_layers(export_layers(cache), self.geometry, positions, seq_len=len(token_ids))
        slots = Slots(self.geometry, rows, positions - num_sinks, len(token_ids) - num_sinks)
        return Reading(
            slots, spans[num_sinks:], {layer: state[num_sinks:] for layer, state in states.items()}
        )


def hold(
    readings: Iterable[Reading],
    *,
    progress: Callable[[int], None] = lambda done: None,
    cancelled: Callable[[], bool] = never,
) -> tuple[Reading, ...]:
    """All of the readings, for work that comes back to them; `progress` is told how many are here.

    Raises RequestError where they would take more than MAX_HELD_NBYTES, Cancelled, and as their reader.
    """
    held: list[Reading] = []
    nbytes = 0
    for reading in readings:
        refuse_cancelled(cancelled)
        nbytes += reading.nbytes
        refuse_too_large(nbytes)
        held.append(reading)
        progress(len(held))
    return tuple(held)


def refuse_too_large(nbytes: int) -> None:
    """Raise RequestError for more bytes than may be held of what is read."""
    if nbytes > MAX_HELD_NBYTES:
        raise RequestError(
            f"what was read takes {nbytes} bytes, at most {MAX_HELD_NBYTES} are held; "
            "ask fewer questions, or give fewer or shorter texts"
        )
