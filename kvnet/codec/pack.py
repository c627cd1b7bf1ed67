"""Tensors to raw little-endian bytes and back. Knows no compression, no files, no network."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from kvnet.errors import MalformedChunk
from kvnet.types import DType, Geometry

TORCH_DTYPES: Final[dict[DType, torch.dtype]] = {
    DType.FLOAT32: torch.float32,
    DType.FLOAT16: torch.float16,
    DType.BFLOAT16: torch.bfloat16,
}

# Elements cross the wire as integers of the same width: no float is ever converted, so NaN payloads
# and signed zeros survive, and numpy (which has no bfloat16) takes care of the byte order.
_INTEGERS: Final[dict[torch.dtype, tuple[torch.dtype, str]]] = {
    torch.float32: (torch.int32, "<i4"),
    torch.float16: (torch.int16, "<i2"),
    torch.bfloat16: (torch.int16, "<i2"),
}


def pack(tensor: torch.Tensor) -> bytes:
    """Contiguous little-endian bytes of [num_kv_heads, seq_len, head_dim], in one copy.

    Takes any stride and device. Source: proto/FORMAT.md §3.
    """
    if tensor.dtype not in _INTEGERS:
        raise ValueError(f"cannot pack {tensor.dtype}")
    integer, little_endian = _INTEGERS[tensor.dtype]
    array = tensor.detach().cpu().view(integer).numpy()
    return array.astype(little_endian, copy=False).tobytes()


def unpack(data: bytes | bytearray | memoryview, geometry: Geometry, num_tokens: int) -> torch.Tensor:
    """Inverse of `pack`: [num_kv_heads, num_tokens, head_dim] in the geometry's dtype, on the CPU.

    Reads a writable buffer in place and copies a read-only one, so the tensor is always writable.
    Raises MalformedChunk if the bytes are not exactly as many as the shape needs.
    Source: proto/FORMAT.md §3.
    """
    wanted = num_tokens * geometry.layer_token_nbytes
    got = memoryview(data).nbytes
    if got != wanted or num_tokens < 1:
        raise MalformedChunk(
            f"a chunk of {num_tokens} tokens has {got} bytes, its geometry needs {wanted}; ask for it again"
        )
    dtype = TORCH_DTYPES[geometry.dtype]
    array = np.frombuffer(data, dtype=_INTEGERS[dtype][1])
    native = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
    shape = (geometry.num_kv_heads, num_tokens, geometry.head_dim)
    return torch.from_numpy(native).view(dtype).reshape(shape)  # [H*T*D] -> [H, T, D]
