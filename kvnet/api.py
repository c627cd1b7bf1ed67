"""What the daemon tells the SDK and the CLI: the twins of proto/kvnet/v1/control.proto.

Field names are what `--json` prints and what others rely on; they do not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvnet.alignment import GateResult, Interval
from kvnet.types import Fingerprint, Geometry, MemoryHeader


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A running node."""

    node_id: str
    name: str
    grpc: str
    model: str
    pid: int
    version: str
    protocol: int
    namespace: str
    fingerprint: Fingerprint
    geometry: Geometry
    max_seq_len: int
    memories: int
    store_nbytes: int
    peers: int
    unread: int
    uptime_s: float
    mdns: bool
    home: str
    damaged: int  # memories that cannot be read any more
    settings: Mapping[str, Any]  # what the daemon was told, by the names of config.toml


@dataclass(frozen=True, slots=True)
class MemoryInfo:
    """A memory in this node's store.

    `nbytes` is what its keys and values take once decoded, `stored_nbytes` what they take as they lie there.
    `tier` says how it reaches the model that is hosted now, by a map or a text if need be, or `refused`.
    """

    id: str
    name: str
    tokens: int
    layers: int
    nbytes: int
    model: str
    origin: str
    created_at: str
    header: MemoryHeader | None  # None for a damaged one
    problem: str  # why it cannot be used, or ""
    codec: str  # how it is coded: a name of kvnet.codec.presets, or a label of its parts
    stored_nbytes: int
    signed_by: str  # the node whose signature its file bears, "" for a damaged one
    tier: str  # "" for a damaged one
    needs_basis: str  # sha256:<hex> of a calibration that is not here, without which it cannot be decoded


@dataclass(frozen=True, slots=True)
class Progress:
    """Steps done so far: layers captured, texts of a fit read, arms of an examination sat."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class LayerProgress:
    """A layer is durable at the receiver."""

    layer_idx: int
    chunks_done: int
    chunks_total: int
    wire_bytes: int


@dataclass(frozen=True, slots=True)
class SendReport:
    """A finished transfer; `seconds` runs from the request to the checked receipt.

    `memory` is the id at the receiver: with a lossy codec another one than that of the memory at home.
    """

    transfer_id: str
    memory: str
    peer: str
    chunks: int
    raw_bytes: int
    wire_bytes: int
    seconds: float
    tier: str
    resumed_chunks: int
    codec: str


@dataclass(frozen=True, slots=True)
class ExportReport:
    """A memory written to a file."""

    memory: str
    path: str
    nbytes: int
    signed_by: str
    needs_basis: str  # sha256:<hex> of the calibration that decodes it, which is not in the file


@dataclass(frozen=True, slots=True)
class PackReport:
    """A package written to a folder or a zip."""

    package_id: str
    path: str
    nbytes: int
    memory: str
    quality_measured: bool


@dataclass(frozen=True, slots=True)
class Calibration:
    """A basis for the codec `compact`, learned for the hosted model."""

    model: str
    basis: str
    nbytes: int
    components: int  # of all layers, keys and values
    tokens: int
    weighted: bool  # by what the model's own predictions depend on; plain variance if not
    seconds: float


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
class KvReport:
    """What was reused: `reused_tokens` positions came from the memory, the rest was computed here."""

    tier: str
    reused_tokens: int
    recomputed_tokens: int
    fallback: str
    ttft_s: float
    codec: str  # how the memory was coded; "" without one
    map: str  # id of the map it came through, or ""; several are joined by commas, as are codecs


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished reply."""

    text: str
    kv: KvReport
    tokens: int
    finish_reason: str
    seconds: float


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


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """A node this node knows of: added by hand, seen by mDNS, or both."""

    node_id: str
    name: str
    addresses: tuple[str, ...]
    source: str
    added: bool
    reachable: bool
    model: str
    tier: str
    latency_s: float
    problem: str


@dataclass(frozen=True, slots=True)
class InboxMessage:
    """A memory that came from a peer, waiting until its agent acknowledges it."""

    id: str
    sender: str
    sender_name: str
    sender_agent: str
    agent: str
    memory: str
    note: str
    received_at: str
    acknowledged_at: str
