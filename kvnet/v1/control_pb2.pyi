from kvnet.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NodeStatus(_message.Message):
    __slots__ = ("node_id", "name", "grpc", "model", "pid", "version", "protocol", "namespace", "fingerprint", "geometry", "max_seq_len", "memories", "store_nbytes", "peers", "unread", "uptime_s", "mdns", "home", "damaged", "settings_json", "outbox", "unsealed")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    GRPC_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    GEOMETRY_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQ_LEN_FIELD_NUMBER: _ClassVar[int]
    MEMORIES_FIELD_NUMBER: _ClassVar[int]
    STORE_NBYTES_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    UNREAD_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    MDNS_FIELD_NUMBER: _ClassVar[int]
    HOME_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_JSON_FIELD_NUMBER: _ClassVar[int]
    OUTBOX_FIELD_NUMBER: _ClassVar[int]
    UNSEALED_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    name: str
    grpc: str
    model: str
    pid: int
    version: str
    protocol: int
    namespace: str
    fingerprint: _types_pb2.Fingerprint
    geometry: _types_pb2.Geometry
    max_seq_len: int
    memories: int
    store_nbytes: int
    peers: int
    unread: int
    uptime_s: float
    mdns: bool
    home: str
    damaged: int
    settings_json: str
    outbox: int
    unsealed: int
    def __init__(self, node_id: _Optional[str] = ..., name: _Optional[str] = ..., grpc: _Optional[str] = ..., model: _Optional[str] = ..., pid: _Optional[int] = ..., version: _Optional[str] = ..., protocol: _Optional[int] = ..., namespace: _Optional[str] = ..., fingerprint: _Optional[_Union[_types_pb2.Fingerprint, _Mapping]] = ..., geometry: _Optional[_Union[_types_pb2.Geometry, _Mapping]] = ..., max_seq_len: _Optional[int] = ..., memories: _Optional[int] = ..., store_nbytes: _Optional[int] = ..., peers: _Optional[int] = ..., unread: _Optional[int] = ..., uptime_s: _Optional[float] = ..., mdns: _Optional[bool] = ..., home: _Optional[str] = ..., damaged: _Optional[int] = ..., settings_json: _Optional[str] = ..., outbox: _Optional[int] = ..., unsealed: _Optional[int] = ...) -> None: ...

class ShutdownRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ShutdownReply(_message.Message):
    __slots__ = ("pid",)
    PID_FIELD_NUMBER: _ClassVar[int]
    pid: int
    def __init__(self, pid: _Optional[int] = ...) -> None: ...

class RememberRequest(_message.Message):
    __slots__ = ("text", "name", "codec", "dtype", "compression", "level", "attention", "prune", "domain", "topic", "language", "keep_text", "after")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    PRUNE_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    KEEP_TEXT_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    text: str
    name: str
    codec: str
    dtype: str
    compression: str
    level: int
    attention: bool
    prune: bool
    domain: str
    topic: str
    language: str
    keep_text: bool
    after: str
    def __init__(self, text: _Optional[str] = ..., name: _Optional[str] = ..., codec: _Optional[str] = ..., dtype: _Optional[str] = ..., compression: _Optional[str] = ..., level: _Optional[int] = ..., attention: _Optional[bool] = ..., prune: _Optional[bool] = ..., domain: _Optional[str] = ..., topic: _Optional[str] = ..., language: _Optional[str] = ..., keep_text: _Optional[bool] = ..., after: _Optional[str] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("done", "total")
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    done: int
    total: int
    def __init__(self, done: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class RememberEvent(_message.Message):
    __slots__ = ("progress", "memory")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    memory: MemoryInfo
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., memory: _Optional[_Union[MemoryInfo, _Mapping]] = ...) -> None: ...

class MemoryInfo(_message.Message):
    __slots__ = ("id", "name", "tokens", "layers", "nbytes", "model", "origin", "created_at", "header", "problem", "codec", "stored_nbytes", "signed_by", "tier", "needs_basis", "start_pos", "behind")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    STORED_NBYTES_FIELD_NUMBER: _ClassVar[int]
    SIGNED_BY_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    NEEDS_BASIS_FIELD_NUMBER: _ClassVar[int]
    START_POS_FIELD_NUMBER: _ClassVar[int]
    BEHIND_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    tokens: int
    layers: int
    nbytes: int
    model: str
    origin: str
    created_at: str
    header: _types_pb2.MemoryHeader
    problem: str
    codec: str
    stored_nbytes: int
    signed_by: str
    tier: str
    needs_basis: str
    start_pos: int
    behind: str
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., tokens: _Optional[int] = ..., layers: _Optional[int] = ..., nbytes: _Optional[int] = ..., model: _Optional[str] = ..., origin: _Optional[str] = ..., created_at: _Optional[str] = ..., header: _Optional[_Union[_types_pb2.MemoryHeader, _Mapping]] = ..., problem: _Optional[str] = ..., codec: _Optional[str] = ..., stored_nbytes: _Optional[int] = ..., signed_by: _Optional[str] = ..., tier: _Optional[str] = ..., needs_basis: _Optional[str] = ..., start_pos: _Optional[int] = ..., behind: _Optional[str] = ...) -> None: ...

class ListMemoriesRequest(_message.Message):
    __slots__ = ("all",)
    ALL_FIELD_NUMBER: _ClassVar[int]
    all: bool
    def __init__(self, all: _Optional[bool] = ...) -> None: ...

class MemoryList(_message.Message):
    __slots__ = ("memories",)
    MEMORIES_FIELD_NUMBER: _ClassVar[int]
    memories: _containers.RepeatedCompositeFieldContainer[MemoryInfo]
    def __init__(self, memories: _Optional[_Iterable[_Union[MemoryInfo, _Mapping]]] = ...) -> None: ...

class ShowMemoryRequest(_message.Message):
    __slots__ = ("memory",)
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    memory: str
    def __init__(self, memory: _Optional[str] = ...) -> None: ...

