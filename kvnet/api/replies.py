"""What the daemon tells of itself, its memories, its answers and its peers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
    outbox: int = 0  # memories that wait for their peers
    unsealed: int = 0  # memories that lie in clear although they should not


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
    start_pos: int = 0  # tokens before its own, which it goes on behind
    behind: str = ""  # id of the memory of those; "" where there are none, or it is not here


@dataclass(frozen=True, slots=True)
class MemoryCheck:
    """A memory beside this node's own reading of its text; a slot is one position in one layer.

    Where a share f of the slots was changed, n samples find it with 1 - (1 - f)^n; an edit below the
    tolerance is not found.
    """

    memory: str
    verdict: str  # agrees, differs, or other text: its tokens are not those of the text
    text_from: str  # kept beside it, recovered from it, or given
    slots: int
    samples: int  # slots that were compared
    agreement: float  # the share of them within the tolerance
    worst_error: float  # relative
    tolerance: float  # of the memory's coding and dtype
    seed: int
    untrusted_source: str  # as in KvReport
    seconds: float


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
    queued: str = ""  # id of the entry of the outbox that waits for the peer; "" once it is delivered
    problem: str = ""  # why it waits, or why this one of several receivers was not served; else ""
    mode: str = ""  # of kvnet.cost.Mode, where one was asked for: how it was sent
    predicted_s: float = 0.0  # and what that was estimated to take


@dataclass(frozen=True, slots=True)
class Estimate:
    """What handing a memory to a peer would take, in seconds from the offer to the receipt.

    None is a way that is closed. `split_tokens` are read at the peer from the text, the others sent.
    """

    memory: str
    peer: str
    codec: str
    tokens: int
    wire_bytes: int
    transfer_s: float
    text_s: float | None
    split_s: float | None
    split_tokens: int
    choice: str  # of kvnet.cost.Mode: what `send --mode auto` does
    why_no_text: str  # why only the transfer has a price, or ""
    link_bytes_per_s: int
    reading_tokens_per_s: int


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """A memory that waits for its peer, or that could not be delivered."""

    id: str
    peer: str  # node id
    peer_name: str
    agent: str  # of the peer
    sender_agent: str
    memory: str  # the id at home
    note: str
    codec: str
    with_text: bool
    queued_at: str
    expires_at: str
    attempts: int
    state: str  # waiting or failed
    problem: str  # why the last attempt came to nothing, or ""
    label: str = ""  # what the peer shall call it: a part of a live memory
    quiet: bool = False  # no message comes of it there


@dataclass(frozen=True, slots=True)
class ReceiptInfo:
    """A delivered transfer whose receipt is kept."""

    transfer_id: str
    memory: str  # the id at the receiver
    peer: str  # node id of the receiver
    peer_name: str  # "" of one that is no peer any more
    completed_at: str
    has_offer: bool  # then the receipt's file also proves who sent it


@dataclass(frozen=True, slots=True)
class Repaired:
    """What became of one thing in the store: `sealed`, or `set aside` and where it lies now."""

    memory: str
    done: str
    problem: str
    path: str


@dataclass(frozen=True, slots=True)
class RepairReport:
    """A store of which every digest was checked."""

    checked: int  # memories
    sections: int
    nbytes: int
    repaired: tuple[Repaired, ...]
    problems: tuple[str, ...]  # what cannot be mended here
    seconds: float


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
class KvReport:
    """What was reused: `reused_tokens` positions came from the memory, the rest was computed here."""

    tier: str
    reused_tokens: int
    recomputed_tokens: int
    fallback: str
    ttft_s: float
    codec: str  # how the memory was coded; "" without one
    map: str  # id of the map it came through, or ""; several are joined by commas, as are codecs
    untrusted_source: str = ""  # the peer, or the id of a file's signer, that it came from; "" if made here


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished reply."""

    text: str
    kv: KvReport
    tokens: int
    finish_reason: str
    seconds: float
    memory: str = ""  # with stream_to: the newest memory of what was asked and answered,
    live_problem: str = ""  # and why the peer lacks a part of it, or ""


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
    permissions: tuple[str, ...] = ()
    quota_nbytes: int | None = None
    verified: str = ""
    added_at: str = ""
    revoked_at: str = ""
    rotated_from: str = ""
    alarm: str = ""


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
