"""What the daemon tells of maps and ports, of how they were made, and of what they are good for."""

from __future__ import annotations

from dataclasses import dataclass

from kvnet.alignment import GateResult, Interval


@dataclass(frozen=True, slots=True)
class AlignmentInfo:
    """A map or a port on this node. Fields that only one of the two has are empty for the other."""

    id: str
    kind: str  # map or port
    source: str  # a name for people, as is `receiver`
    source_digest: str
    receiver: str
    receiver_digest: str
    port: str  # id of the port that a map ends in, "" if it ends in the receiver's rows
    rank: int  # coordinates of a port, or of that which a map ends in
    method: str
    pairing: str
    layer_strategy: str
    source_layers: tuple[int, ...]
    num_sinks: int
    window: tuple[int, ...]
    far_window: tuple[int, ...]  # () where there is none
    far_layers: tuple[int, ...]
    closing: str
    relative_lambda: float
    corpus_digest: str
    num_contexts: int
    num_rows: int
    created_at: str
    nbytes: int
    signed_by: str
    packaged: bool  # came with kvnet
    problem: str  # why it cannot be used, or ""
    gate: GateResult | None  # None for a port


@dataclass(frozen=True, slots=True)
class ArmReport:
    """One row of an examination: what the receiver was asked behind, and how it answered."""

    arm: str
    recall: float
    gap_recovered: Interval
    kl: float  # nats, to the answers after the text itself
    num_questions: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A map examined on facts that it was never fitted or judged on, with all controls."""

    alignment: str
    source: str
    receiver: str
    arms: tuple[ArmReport, ...]
    not_applicable: tuple[str, ...]  # arms that this pair of models has not
    seconds: float


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A training after `step` steps: KL in nats on texts that it learns from and on held-out ones, and the
    share of whole answers right on the latter.
    """

    step: int
    train_kl: float
    held_out_recall: float
    held_out_kl: float


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """How far a training is, in steps, and how it last did."""

    done: int
    total: int
    point: CurvePoint | None  # None until it was judged in this call or in one it goes on from


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training came to."""

    closed_form: str  # id of the map that was trained on
    trained: AlignmentInfo | None  # the new map; None where training did not beat the closed form
    curve: tuple[CurvePoint, ...]
    plot: str  # path of the curve's picture, "" without one
    seconds: float


@dataclass(frozen=True, slots=True)
class AlignmentExport:
    """A map or port written to a file."""

    id: str
    path: str
    nbytes: int
    signed_by: str


@dataclass(frozen=True, slots=True)
class PackagedAlignment:
    """What became of an alignment in a package: `id`, or "" and `problem` where it was not taken in."""

    path: str
    id: str
    problem: str


@dataclass(frozen=True, slots=True)
class Difference:
    """A field in which a memory's model is not the other one."""

    field: str
    memory: str
    model: str


@dataclass(frozen=True, slots=True)
class MapSummary:
    """A map that would be used, and what its gate measured."""

    id: str
    method: str
    gate: GateResult


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a memory would reach a model, why so, and what would change that."""

    memory: str
    model: str
    tier: str
    policy: str
    differences: tuple[Difference, ...]
    map: MapSummary | None
    has_text: bool
    advice: str
