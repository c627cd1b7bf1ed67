from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Rope(_message.Message):
    __slots__ = ("rope_type", "rope_theta", "partial_rotary_factor", "extra_json")
    ROPE_TYPE_FIELD_NUMBER: _ClassVar[int]
    ROPE_THETA_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_ROTARY_FACTOR_FIELD_NUMBER: _ClassVar[int]
    EXTRA_JSON_FIELD_NUMBER: _ClassVar[int]
    rope_type: str
    rope_theta: float
    partial_rotary_factor: float
    extra_json: str
    def __init__(self, rope_type: _Optional[str] = ..., rope_theta: _Optional[float] = ..., partial_rotary_factor: _Optional[float] = ..., extra_json: _Optional[str] = ...) -> None: ...

class Geometry(_message.Message):
    __slots__ = ("num_layers", "num_kv_heads", "head_dim", "dtype", "rope")
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    NUM_KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    HEAD_DIM_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ROPE_FIELD_NUMBER: _ClassVar[int]
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    rope: Rope
    def __init__(self, num_layers: _Optional[int] = ..., num_kv_heads: _Optional[int] = ..., head_dim: _Optional[int] = ..., dtype: _Optional[str] = ..., rope: _Optional[_Union[Rope, _Mapping]] = ...) -> None: ...

class Fingerprint(_message.Message):
    __slots__ = ("model", "architecture", "config_digest", "tokenizer_digest", "weights_digest", "quantization")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    CONFIG_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    model: str
    architecture: str
    config_digest: str
    tokenizer_digest: str
    weights_digest: str
    quantization: str
    def __init__(self, model: _Optional[str] = ..., architecture: _Optional[str] = ..., config_digest: _Optional[str] = ..., tokenizer_digest: _Optional[str] = ..., weights_digest: _Optional[str] = ..., quantization: _Optional[str] = ...) -> None: ...

class MemoryHeader(_message.Message):
    __slots__ = ("fingerprint", "geometry", "seq_len", "start_pos", "key_space", "token_digest", "content_digest", "coding", "attention_heads", "derived_from", "prefix_digest")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    GEOMETRY_FIELD_NUMBER: _ClassVar[int]
    SEQ_LEN_FIELD_NUMBER: _ClassVar[int]
    START_POS_FIELD_NUMBER: _ClassVar[int]
    KEY_SPACE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONTENT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CODING_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_HEADS_FIELD_NUMBER: _ClassVar[int]
    DERIVED_FROM_FIELD_NUMBER: _ClassVar[int]
    PREFIX_DIGEST_FIELD_NUMBER: _ClassVar[int]
    fingerprint: Fingerprint
    geometry: Geometry
    seq_len: int
    start_pos: int
    key_space: str
    token_digest: str
    content_digest: str
    coding: Coding
    attention_heads: int
    derived_from: str
    prefix_digest: str
    def __init__(self, fingerprint: _Optional[_Union[Fingerprint, _Mapping]] = ..., geometry: _Optional[_Union[Geometry, _Mapping]] = ..., seq_len: _Optional[int] = ..., start_pos: _Optional[int] = ..., key_space: _Optional[str] = ..., token_digest: _Optional[str] = ..., content_digest: _Optional[str] = ..., coding: _Optional[_Union[Coding, _Mapping]] = ..., attention_heads: _Optional[int] = ..., derived_from: _Optional[str] = ..., prefix_digest: _Optional[str] = ...) -> None: ...

class HeadIndex(_message.Message):
    __slots__ = ("place",)
    PLACE_FIELD_NUMBER: _ClassVar[int]
    place: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, place: _Optional[_Iterable[int]] = ...) -> None: ...

class Coding(_message.Message):
    __slots__ = ("scheme", "key_bits", "value_bits", "group_size", "hadamard", "sink_tokens", "recent_tokens", "basis", "basis_nbytes", "pruned_heads")
    SCHEME_FIELD_NUMBER: _ClassVar[int]
    KEY_BITS_FIELD_NUMBER: _ClassVar[int]
    VALUE_BITS_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    HADAMARD_FIELD_NUMBER: _ClassVar[int]
    SINK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RECENT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BASIS_FIELD_NUMBER: _ClassVar[int]
    BASIS_NBYTES_FIELD_NUMBER: _ClassVar[int]
    PRUNED_HEADS_FIELD_NUMBER: _ClassVar[int]
    scheme: str
    key_bits: int
    value_bits: int
    group_size: int
    hadamard: bool
    sink_tokens: int
    recent_tokens: int
    basis: str
    basis_nbytes: int
    pruned_heads: _containers.RepeatedCompositeFieldContainer[HeadIndex]
    def __init__(self, scheme: _Optional[str] = ..., key_bits: _Optional[int] = ..., value_bits: _Optional[int] = ..., group_size: _Optional[int] = ..., hadamard: _Optional[bool] = ..., sink_tokens: _Optional[int] = ..., recent_tokens: _Optional[int] = ..., basis: _Optional[str] = ..., basis_nbytes: _Optional[int] = ..., pruned_heads: _Optional[_Iterable[_Union[HeadIndex, _Mapping]]] = ...) -> None: ...
