"""Layers to a RawMemory and back: what travels, and whether it fits this model. Knows no text, no peers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch

from kvnet.codec.pack import TORCH_DTYPES, pack, unpack
from kvnet.errors import IncompatibleModel, MalformedChunk
from kvnet.model.cache import LayerKV
from kvnet.types import (
    DType,
    Fingerprint,
    Geometry,
    KeySpace,
    Kind,
    MemoryHeader,
    RawMemory,
    canonical_json,
    content_digest,
    count_chunks,
    plan_chunks,
    sha256_hex,
    to_plain,
)


def digest_tokens(token_ids: Sequence[int]) -> str:
    """SHA-256 over the ids as little-endian uint32."""
    return sha256_hex(np.asarray(token_ids, dtype="<u4").tobytes())


def pack_memory(
    layers: Sequence[LayerKV], *, fingerprint: Fingerprint, geometry: Geometry, token_ids: Sequence[int]
) -> RawMemory:
    """A memory of `token_ids`, whose layers a model with this fingerprint filled from position 0."""
    seq_len = len(token_ids)
    chunks = []
    for key in plan_chunks(geometry, seq_len):
        layer = layers[key.layer_idx]
        tensor = layer.keys if key.kind is Kind.KEY else layer.values
        chunks.append(pack(tensor[0, :, key.start : key.stop]))  # [1, H, T, D] -> [H, t, D]
    header = MemoryHeader(
        fingerprint=fingerprint,
        geometry=geometry,
        seq_len=seq_len,
        start_pos=0,
        key_space=KeySpace.ROTATED,
        token_digest=digest_tokens(token_ids),
        content_digest=content_digest([hashlib.sha256(chunk).digest() for chunk in chunks]),
    )
    return RawMemory(header, tuple(chunks))


def unpack_memory(
    memory: RawMemory, *, dtype: DType | None = None, device: torch.device | str = "cpu"
) -> tuple[LayerKV, ...]:
    """Inverse of `pack_memory`: each layer [1, num_kv_heads, seq_len, head_dim], in its own dtype or `dtype`.

    Allocates what the chunks hold, never what the header claims.
    Raises MalformedChunk if the two contradict each other.
    """
    header = memory.header
    if header.seq_len < 1 or len(memory.chunks) != count_chunks(header.geometry, header.seq_len):
        raise MalformedChunk(
            f"a memory of {header.seq_len} tokens has {len(memory.chunks)} chunks, "
            f"its header needs {count_chunks(header.geometry, header.seq_len)}; ask for it again"
        )
    wanted = TORCH_DTYPES[dtype or header.geometry.dtype]
    parts: dict[tuple[int, Kind], list[torch.Tensor]] = {}
    for key, chunk in zip(plan_chunks(header.geometry, header.seq_len), memory.chunks, strict=True):
        tensor = unpack(chunk, header.geometry, key.stop - key.start)
        parts.setdefault((key.layer_idx, key.kind), []).append(tensor.to(device, wanted))
    whole = {place: _join(tensors) for place, tensors in parts.items()}
    return tuple(
        LayerKV(layer_idx, whole[layer_idx, Kind.KEY], whole[layer_idx, Kind.VALUE])
        for layer_idx in range(header.geometry.num_layers)
    )


def refuse_incompatible(header: MemoryHeader, geometry: Geometry) -> None:
    """Raise IncompatibleModel, with every field that differs, unless the memory fits as it is.

    Another dtype is no obstacle: the same model, quantized otherwise, may well compute in another.
    """
    wanted = {**_flatten(geometry), "key_space": str(KeySpace.ROTATED), "start_pos": "0"}
    got = {
        **_flatten(header.geometry),
        "key_space": str(header.key_space),
        "start_pos": str(header.start_pos),
    }
    details = {name: [got[name], wanted[name]] for name in wanted if got[name] != wanted[name]}
    if details:
        first, (found, needed) = next(iter(details.items()))
        raise IncompatibleModel(
            f"the memory of {header.fingerprint.model} has {first} {found}, this model needs {needed}; "
            "align it first, or send it to a node with the same model",
            details=details,
        )


def _flatten(geometry: Geometry) -> dict[str, str]:
    """Field name -> text for what decides a fit, with the rope's fields as `rope.NAME`."""
    flat: dict[str, str] = {}
    for field in fields(geometry):
        value: Any = getattr(geometry, field.name)
        if is_dataclass(value):
            flat |= {f"{field.name}.{name}": _text(inner) for name, inner in to_plain(value).items()}
        elif not isinstance(value, DType):
            flat[field.name] = _text(value)
    return flat


def _text(value: Any) -> str:
    return canonical_json(value).decode() if isinstance(value, dict) else str(value)


def _join(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Token ranges [H, t, D] of one layer to [1, H, T, D]."""
    joined = tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=1)
    return joined.unsqueeze(0)
