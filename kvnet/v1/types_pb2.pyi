from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
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
    __slots__ = ("fingerprint", "geometry", "seq_len", "start_pos", "key_space", "token_digest", "content_digest")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    GEOMETRY_FIELD_NUMBER: _ClassVar[int]
    SEQ_LEN_FIELD_NUMBER: _ClassVar[int]
    START_POS_FIELD_NUMBER: _ClassVar[int]
    KEY_SPACE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONTENT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    fingerprint: Fingerprint
    geometry: Geometry
    seq_len: int
    start_pos: int
    key_space: str
    token_digest: str
    content_digest: str
    def __init__(self, fingerprint: _Optional[_Union[Fingerprint, _Mapping]] = ..., geometry: _Optional[_Union[Geometry, _Mapping]] = ..., seq_len: _Optional[int] = ..., start_pos: _Optional[int] = ..., key_space: _Optional[str] = ..., token_digest: _Optional[str] = ..., content_digest: _Optional[str] = ...) -> None: ...
