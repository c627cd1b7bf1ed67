"""Attention metadata as the raw bytes of its chunk. Source: FORMAT.md §8.4. Knows no tensors, no files."""

from __future__ import annotations

import math
import struct
from typing import Final

from kvnet.errors import MalformedChunk, NotFinite
from kvnet.plan import MAX_IMPORTANT_TOKENS
from kvnet.types import AttentionMetadata, MemoryHeader

_FIXED: Final = struct.Struct("<IfII")  # layerIndex, averageAttentionScore, heads, k


def pack_attention(metadata: AttentionMetadata) -> bytes:
    """16 + 4·heads + 4·k bytes; scores and entropies are rounded to float32."""
    entropies, tokens = metadata.entropy_per_head, metadata.important_token_indices
    fixed = _FIXED.pack(metadata.layer_index, metadata.average_attention_score, len(entropies), len(tokens))
    return fixed + struct.pack(f"<{len(entropies)}f{len(tokens)}I", *entropies, *tokens)


def unpack_attention(raw: bytes | memoryview, memory: MemoryHeader, layer_idx: int) -> AttentionMetadata:
    """Inverse of `pack_attention`, for this layer of this memory.

    Raises MalformedChunk, and NotFinite for NaN or infinity.
    """
    what = f"attention metadata of layer {layer_idx}"
    num_heads, num_tokens = memory.attention_heads, min(MAX_IMPORTANT_TOKENS, memory.seq_len)
    nbytes = _FIXED.size + 4 * num_heads + 4 * num_tokens
    if len(raw) != nbytes:
        raise MalformedChunk(f"{what}: {len(raw)} bytes, its memory's has {nbytes}")
    layer_index, score, heads, k = _FIXED.unpack_from(raw)
    if (layer_index, heads, k) != (layer_idx, num_heads, num_tokens):
        raise MalformedChunk(
            f"{what}: tells of layer {layer_index}, {heads} heads and {k} tokens, "
            f"wanted {num_heads} heads and {num_tokens} tokens"
        )
    entropies = struct.unpack_from(f"<{num_heads}f", raw, _FIXED.size)
    tokens = struct.unpack_from(f"<{num_tokens}I", raw, _FIXED.size + 4 * num_heads)
    _check_values(what, score, entropies, tokens, memory.seq_len)
    return AttentionMetadata(layer_idx, score, entropies, tokens)


def _check_values(
    what: str, score: float, entropies: tuple[float, ...], tokens: tuple[int, ...], seq_len: int
) -> None:
    if not all(map(math.isfinite, (score, *entropies))):
        raise NotFinite(f"{what}: holds NaN or infinity")
    if not 0.0 <= score <= 1.0:
        raise MalformedChunk(f"{what}: an average attention of {score}, allowed are 0 to 1")
    if min(entropies, default=0.0) < 0.0:
        raise MalformedChunk(f"{what}: an entropy of {min(entropies)}, none is negative")
    if len(set(tokens)) != len(tokens) or max(tokens, default=0) >= seq_len:
        raise MalformedChunk(f"{what}: important tokens repeat or lie beyond its {seq_len} tokens")
