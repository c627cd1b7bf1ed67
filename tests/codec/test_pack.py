"""Raw bytes of tensors: every bit survives, every wrong size is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvnet.codec.pack import TORCH_DTYPES, pack, unpack
from kvnet.errors import MalformedChunk
from kvnet.types import DType, Geometry, Rope

SPECIALS = (0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1.0, -1.5)


def geometry(num_kv_heads: int, head_dim: int, dtype: DType) -> Geometry:
    return Geometry(1, num_kv_heads, head_dim, dtype, Rope("default", 10000.0))


def bits(tensor: torch.Tensor) -> list[int]:
    """The elements as integers, so that NaN equals itself."""
    integer = torch.int32 if tensor.dtype == torch.float32 else torch.int16
    return [int(value) for value in tensor.contiguous().view(integer).flatten()]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Any bit pattern of any dtype: signalling NaNs and subnormals included."""
    dtype = draw(st.sampled_from(DType))
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 8)))
    size = shape[0] * shape[1] * shape[2] * dtype.itemsize
    data = bytearray(draw(st.binary(min_size=size, max_size=size)))
    return torch.frombuffer(data, dtype=TORCH_DTYPES[dtype]).reshape(shape)


@given(tensors())
def test_any_bit_pattern_survives_pack_and_unpack(tensor: torch.Tensor) -> None:
    num_kv_heads, num_tokens, head_dim = tensor.shape
    dtype = DType(str(tensor.dtype).removeprefix("torch."))
    restored = unpack(pack(tensor), geometry(num_kv_heads, head_dim, dtype), num_tokens)
    assert restored.dtype == tensor.dtype
    assert restored.shape == tensor.shape
    assert bits(restored) == bits(tensor)


@pytest.mark.parametrize("dtype", list(DType))
def test_special_floats_keep_their_bits(dtype: DType) -> None:
    tensor = torch.tensor(SPECIALS, dtype=TORCH_DTYPES[dtype]).reshape(1, 1, -1)
    assert bits(unpack(pack(tensor), geometry(1, len(SPECIALS), dtype), 1)) == bits(tensor)


def test_bytes_are_little_endian_in_head_token_dim_order() -> None:
    tensor = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])  # [2 heads, 2 tokens, 1]
    assert pack(tensor).hex() == "0000803f" + "00000040" + "00004040" + "00008040"
    assert pack(tensor.to(torch.bfloat16)).hex() == "803f" + "0040" + "4040" + "8040"


def test_slice_of_a_cache_packs_like_its_copy() -> None:
    cache = torch.arange(2 * 10 * 4, dtype=torch.float32).reshape(2, 10, 4)
    tokens = cache[:, 3:7]
    assert not tokens.is_contiguous()
    assert pack(tokens) == pack(tokens.clone())


@pytest.mark.parametrize("change", [-1, 1, -8, 8])
def test_wrong_size_is_refused(change: int) -> None:
    data = pack(torch.zeros(2, 3, 4))
    wrong = data[:change] if change < 0 else data + bytes(change)
    with pytest.raises(MalformedChunk, match="96"):
        unpack(wrong, geometry(2, 4, DType.FLOAT32), 3)


@pytest.mark.parametrize("num_tokens", [0, -3])
def test_chunk_of_no_tokens_is_refused(num_tokens: int) -> None:
    with pytest.raises(MalformedChunk):
        unpack(b"", geometry(2, 4, DType.FLOAT32), num_tokens)


def test_read_only_bytes_stay_as_they_are() -> None:
    data = pack(torch.zeros(1, 2, 3))
    tensor = unpack(data, geometry(1, 3, DType.FLOAT32), 2)
    tensor += 1
    assert data == bytes(24)


def test_writable_buffer_is_read_in_place() -> None:
    data = bytearray(24)
    tensor = unpack(memoryview(data), geometry(1, 3, DType.FLOAT32), 2)
    tensor += 1
    assert data[:4].hex() == "0000803f"


def test_integers_are_not_a_cache_dtype() -> None:
    with pytest.raises(ValueError, match="int64"):
        pack(torch.zeros(1, 1, 1, dtype=torch.int64))
