"""The nouns of alignment as frozen values: what maps and ports say of themselves. Knows no tensors, no files.

A map turns rows of one model (the source) into rows of another (the receiver). A port is the small basis in
which a receiver takes rows: a source's map ends in its coordinates. Source: DESIGN, Words; FORMAT.md §10.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from kvnet.types import Fingerprint, Geometry, base32, canonical_json, to_plain

MapId = NewType("MapId", str)  # "map_" + base32 of a SHA-256, lower case
PortId = NewType("PortId", str)  # "port_" + base32 of a SHA-256, lower case


class AlignmentKind(StrEnum):
    """What an artefact is; also the start of its id."""

    MAP = "map"
    PORT = "port"


class Method(StrEnum):
    """How a map came to be."""

    RIDGE = "ridge"
    LOW_RANK = "low_rank"  # a ridge of few directions: from few rows
    PROCRUSTES = "procrustes"  # an orthogonal map: from fewer still
    TRAINED = "trained"  # one of these with a residual trained on top


class LayerStrategy(StrEnum):
    """Which source layers a receiver's layer is predicted from."""

    LINEAR = "linear"  # those at the same relative depth
    LEARNED = "learned"  # those with the least held-out error
    SKIP = "skip"  # the same index, and none beyond the shorter model


class Pairing(StrEnum):
    """How slots of the two models were paired while the map was fitted."""

    TOKENS = "tokens"  # one tokenizer: slot for slot
    SPANS = "spans"  # two tokenizers: by the last character a slot covers


class Use(StrEnum):
    """What a map may be used for beside what its gate judges first, each judged on its own.

    First come memories with the map's closing read behind them, in coordinates of 8 bits where there are any.
    """

    PORT4 = "port4"  # in coordinates of 4 bits
    UNCLOSED = "unclosed"  # memories without the closing, of numbers in halves
    UNCLOSED_PORT4 = "unclosed+port4"


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured share or gap, and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class UseResult:
    """What the same held-out facts said of a map in one more use."""

    use: Use
    admitted: bool
    recall_mapped: float
    gap_recovered: Interval
    kl: float


@dataclass(frozen=True, slots=True)
class GateResult:
    """What held-out facts said of a map. Shares are 0 to 1, `kl` is in nats."""

    admitted: bool
    reason: str  # one sentence
    num_questions: int
    num_texts: int  # that the questions are about
    recall_text: float
    recall_none: float
    recall_mapped: float
    gap_recovered: Interval
    gap_shuffled: float  # the same of memories of other texts: a control, near 0
    kl: float
    kl_shuffled: float  # of memories of other texts
    attention_cosine: float
    uses: tuple[UseResult, ...]  # those that the map has, in their order in Use


@dataclass(frozen=True, slots=True)
class PortManifest:
    """What a port says of itself; `id` covers all of it, and `tensors_digest` every number."""

    receiver: Fingerprint
    geometry: Geometry
    state_layers: tuple[int, ...]  # ascending: layers whose coordinates stand for a state (Intake)
    hidden_size: int  # of a state; 0 where there are none
    rank: int
    corpus_digest: str
    num_rows: int
    created_at: str  # YYYY-MM-DDThh:mm:ssZ
    tensors_digest: str  # sha256:<hex> of the tensor bytes

    @property
    def id(self) -> PortId:
        """The port's name, from its contents."""
        return PortId(_name(self))


@dataclass(frozen=True, slots=True)
class MapManifest:
    """What a map says of itself; `id` covers all of it, and `tensors_digest` every number."""

    source: Fingerprint
    source_geometry: Geometry
    receiver: Fingerprint
    receiver_geometry: Geometry
    port: str  # id of the port whose coordinates the map ends in; "" if it ends in what the receiver takes
    state_layers: tuple[int, ...]  # as a port's, and () for a map that ends in one
    hidden_size: int
    method: Method
    pairing: Pairing
    layer_strategy: LayerStrategy
    source_layers: tuple[int, ...]
    num_sinks: int  # first slots of a source's memory (its BOS) that no map touches
    window: tuple[int, int]  # offsets of the neighbouring slots a row is predicted from, both inclusive
    far_window: tuple[int, int] | None  # offsets of slots further away, of which far_layers alone are seen
    far_layers: tuple[int, ...]  # ascending; () where there is no far window, and only there
    closing: str  # text the source reads after a memory's own, so that its last fact is bound
    relative_lambda: float
    corpus_digest: str
    num_contexts: int
    num_rows: int
    created_at: str  # YYYY-MM-DDThh:mm:ssZ
    tensors_digest: str
    gate: GateResult

    @property
    def id(self) -> MapId:
        """The map's name, from its contents."""
        return MapId(_name(self))