class ForgetRequest(_message.Message):
    __slots__ = ("memory",)
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    memory: str
    def __init__(self, memory: _Optional[str] = ...) -> None: ...

class CheckMemoryRequest(_message.Message):
    __slots__ = ("memory", "text", "samples", "seed")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    memory: str
    text: str
    samples: int
    seed: int
    def __init__(self, memory: _Optional[str] = ..., text: _Optional[str] = ..., samples: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class MemoryCheck(_message.Message):
    __slots__ = ("memory", "verdict", "text_from", "slots", "samples", "agreement", "worst_error", "tolerance", "seed", "untrusted_source", "seconds")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FROM_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    WORST_ERROR_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    UNTRUSTED_SOURCE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    memory: str
    verdict: str
    text_from: str
    slots: int
    samples: int
    agreement: float
    worst_error: float
    tolerance: float
    seed: int
    untrusted_source: str
    seconds: float
    def __init__(self, memory: _Optional[str] = ..., verdict: _Optional[str] = ..., text_from: _Optional[str] = ..., slots: _Optional[int] = ..., samples: _Optional[int] = ..., agreement: _Optional[float] = ..., worst_error: _Optional[float] = ..., tolerance: _Optional[float] = ..., seed: _Optional[int] = ..., untrusted_source: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class ExportRequest(_message.Message):
    __slots__ = ("memory", "basis", "codec")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    BASIS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    memory: str
    basis: bool
    codec: str
    def __init__(self, memory: _Optional[str] = ..., basis: _Optional[bool] = ..., codec: _Optional[str] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class ImportPiece(_message.Message):
    __slots__ = ("basis", "memory")
    BASIS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    basis: bytes
    memory: bytes
    def __init__(self, basis: _Optional[bytes] = ..., memory: _Optional[bytes] = ...) -> None: ...

class LineageRequest(_message.Message):
    __slots__ = ("memory", "quality")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    memory: str
    quality: bool
    def __init__(self, memory: _Optional[str] = ..., quality: _Optional[bool] = ...) -> None: ...

class SourceInput(_message.Message):
    __slots__ = ("type", "description", "hash", "token_count")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    type: str
    description: str
    hash: str
    token_count: int
    def __init__(self, type: _Optional[str] = ..., description: _Optional[str] = ..., hash: _Optional[str] = ..., token_count: _Optional[int] = ...) -> None: ...

class ProcessingStep(_message.Message):
    __slots__ = ("step", "timestamp", "model", "model_hash", "duration_s", "details_json")
    STEP_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    DURATION_S_FIELD_NUMBER: _ClassVar[int]
    DETAILS_JSON_FIELD_NUMBER: _ClassVar[int]
    step: str
    timestamp: str
    model: str
    model_hash: str
    duration_s: float
    details_json: str
    def __init__(self, step: _Optional[str] = ..., timestamp: _Optional[str] = ..., model: _Optional[str] = ..., model_hash: _Optional[str] = ..., duration_s: _Optional[float] = ..., details_json: _Optional[str] = ...) -> None: ...

class Measurement(_message.Message):
    __slots__ = ("kl", "top1", "tokens_checked", "against", "probe", "measured_at", "measured_by")
    KL_FIELD_NUMBER: _ClassVar[int]
    TOP1_FIELD_NUMBER: _ClassVar[int]
    TOKENS_CHECKED_FIELD_NUMBER: _ClassVar[int]
    AGAINST_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    MEASURED_AT_FIELD_NUMBER: _ClassVar[int]
    MEASURED_BY_FIELD_NUMBER: _ClassVar[int]
    kl: float
    top1: float
    tokens_checked: int
    against: str
    probe: str
    measured_at: str
    measured_by: str
    def __init__(self, kl: _Optional[float] = ..., top1: _Optional[float] = ..., tokens_checked: _Optional[int] = ..., against: _Optional[str] = ..., probe: _Optional[str] = ..., measured_at: _Optional[str] = ..., measured_by: _Optional[str] = ...) -> None: ...

class MemoryLineage(_message.Message):
    __slots__ = ("creation_method", "created_by", "created_at", "source_inputs", "processing_steps", "measurements")
    CREATION_METHOD_FIELD_NUMBER: _ClassVar[int]
    CREATED_BY_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_INPUTS_FIELD_NUMBER: _ClassVar[int]
    PROCESSING_STEPS_FIELD_NUMBER: _ClassVar[int]
    MEASUREMENTS_FIELD_NUMBER: _ClassVar[int]
    creation_method: str
    created_by: str
    created_at: str
    source_inputs: _containers.RepeatedCompositeFieldContainer[SourceInput]
    processing_steps: _containers.RepeatedCompositeFieldContainer[ProcessingStep]
    measurements: _containers.RepeatedCompositeFieldContainer[Measurement]
    def __init__(self, creation_method: _Optional[str] = ..., created_by: _Optional[str] = ..., created_at: _Optional[str] = ..., source_inputs: _Optional[_Iterable[_Union[SourceInput, _Mapping]]] = ..., processing_steps: _Optional[_Iterable[_Union[ProcessingStep, _Mapping]]] = ..., measurements: _Optional[_Iterable[_Union[Measurement, _Mapping]]] = ...) -> None: ...

class SignPackageRequest(_message.Message):
    __slots__ = ("body",)
    BODY_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    def __init__(self, body: _Optional[bytes] = ...) -> None: ...

class SignPackageReply(_message.Message):
    __slots__ = ("signer", "signature")
    SIGNER_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    signer: bytes
    signature: bytes
    def __init__(self, signer: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class CalibrateRequest(_message.Message):
    __slots__ = ("texts",)
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, texts: _Optional[_Iterable[str]] = ...) -> None: ...

class Calibration(_message.Message):
    __slots__ = ("model", "basis", "nbytes", "components", "tokens", "weighted", "seconds")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BASIS_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    model: str
    basis: str
    nbytes: int
    components: int
    tokens: int
    weighted: bool
    seconds: float
    def __init__(self, model: _Optional[str] = ..., basis: _Optional[str] = ..., nbytes: _Optional[int] = ..., components: _Optional[int] = ..., tokens: _Optional[int] = ..., weighted: _Optional[bool] = ..., seconds: _Optional[float] = ...) -> None: ...

class AlignmentInfo(_message.Message):
    __slots__ = ("id", "kind", "source", "source_digest", "receiver", "receiver_digest", "port", "rank", "method", "pairing", "layer_strategy", "source_layers", "num_sinks", "window", "far_window", "far_layers", "closing", "relative_lambda", "corpus_digest", "num_contexts", "num_rows", "created_at", "nbytes", "signed_by", "packaged", "problem", "gate")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PAIRING_FIELD_NUMBER: _ClassVar[int]
    LAYER_STRATEGY_FIELD_NUMBER: _ClassVar[int]
    SOURCE_LAYERS_FIELD_NUMBER: _ClassVar[int]
    NUM_SINKS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    FAR_WINDOW_FIELD_NUMBER: _ClassVar[int]
    FAR_LAYERS_FIELD_NUMBER: _ClassVar[int]
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_LAMBDA_FIELD_NUMBER: _ClassVar[int]
    CORPUS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUM_CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    SIGNED_BY_FIELD_NUMBER: _ClassVar[int]
    PACKAGED_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: str
    source: str
    source_digest: str
    receiver: str
    receiver_digest: str
    port: str
    rank: int
    method: str
    pairing: str
    layer_strategy: str
    source_layers: _containers.RepeatedScalarFieldContainer[int]
    num_sinks: int
    window: _containers.RepeatedScalarFieldContainer[int]
    far_window: _containers.RepeatedScalarFieldContainer[int]
    far_layers: _containers.RepeatedScalarFieldContainer[int]
    closing: str
    relative_lambda: float
    corpus_digest: str
    num_contexts: int
    num_rows: int
    created_at: str
    nbytes: int
    signed_by: str
    packaged: bool
    problem: str
    gate: GateResult
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[str] = ..., source: _Optional[str] = ..., source_digest: _Optional[str] = ..., receiver: _Optional[str] = ..., receiver_digest: _Optional[str] = ..., port: _Optional[str] = ..., rank: _Optional[int] = ..., method: _Optional[str] = ..., pairing: _Optional[str] = ..., layer_strategy: _Optional[str] = ..., source_layers: _Optional[_Iterable[int]] = ..., num_sinks: _Optional[int] = ..., window: _Optional[_Iterable[int]] = ..., far_window: _Optional[_Iterable[int]] = ..., far_layers: _Optional[_Iterable[int]] = ..., closing: _Optional[str] = ..., relative_lambda: _Optional[float] = ..., corpus_digest: _Optional[str] = ..., num_contexts: _Optional[int] = ..., num_rows: _Optional[int] = ..., created_at: _Optional[str] = ..., nbytes: _Optional[int] = ..., signed_by: _Optional[str] = ..., packaged: _Optional[bool] = ..., problem: _Optional[str] = ..., gate: _Optional[_Union[GateResult, _Mapping]] = ...) -> None: ...

class ListAlignmentsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AlignmentList(_message.Message):
    __slots__ = ("alignments",)
    ALIGNMENTS_FIELD_NUMBER: _ClassVar[int]
    alignments: _containers.RepeatedCompositeFieldContainer[AlignmentInfo]
    def __init__(self, alignments: _Optional[_Iterable[_Union[AlignmentInfo, _Mapping]]] = ...) -> None: ...

class ShowAlignmentRequest(_message.Message):
    __slots__ = ("alignment",)
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    alignment: str
    def __init__(self, alignment: _Optional[str] = ...) -> None: ...

class ExportAlignmentRequest(_message.Message):
    __slots__ = ("alignment",)
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    alignment: str
    def __init__(self, alignment: _Optional[str] = ...) -> None: ...

class AlignmentPiece(_message.Message):
    __slots__ = ("data", "trust")
    DATA_FIELD_NUMBER: _ClassVar[int]
    TRUST_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    trust: bool
    def __init__(self, data: _Optional[bytes] = ..., trust: _Optional[bool] = ...) -> None: ...

class RemoveAlignmentRequest(_message.Message):
    __slots__ = ("alignment",)
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    alignment: str
    def __init__(self, alignment: _Optional[str] = ...) -> None: ...

class MakePortRequest(_message.Message):
    __slots__ = ("rank",)
    RANK_FIELD_NUMBER: _ClassVar[int]
    rank: int
    def __init__(self, rank: _Optional[int] = ...) -> None: ...

class FitAlignmentRequest(_message.Message):
    __slots__ = ("peer", "source", "corpus", "lessons", "no_anchors", "rows", "layers", "head_local")
    PEER_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    CORPUS_FIELD_NUMBER: _ClassVar[int]
    LESSONS_FIELD_NUMBER: _ClassVar[int]
    NO_ANCHORS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HEAD_LOCAL_FIELD_NUMBER: _ClassVar[int]
    peer: str
    source: str
    corpus: str
    lessons: int
    no_anchors: bool
    rows: bool
    layers: str
    head_local: bool
    def __init__(self, peer: _Optional[str] = ..., source: _Optional[str] = ..., corpus: _Optional[str] = ..., lessons: _Optional[int] = ..., no_anchors: _Optional[bool] = ..., rows: _Optional[bool] = ..., layers: _Optional[str] = ..., head_local: _Optional[bool] = ...) -> None: ...

class FitEvent(_message.Message):
    __slots__ = ("progress", "alignment")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    alignment: AlignmentInfo
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., alignment: _Optional[_Union[AlignmentInfo, _Mapping]] = ...) -> None: ...

class TrainAlignmentRequest(_message.Message):
    __slots__ = ("alignment", "peer", "source", "corpus", "lessons", "steps", "plots")
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    CORPUS_FIELD_NUMBER: _ClassVar[int]
    LESSONS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PLOTS_FIELD_NUMBER: _ClassVar[int]
    alignment: str
    peer: str
    source: str
    corpus: str
    lessons: int
    steps: int
    plots: str
    def __init__(self, alignment: _Optional[str] = ..., peer: _Optional[str] = ..., source: _Optional[str] = ..., corpus: _Optional[str] = ..., lessons: _Optional[int] = ..., steps: _Optional[int] = ..., plots: _Optional[str] = ...) -> None: ...

class CurvePoint(_message.Message):
    __slots__ = ("step", "train_kl", "held_out_recall", "held_out_kl")
    STEP_FIELD_NUMBER: _ClassVar[int]
    TRAIN_KL_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_RECALL_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_KL_FIELD_NUMBER: _ClassVar[int]
    step: int
    train_kl: float
    held_out_recall: float
    held_out_kl: float
    def __init__(self, step: _Optional[int] = ..., train_kl: _Optional[float] = ..., held_out_recall: _Optional[float] = ..., held_out_kl: _Optional[float] = ...) -> None: ...

class TrainProgress(_message.Message):
    __slots__ = ("done", "total", "point")
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    POINT_FIELD_NUMBER: _ClassVar[int]
    done: int
    total: int
    point: CurvePoint
    def __init__(self, done: _Optional[int] = ..., total: _Optional[int] = ..., point: _Optional[_Union[CurvePoint, _Mapping]] = ...) -> None: ...

class TrainReport(_message.Message):
    __slots__ = ("closed_form", "trained", "curve", "plot", "seconds")
    CLOSED_FORM_FIELD_NUMBER: _ClassVar[int]
    TRAINED_FIELD_NUMBER: _ClassVar[int]
    CURVE_FIELD_NUMBER: _ClassVar[int]
    PLOT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    closed_form: str
    trained: AlignmentInfo
    curve: _containers.RepeatedCompositeFieldContainer[CurvePoint]
    plot: str
    seconds: float
    def __init__(self, closed_form: _Optional[str] = ..., trained: _Optional[_Union[AlignmentInfo, _Mapping]] = ..., curve: _Optional[_Iterable[_Union[CurvePoint, _Mapping]]] = ..., plot: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class TrainEvent(_message.Message):
    __slots__ = ("progress", "report")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    progress: TrainProgress
    report: TrainReport
    def __init__(self, progress: _Optional[_Union[TrainProgress, _Mapping]] = ..., report: _Optional[_Union[TrainReport, _Mapping]] = ...) -> None: ...

class EvaluateAlignmentRequest(_message.Message):
    __slots__ = ("alignment", "peer", "source", "questions")
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    QUESTIONS_FIELD_NUMBER: _ClassVar[int]
    alignment: str
    peer: str
    source: str
    questions: int
    def __init__(self, alignment: _Optional[str] = ..., peer: _Optional[str] = ..., source: _Optional[str] = ..., questions: _Optional[int] = ...) -> None: ...

class ArmReport(_message.Message):
    __slots__ = ("arm", "recall", "gap_recovered", "kl", "num_questions")
    ARM_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    GAP_RECOVERED_FIELD_NUMBER: _ClassVar[int]
    KL_FIELD_NUMBER: _ClassVar[int]
    NUM_QUESTIONS_FIELD_NUMBER: _ClassVar[int]
    arm: str
    recall: float
    gap_recovered: Interval
    kl: float
    num_questions: int
    def __init__(self, arm: _Optional[str] = ..., recall: _Optional[float] = ..., gap_recovered: _Optional[_Union[Interval, _Mapping]] = ..., kl: _Optional[float] = ..., num_questions: _Optional[int] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("alignment", "source", "receiver", "arms", "not_applicable", "seconds")
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    ARMS_FIELD_NUMBER: _ClassVar[int]
    NOT_APPLICABLE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    alignment: str
    source: str
    receiver: str
    arms: _containers.RepeatedCompositeFieldContainer[ArmReport]
    not_applicable: _containers.RepeatedScalarFieldContainer[str]
    seconds: float
    def __init__(self, alignment: _Optional[str] = ..., source: _Optional[str] = ..., receiver: _Optional[str] = ..., arms: _Optional[_Iterable[_Union[ArmReport, _Mapping]]] = ..., not_applicable: _Optional[_Iterable[str]] = ..., seconds: _Optional[float] = ...) -> None: ...

class EvaluateEvent(_message.Message):
    __slots__ = ("progress", "evaluation")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    evaluation: Evaluation
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ...) -> None: ...

class SendRequest(_message.Message):
    __slots__ = ("memory", "to", "note", "agent", "codec", "with_text", "if_off", "text", "name", "mode")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    WITH_TEXT_FIELD_NUMBER: _ClassVar[int]
    IF_OFF_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    memory: str
    to: str
    note: str
    agent: str
    codec: str
    with_text: bool
    if_off: str
    text: str
    name: str
    mode: str
    def __init__(self, memory: _Optional[str] = ..., to: _Optional[str] = ..., note: _Optional[str] = ..., agent: _Optional[str] = ..., codec: _Optional[str] = ..., with_text: _Optional[bool] = ..., if_off: _Optional[str] = ..., text: _Optional[str] = ..., name: _Optional[str] = ..., mode: _Optional[str] = ...) -> None: ...

class OutboxEntry(_message.Message):
    __slots__ = ("id", "peer", "peer_name", "agent", "sender_agent", "memory", "note", "codec", "with_text", "queued_at", "expires_at", "attempts", "state", "problem", "label", "quiet")
    ID_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    PEER_NAME_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    SENDER_AGENT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    WITH_TEXT_FIELD_NUMBER: _ClassVar[int]
    QUEUED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    QUIET_FIELD_NUMBER: _ClassVar[int]
    id: str
    peer: str
    peer_name: str
    agent: str
    sender_agent: str
    memory: str
    note: str
    codec: str
    with_text: bool
    queued_at: str
    expires_at: str
    attempts: int
    state: str
    problem: str
    label: str
    quiet: bool
    def __init__(self, id: _Optional[str] = ..., peer: _Optional[str] = ..., peer_name: _Optional[str] = ..., agent: _Optional[str] = ..., sender_agent: _Optional[str] = ..., memory: _Optional[str] = ..., note: _Optional[str] = ..., codec: _Optional[str] = ..., with_text: _Optional[bool] = ..., queued_at: _Optional[str] = ..., expires_at: _Optional[str] = ..., attempts: _Optional[int] = ..., state: _Optional[str] = ..., problem: _Optional[str] = ..., label: _Optional[str] = ..., quiet: _Optional[bool] = ...) -> None: ...

class ListOutboxRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class OutboxList(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[OutboxEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[OutboxEntry, _Mapping]]] = ...) -> None: ...

class OutboxEntryRequest(_message.Message):
    __slots__ = ("entry",)
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    entry: str
    def __init__(self, entry: _Optional[str] = ...) -> None: ...

class ReceiptInfo(_message.Message):
    __slots__ = ("transfer_id", "memory", "peer", "peer_name", "completed_at", "has_offer")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    PEER_NAME_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_AT_FIELD_NUMBER: _ClassVar[int]
    HAS_OFFER_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    memory: str
    peer: str
    peer_name: str
    completed_at: str
    has_offer: bool
    def __init__(self, transfer_id: _Optional[str] = ..., memory: _Optional[str] = ..., peer: _Optional[str] = ..., peer_name: _Optional[str] = ..., completed_at: _Optional[str] = ..., has_offer: _Optional[bool] = ...) -> None: ...

class ListReceiptsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReceiptList(_message.Message):
    __slots__ = ("receipts",)
    RECEIPTS_FIELD_NUMBER: _ClassVar[int]
    receipts: _containers.RepeatedCompositeFieldContainer[ReceiptInfo]
    def __init__(self, receipts: _Optional[_Iterable[_Union[ReceiptInfo, _Mapping]]] = ...) -> None: ...

class ExportReceiptRequest(_message.Message):
    __slots__ = ("transfer",)
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    transfer: str
    def __init__(self, transfer: _Optional[str] = ...) -> None: ...

class ExportReceiptReply(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class RepairRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Repaired(_message.Message):
    __slots__ = ("memory", "done", "problem", "path")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    memory: str
    done: str
    problem: str
    path: str
    def __init__(self, memory: _Optional[str] = ..., done: _Optional[str] = ..., problem: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

class RepairReport(_message.Message):
    __slots__ = ("checked", "sections", "nbytes", "repaired", "problems", "seconds")
    CHECKED_FIELD_NUMBER: _ClassVar[int]
    SECTIONS_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    REPAIRED_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    checked: int
    sections: int
    nbytes: int
    repaired: _containers.RepeatedCompositeFieldContainer[Repaired]
    problems: _containers.RepeatedScalarFieldContainer[str]
    seconds: float
    def __init__(self, checked: _Optional[int] = ..., sections: _Optional[int] = ..., nbytes: _Optional[int] = ..., repaired: _Optional[_Iterable[_Union[Repaired, _Mapping]]] = ..., problems: _Optional[_Iterable[str]] = ..., seconds: _Optional[float] = ...) -> None: ...

class RepairEvent(_message.Message):
    __slots__ = ("progress", "report")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    report: RepairReport
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., report: _Optional[_Union[RepairReport, _Mapping]] = ...) -> None: ...

class LayerProgress(_message.Message):
    __slots__ = ("layer_idx", "chunks_done", "chunks_total", "wire_bytes")
    LAYER_IDX_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_DONE_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    WIRE_BYTES_FIELD_NUMBER: _ClassVar[int]
    layer_idx: int
    chunks_done: int
    chunks_total: int
    wire_bytes: int
    def __init__(self, layer_idx: _Optional[int] = ..., chunks_done: _Optional[int] = ..., chunks_total: _Optional[int] = ..., wire_bytes: _Optional[int] = ...) -> None: ...

class SendReport(_message.Message):
    __slots__ = ("transfer_id", "memory", "peer", "chunks", "raw_bytes", "wire_bytes", "seconds", "tier", "resumed_chunks", "codec", "queued", "problem", "mode", "predicted_s")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    RAW_BYTES_FIELD_NUMBER: _ClassVar[int]
    WIRE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    RESUMED_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_S_FIELD_NUMBER: _ClassVar[int]
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
    queued: str
    problem: str
    mode: str
    predicted_s: float
    def __init__(self, transfer_id: _Optional[str] = ..., memory: _Optional[str] = ..., peer: _Optional[str] = ..., chunks: _Optional[int] = ..., raw_bytes: _Optional[int] = ..., wire_bytes: _Optional[int] = ..., seconds: _Optional[float] = ..., tier: _Optional[str] = ..., resumed_chunks: _Optional[int] = ..., codec: _Optional[str] = ..., queued: _Optional[str] = ..., problem: _Optional[str] = ..., mode: _Optional[str] = ..., predicted_s: _Optional[float] = ...) -> None: ...

class SendEvent(_message.Message):
    __slots__ = ("progress", "report")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    progress: LayerProgress
    report: SendReport
    def __init__(self, progress: _Optional[_Union[LayerProgress, _Mapping]] = ..., report: _Optional[_Union[SendReport, _Mapping]] = ...) -> None: ...

class EstimateRequest(_message.Message):
    __slots__ = ("memory", "to", "codec")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    memory: str
    to: str
    codec: str
    def __init__(self, memory: _Optional[str] = ..., to: _Optional[str] = ..., codec: _Optional[str] = ...) -> None: ...

class Estimate(_message.Message):
    __slots__ = ("memory", "peer", "codec", "tokens", "wire_bytes", "transfer_s", "text_s", "split_s", "split_tokens", "choice", "why_no_text", "link_bytes_per_s", "reading_tokens_per_s")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    WIRE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_S_FIELD_NUMBER: _ClassVar[int]
    TEXT_S_FIELD_NUMBER: _ClassVar[int]
    SPLIT_S_FIELD_NUMBER: _ClassVar[int]
    SPLIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    WHY_NO_TEXT_FIELD_NUMBER: _ClassVar[int]
    LINK_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    READING_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    memory: str
    peer: str
    codec: str
    tokens: int
    wire_bytes: int
    transfer_s: float
    text_s: float
    split_s: float
    split_tokens: int
    choice: str
    why_no_text: str
    link_bytes_per_s: int
    reading_tokens_per_s: int
    def __init__(self, memory: _Optional[str] = ..., peer: _Optional[str] = ..., codec: _Optional[str] = ..., tokens: _Optional[int] = ..., wire_bytes: _Optional[int] = ..., transfer_s: _Optional[float] = ..., text_s: _Optional[float] = ..., split_s: _Optional[float] = ..., split_tokens: _Optional[int] = ..., choice: _Optional[str] = ..., why_no_text: _Optional[str] = ..., link_bytes_per_s: _Optional[int] = ..., reading_tokens_per_s: _Optional[int] = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("memory", "peer")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    memory: str
    peer: str
    def __init__(self, memory: _Optional[str] = ..., peer: _Optional[str] = ...) -> None: ...

class AskRequest(_message.Message):
    __slots__ = ("prompt", "memory", "max_tokens", "temperature", "top_p", "stop", "seed", "context", "memories", "align", "verify_text", "peer", "codec", "stream_to", "name")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    MEMORIES_FIELD_NUMBER: _ClassVar[int]
    ALIGN_FIELD_NUMBER: _ClassVar[int]
    VERIFY_TEXT_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    STREAM_TO_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    memory: str
    max_tokens: int
    temperature: float
    top_p: float
    stop: _containers.RepeatedScalarFieldContainer[str]
    seed: int
    context: str
    memories: _containers.RepeatedScalarFieldContainer[str]
    align: str
    verify_text: bool
    peer: str
    codec: str
    stream_to: str
    name: str
    def __init__(self, prompt: _Optional[str] = ..., memory: _Optional[str] = ..., max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., stop: _Optional[_Iterable[str]] = ..., seed: _Optional[int] = ..., context: _Optional[str] = ..., memories: _Optional[_Iterable[str]] = ..., align: _Optional[str] = ..., verify_text: _Optional[bool] = ..., peer: _Optional[str] = ..., codec: _Optional[str] = ..., stream_to: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class KvReport(_message.Message):
    __slots__ = ("tier", "reused_tokens", "recomputed_tokens", "fallback", "ttft_s", "codec", "map", "untrusted_source")
    TIER_FIELD_NUMBER: _ClassVar[int]
    REUSED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    MAP_FIELD_NUMBER: _ClassVar[int]
    UNTRUSTED_SOURCE_FIELD_NUMBER: _ClassVar[int]
    tier: str
    reused_tokens: int
    recomputed_tokens: int
    fallback: str
    ttft_s: float
    codec: str
    map: str
    untrusted_source: str
    def __init__(self, tier: _Optional[str] = ..., reused_tokens: _Optional[int] = ..., recomputed_tokens: _Optional[int] = ..., fallback: _Optional[str] = ..., ttft_s: _Optional[float] = ..., codec: _Optional[str] = ..., map: _Optional[str] = ..., untrusted_source: _Optional[str] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("text", "kv", "tokens", "finish_reason", "seconds", "memory", "live_problem")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    LIVE_PROBLEM_FIELD_NUMBER: _ClassVar[int]
    text: str
    kv: KvReport
    tokens: int
    finish_reason: str
    seconds: float
    memory: str
    live_problem: str
    def __init__(self, text: _Optional[str] = ..., kv: _Optional[_Union[KvReport, _Mapping]] = ..., tokens: _Optional[int] = ..., finish_reason: _Optional[str] = ..., seconds: _Optional[float] = ..., memory: _Optional[str] = ..., live_problem: _Optional[str] = ...) -> None: ...

class AskEvent(_message.Message):
    __slots__ = ("delta", "answer")
    DELTA_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    delta: str
    answer: Answer
    def __init__(self, delta: _Optional[str] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("memory", "model")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    memory: str
    model: str
    def __init__(self, memory: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class Difference(_message.Message):
    __slots__ = ("field", "memory", "model")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    field: str
    memory: str
    model: str
    def __init__(self, field: _Optional[str] = ..., memory: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class Interval(_message.Message):
    __slots__ = ("value", "low", "high")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    value: float
    low: float
    high: float
    def __init__(self, value: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class GateResult(_message.Message):
    __slots__ = ("admitted", "reason", "num_questions", "num_texts", "recall_text", "recall_none", "recall_mapped", "gap_recovered", "gap_shuffled", "kl", "kl_shuffled", "attention_cosine", "uses")
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    NUM_QUESTIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_TEXTS_FIELD_NUMBER: _ClassVar[int]
    RECALL_TEXT_FIELD_NUMBER: _ClassVar[int]
    RECALL_NONE_FIELD_NUMBER: _ClassVar[int]
    RECALL_MAPPED_FIELD_NUMBER: _ClassVar[int]
    GAP_RECOVERED_FIELD_NUMBER: _ClassVar[int]
    GAP_SHUFFLED_FIELD_NUMBER: _ClassVar[int]
    KL_FIELD_NUMBER: _ClassVar[int]
    KL_SHUFFLED_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_COSINE_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    admitted: bool
    reason: str
    num_questions: int
    num_texts: int
    recall_text: float
    recall_none: float
    recall_mapped: float
    gap_recovered: Interval
    gap_shuffled: float
    kl: float
    kl_shuffled: float
    attention_cosine: float
    uses: _containers.RepeatedCompositeFieldContainer[UseResult]
    def __init__(self, admitted: _Optional[bool] = ..., reason: _Optional[str] = ..., num_questions: _Optional[int] = ..., num_texts: _Optional[int] = ..., recall_text: _Optional[float] = ..., recall_none: _Optional[float] = ..., recall_mapped: _Optional[float] = ..., gap_recovered: _Optional[_Union[Interval, _Mapping]] = ..., gap_shuffled: _Optional[float] = ..., kl: _Optional[float] = ..., kl_shuffled: _Optional[float] = ..., attention_cosine: _Optional[float] = ..., uses: _Optional[_Iterable[_Union[UseResult, _Mapping]]] = ...) -> None: ...

class UseResult(_message.Message):
    __slots__ = ("use", "admitted", "recall_mapped", "gap_recovered", "kl")
    USE_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    RECALL_MAPPED_FIELD_NUMBER: _ClassVar[int]
    GAP_RECOVERED_FIELD_NUMBER: _ClassVar[int]
    KL_FIELD_NUMBER: _ClassVar[int]
    use: str
    admitted: bool
    recall_mapped: float
    gap_recovered: Interval
    kl: float
    def __init__(self, use: _Optional[str] = ..., admitted: _Optional[bool] = ..., recall_mapped: _Optional[float] = ..., gap_recovered: _Optional[_Union[Interval, _Mapping]] = ..., kl: _Optional[float] = ...) -> None: ...

class MapSummary(_message.Message):
    __slots__ = ("id", "method", "gate")
    ID_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    id: str
    method: str
    gate: GateResult
    def __init__(self, id: _Optional[str] = ..., method: _Optional[str] = ..., gate: _Optional[_Union[GateResult, _Mapping]] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("memory", "model", "tier", "policy", "differences", "map", "has_text", "advice")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    MAP_FIELD_NUMBER: _ClassVar[int]
    HAS_TEXT_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    memory: str
    model: str
    tier: str
    policy: str
    differences: _containers.RepeatedCompositeFieldContainer[Difference]
    map: MapSummary
    has_text: bool
    advice: str
    def __init__(self, memory: _Optional[str] = ..., model: _Optional[str] = ..., tier: _Optional[str] = ..., policy: _Optional[str] = ..., differences: _Optional[_Iterable[_Union[Difference, _Mapping]]] = ..., map: _Optional[_Union[MapSummary, _Mapping]] = ..., has_text: _Optional[bool] = ..., advice: _Optional[str] = ...) -> None: ...

class PeerInfo(_message.Message):
    __slots__ = ("node_id", "name", "addresses", "source", "added", "reachable", "model", "tier", "latency_s", "problem", "permissions", "quota_nbytes", "verified", "added_at", "revoked_at", "rotated_from", "alarm")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ADDED_FIELD_NUMBER: _ClassVar[int]
    REACHABLE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    LATENCY_S_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    PERMISSIONS_FIELD_NUMBER: _ClassVar[int]
    QUOTA_NBYTES_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_FIELD_NUMBER: _ClassVar[int]
    ADDED_AT_FIELD_NUMBER: _ClassVar[int]
    REVOKED_AT_FIELD_NUMBER: _ClassVar[int]
    ROTATED_FROM_FIELD_NUMBER: _ClassVar[int]
    ALARM_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    name: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    source: str
    added: bool
    reachable: bool
    model: str
    tier: str
    latency_s: float
    problem: str
    permissions: _containers.RepeatedScalarFieldContainer[str]
    quota_nbytes: int
    verified: str
    added_at: str
    revoked_at: str
    rotated_from: str
    alarm: str
    def __init__(self, node_id: _Optional[str] = ..., name: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., source: _Optional[str] = ..., added: _Optional[bool] = ..., reachable: _Optional[bool] = ..., model: _Optional[str] = ..., tier: _Optional[str] = ..., latency_s: _Optional[float] = ..., problem: _Optional[str] = ..., permissions: _Optional[_Iterable[str]] = ..., quota_nbytes: _Optional[int] = ..., verified: _Optional[str] = ..., added_at: _Optional[str] = ..., revoked_at: _Optional[str] = ..., rotated_from: _Optional[str] = ..., alarm: _Optional[str] = ...) -> None: ...

class ListPeersRequest(_message.Message):
    __slots__ = ("probe",)
    PROBE_FIELD_NUMBER: _ClassVar[int]
    probe: bool
    def __init__(self, probe: _Optional[bool] = ...) -> None: ...

class PeerList(_message.Message):
    __slots__ = ("peers",)
    PEERS_FIELD_NUMBER: _ClassVar[int]
    peers: _containers.RepeatedCompositeFieldContainer[PeerInfo]
    def __init__(self, peers: _Optional[_Iterable[_Union[PeerInfo, _Mapping]]] = ...) -> None: ...

class AddPeerRequest(_message.Message):
    __slots__ = ("address", "node_id", "name")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    address: str
    node_id: str
    name: str
    def __init__(self, address: _Optional[str] = ..., node_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class RemovePeerRequest(_message.Message):
    __slots__ = ("peer",)
    PEER_FIELD_NUMBER: _ClassVar[int]
    peer: str
    def __init__(self, peer: _Optional[str] = ...) -> None: ...

class ShowPeerRequest(_message.Message):
    __slots__ = ("peer",)
    PEER_FIELD_NUMBER: _ClassVar[int]
    peer: str
    def __init__(self, peer: _Optional[str] = ...) -> None: ...

class TrustPeerRequest(_message.Message):
    __slots__ = ("peer", "permissions", "keep_permissions", "quota_nbytes")
    PEER_FIELD_NUMBER: _ClassVar[int]
    PERMISSIONS_FIELD_NUMBER: _ClassVar[int]
    KEEP_PERMISSIONS_FIELD_NUMBER: _ClassVar[int]
    QUOTA_NBYTES_FIELD_NUMBER: _ClassVar[int]
    peer: str
    permissions: _containers.RepeatedScalarFieldContainer[str]
    keep_permissions: bool
    quota_nbytes: int
    def __init__(self, peer: _Optional[str] = ..., permissions: _Optional[_Iterable[str]] = ..., keep_permissions: _Optional[bool] = ..., quota_nbytes: _Optional[int] = ...) -> None: ...

class RevokePeerRequest(_message.Message):
    __slots__ = ("peer",)
    PEER_FIELD_NUMBER: _ClassVar[int]
    peer: str
    def __init__(self, peer: _Optional[str] = ...) -> None: ...

class PairRequest(_message.Message):
    __slots__ = ("code", "address", "name", "verify")
    CODE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    code: str
    address: str
    name: str
    verify: bool
    def __init__(self, code: _Optional[str] = ..., address: _Optional[str] = ..., name: _Optional[str] = ..., verify: _Optional[bool] = ...) -> None: ...

class PairingInvitation(_message.Message):
    __slots__ = ("code", "addresses", "expires_in_s")
    CODE_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_S_FIELD_NUMBER: _ClassVar[int]
    code: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    expires_in_s: float
    def __init__(self, code: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., expires_in_s: _Optional[float] = ...) -> None: ...

class PairingAttempt(_message.Message):
    __slots__ = ("host", "guesses_left")
    HOST_FIELD_NUMBER: _ClassVar[int]
    GUESSES_LEFT_FIELD_NUMBER: _ClassVar[int]
    host: str
    guesses_left: int
    def __init__(self, host: _Optional[str] = ..., guesses_left: _Optional[int] = ...) -> None: ...

class PairingComparison(_message.Message):
    __slots__ = ("digits",)
    DIGITS_FIELD_NUMBER: _ClassVar[int]
    digits: str
    def __init__(self, digits: _Optional[str] = ...) -> None: ...

class PairEvent(_message.Message):
    __slots__ = ("invitation", "attempt", "comparison", "peer")
    INVITATION_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    COMPARISON_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    invitation: PairingInvitation
    attempt: PairingAttempt
    comparison: PairingComparison
    peer: PeerInfo
    def __init__(self, invitation: _Optional[_Union[PairingInvitation, _Mapping]] = ..., attempt: _Optional[_Union[PairingAttempt, _Mapping]] = ..., comparison: _Optional[_Union[PairingComparison, _Mapping]] = ..., peer: _Optional[_Union[PeerInfo, _Mapping]] = ...) -> None: ...

class AnswerPairingRequest(_message.Message):
    __slots__ = ("same",)
    SAME_FIELD_NUMBER: _ClassVar[int]
    same: bool
    def __init__(self, same: _Optional[bool] = ...) -> None: ...

class AnswerPairingReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RotateKeyRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RotationReport(_message.Message):
    __slots__ = ("old_id", "new_id", "statement", "told", "untold")
    OLD_ID_FIELD_NUMBER: _ClassVar[int]
    NEW_ID_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    TOLD_FIELD_NUMBER: _ClassVar[int]
    UNTOLD_FIELD_NUMBER: _ClassVar[int]
    old_id: str
    new_id: str
    statement: str
    told: _containers.RepeatedScalarFieldContainer[str]
    untold: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, old_id: _Optional[str] = ..., new_id: _Optional[str] = ..., statement: _Optional[str] = ..., told: _Optional[_Iterable[str]] = ..., untold: _Optional[_Iterable[str]] = ...) -> None: ...

class AcceptRotationRequest(_message.Message):
    __slots__ = ("statement",)
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    statement: bytes
    def __init__(self, statement: _Optional[bytes] = ...) -> None: ...

class InboxRequest(_message.Message):
    __slots__ = ("agent", "all", "every_agent")
    AGENT_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    EVERY_AGENT_FIELD_NUMBER: _ClassVar[int]
    agent: str
    all: bool
    every_agent: bool
    def __init__(self, agent: _Optional[str] = ..., all: _Optional[bool] = ..., every_agent: _Optional[bool] = ...) -> None: ...

class InboxMessage(_message.Message):
    __slots__ = ("id", "sender", "sender_name", "sender_agent", "agent", "memory", "note", "received_at", "acknowledged_at")
    ID_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    SENDER_NAME_FIELD_NUMBER: _ClassVar[int]
    SENDER_AGENT_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_AT_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_AT_FIELD_NUMBER: _ClassVar[int]
    id: str
    sender: str
    sender_name: str
    sender_agent: str
    agent: str
    memory: str
    note: str
    received_at: str
    acknowledged_at: str
    def __init__(self, id: _Optional[str] = ..., sender: _Optional[str] = ..., sender_name: _Optional[str] = ..., sender_agent: _Optional[str] = ..., agent: _Optional[str] = ..., memory: _Optional[str] = ..., note: _Optional[str] = ..., received_at: _Optional[str] = ..., acknowledged_at: _Optional[str] = ...) -> None: ...

class MessageList(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[InboxMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[InboxMessage, _Mapping]]] = ...) -> None: ...

class AcknowledgeRequest(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: str
    def __init__(self, message: _Optional[str] = ...) -> None: ...

class EventsRequest(_message.Message):
    __slots__ = ("follow", "past")
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    PAST_FIELD_NUMBER: _ClassVar[int]
    follow: bool
    past: bool
    def __init__(self, follow: _Optional[bool] = ..., past: _Optional[bool] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("line",)
    LINE_FIELD_NUMBER: _ClassVar[int]
    line: str
    def __init__(self, line: _Optional[str] = ...) -> None: ...