Manifest = PortManifest | MapManifest


def kind_of(manifest: Manifest) -> AlignmentKind:
    """Whether a manifest is that of a map or of a port."""
    return AlignmentKind.MAP if isinstance(manifest, MapManifest) else AlignmentKind.PORT


def uses_of(manifest: MapManifest) -> tuple[Use, ...]:
    """The uses that a map has: 4 bits where it ends in a port, unclosed ones where it has a closing."""
    has = {
        Use.PORT4: bool(manifest.port),
        Use.UNCLOSED: bool(manifest.closing),
        Use.UNCLOSED_PORT4: bool(manifest.port and manifest.closing),
    }
    return tuple(use for use in Use if has[use])


def admits(manifest: MapManifest, *, closed: bool, bits: int = 8) -> bool:
    """Whether the gate admitted a map in this use.

    `closed`: its closing was read behind the memory. `bits` are those of a coordinate; what is not quantised
    at all loses less than 8 bits do.
    """
    unclosed = Use.UNCLOSED if bits == 8 else Use.UNCLOSED_PORT4
    closed_use = None if bits == 8 else Use.PORT4
    use = closed_use if closed or not manifest.closing else unclosed
    gate = manifest.gate
    return gate.admitted and (use is None or any(one.use is use and one.admitted for one in gate.uses))


def row_width(geometry: Geometry) -> int:
    """Numbers in a row: one slot's keys and values, all layers."""
    return geometry.num_layers * 2 * geometry.num_kv_heads * geometry.head_dim


@dataclass(frozen=True, slots=True)
class Intake:
    """What a model takes of a slot that others made for it, layer by layer (FORMAT.md §10.1).

    Of most layers that is their keys and values. Of `state_layers`, none of which is the first, it is the
    residual stream [hidden_size] as the attention of the layer below has left it: the model's own weights
    make keys and values of it. `hidden_size` is 0 where there are none.
    """

    geometry: Geometry
    state_layers: tuple[int, ...] = ()
    hidden_size: int = 0

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers that each layer takes."""
        num_layers = self.geometry.num_layers
        halves = row_width(self.geometry) // num_layers
        return tuple(self.hidden_size if i in self.state_layers else halves for i in range(num_layers))

    @property
    def width(self) -> int:
        """Numbers in what is taken of one slot: those of all layers in turn."""
        return sum(self.widths)


def intake_of(manifest: Manifest) -> Intake:
    """What coordinates of a port stand for, or what a map that ends in no port makes."""
    geometry = manifest.receiver_geometry if isinstance(manifest, MapManifest) else manifest.geometry
    return Intake(geometry, manifest.state_layers, manifest.hidden_size)


def feature_width(manifest: MapManifest) -> int:
    """Numbers that a map predicts from: those of its windows, near and far."""
    return windows_width(
        manifest.source_geometry,
        manifest.source_layers,
        manifest.window,
        manifest.far_layers,
        manifest.far_window,
    )


def windows_width(
    geometry: Geometry,
    layers: tuple[int, ...],
    window: tuple[int, int],
    far_layers: tuple[int, ...],
    far_window: tuple[int, int] | None,
) -> int:
    """Numbers in a slot's windows: keys and values of `layers` at near offsets, of `far_layers` at far."""
    low, high = window
    num_seen = (high - low + 1) * len(layers)
    if far_window is not None:
        far_low, far_high = far_window
        num_seen += (far_high - far_low + 1) * len(far_layers)
    return num_seen * 2 * geometry.num_kv_heads * geometry.head_dim


def _name(manifest: Manifest) -> str:
    kind = kind_of(manifest)
    data = f"kvnet/{kind}/v1\0".encode() + canonical_json(to_plain(manifest))
    return f"{kind}_{base32(hashlib.sha256(data).digest())}"
