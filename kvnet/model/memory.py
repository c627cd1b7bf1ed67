"""Layers to a RawMemory and back: what travels, and whether it fits this model. Knows no text, no peers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch

from kvnet.codec.basis import Basis
from kvnet.codec.chain import chain_for, piece_of
from kvnet.codec.finite import finite_peak
from kvnet.codec.pack import TORCH_DTYPES, pack
from kvnet.codec.presets import Preset, find_preset, fit_groups, with_basis
from kvnet.errors import IncompatibleModel, MalformedChunk, RequestError, UnknownAlignment, UnknownBasis
from kvnet.model.cache import LayerKV
from kvnet.plan import (
    MAX_IMPORTANT_TOKENS,
    ChunkKey,
    check_coding,
    count_chunks,
    plan_chunks,
    plan_memory,
)
from kvnet.rotary import same_rope
from kvnet.types import (
    Coding,
    DType,
    Fingerprint,
    Geometry,
    KeySpace,
    Kind,
    MemoryHeader,
    RawMemory,
    Scheme,
    canonical_json,
    chunk_digest,
    content_digest,
    sha256_hex,
    to_plain,
)


@dataclass(frozen=True, slots=True)
class Prefix:
    """What new tokens are read behind: all layers of the tokens before them, and the digest of those."""

    layers: tuple[LayerKV, ...]
    digest: str

    @property
    def num_tokens(self) -> int:
        """Positions that it takes, from 0 on."""
        return self.layers[0].keys.shape[-2]


def digest_tokens(token_ids: Sequence[int]) -> str:
    """SHA-256 over the ids as little-endian uint32."""
    return sha256_hex(np.asarray(token_ids, dtype="<u4").tobytes())


def pack_memory(
    layers: Sequence[LayerKV],
    *,
    fingerprint: Fingerprint,
    geometry: Geometry,
    token_ids: Sequence[int],
    attention: Sequence[bytes] = (),
    base: tuple[int, str] = (0, ""),
) -> RawMemory:
    """A memory of `token_ids`, whose layers, without those before, a model with this fingerprint filled.

    Keys and values are raw: bit for bit what the layers hold. `attention` is empty, or has one packed
    section (FORMAT.md §8.4) for each layer. `base` is what they follow: how many tokens, and their digest.
    """
    seq_len = len(token_ids)
    chunks = []
    for key in plan_chunks(geometry, seq_len, attention=bool(attention)):
        if key.kind is Kind.ATTENTION:
            chunks.append(attention[key.layer_idx])
            continue
        layer = layers[key.layer_idx]
        tensor = layer.keys if key.kind is Kind.KEY else layer.values
        chunks.append(pack(tensor[0, :, key.start : key.stop]))  # [1, H, T, D] -> [H, t, D]
    header = MemoryHeader(
        fingerprint=fingerprint,
        geometry=geometry,
        seq_len=seq_len,
        start_pos=base[0],
        key_space=KeySpace.ROTATED,
        token_digest=digest_tokens(token_ids),
        content_digest=digest_chunks(chunks),
        attention_heads=_count_heads(attention, seq_len),
        prefix_digest=base[1],
    )
    return RawMemory(header, tuple(chunks))


def unpack_memory(
    memory: RawMemory,
    *,
    basis: Basis | None = None,
    dtype: DType | None = None,
    device: torch.device | str = "cpu",
) -> tuple[LayerKV, ...]:
    """The layers of a memory in any coding, each [1, num_kv_heads, seq_len, head_dim] with rotated keys.

    Inverse of `pack_memory`, and up to quantization of `encode_memory`. In the memory's own dtype or
    `dtype`. Allocates what the chunks hold, never what the header claims.
    Raises MalformedChunk if the two contradict each other, NotFinite, UnknownBasis, and UnknownAlignment
    for a memory in a port's coordinates (see `kvnet.model.coordinates`).
    """
    wanted = TORCH_DTYPES[dtype or memory.header.geometry.dtype]
    halves: dict[Kind, torch.Tensor] = {}
    layers = []
    for layer_idx, kind, tensor in _decode(memory, basis, device):
        halves[kind] = tensor if tensor.dtype == wanted else cast_finite(tensor, wanted)
        if kind is Kind.VALUE:
            keys, values = (halves.pop(half).unsqueeze(0) for half in (Kind.KEY, Kind.VALUE))
            layers.append(LayerKV(layer_idx, keys, values))  # [H, T, D] -> [1, H, T, D]
    return tuple(layers)


def encode_memory(
    memory: RawMemory,
    preset: Preset | str,
    *,
    basis: Basis | None = None,
    source_basis: Basis | None = None,
    dtype: DType | None = None,
    pruned_heads: Sequence[tuple[int, int]] = (),
) -> RawMemory:
    """The memory in another coding: a memory of its own, `derived_from` this one, or this one if equal.

    `dtype` casts keys and values first; `pruned_heads` ([layer, KV head]) are set to zero. `basis` is the
    one `preset` needs, `source_basis` the one the memory was coded with.
    Raises UnknownBasis for a preset that needs one, RequestError for heads that do not exist or numbers
    that the coding cannot hold, NotFinite, and what `unpack_memory` raises.
    """
    wanted_preset = find_preset(preset) if isinstance(preset, str) else preset
    header = _recoded(memory.header, wanted_preset, basis, dtype, pruned_heads)
    if replace(header, content_digest=memory.header.content_digest, derived_from="") == replace(
        memory.header, derived_from=""
    ):
        return memory
    attention = [
        chunk
        for key, chunk in zip(plan_memory(memory.header), memory.chunks, strict=True)
        if key.kind is Kind.ATTENTION
    ]
    chunks: list[bytes | memoryview] = []
    plan = iter(plan_memory(header))
    wanted = TORCH_DTYPES[header.geometry.dtype]
    for layer_idx, kind, whole in _decode(memory, source_basis, "cpu"):
        tensor = whole if whole.dtype == wanted else cast_finite(whole, wanted)
        chain = chain_for(header, layer_idx, kind, basis)
        stop = 0
        while stop < header.seq_len:
            key = next(plan)
            stop = key.stop
            chunks.append(chain.encode(tensor[:, key.start : stop], piece_of(header, key.start, stop)))
        if attention and kind is Kind.VALUE:
            chunks.append(attention[next(plan).layer_idx])
    return RawMemory(replace(header, content_digest=digest_chunks(chunks)), tuple(chunks))


def cut_memory(
    memory: RawMemory, token_ids: Sequence[int], start: int, *, basis: Basis | None = None
) -> RawMemory:
    """The tokens from `start` on of a memory that begins at position 0, as a memory behind the others.

    `token_ids` are all of its tokens. Raises as `unpack_memory`.
    """
    header = memory.header
    layers = unpack_memory(memory, basis=basis)
    tail = pack_memory(
        [
            LayerKV(layer.layer_idx, layer.keys[..., start:, :], layer.values[..., start:, :])
            for layer in layers
        ],
        fingerprint=header.fingerprint,
        geometry=header.geometry,
        token_ids=token_ids[start:],
        base=(start, digest_tokens(token_ids[:start])),
    )
    return replace(tail, header=replace(tail.header, derived_from=header.id))


def open_header(
    fingerprint: Fingerprint,
    geometry: Geometry,
    token_ids: Sequence[int],
    preset: Preset,
    *,
    basis: Basis | None = None,
    base: tuple[int, str] = (0, ""),
) -> MemoryHeader:
    """What a memory will be that is about to be read and coded as it is read; its contents are open.

    With `base` (how many tokens, and their digest), it is of the tokens behind those.
    Raises UnknownBasis, RequestError.
    """
    plain = MemoryHeader(
        fingerprint=fingerprint,
        geometry=geometry,
        seq_len=len(token_ids),
        start_pos=base[0],
        key_space=KeySpace.ROTATED,
        token_digest=digest_tokens(token_ids),
        content_digest="",
        prefix_digest=base[1],
    )
    return replace(_recoded(plain, preset, basis, None, ()), derived_from="")


def encode_piece(layer: LayerKV, key: ChunkKey, header: MemoryHeader, basis: Basis | None = None) -> bytes:
    """The raw bytes of one chunk of keys or values.

    `layer` holds all positions so far, of which the last ones are the memory's. Raises as a chain's `encode`.
    """
    tensor = layer.keys if key.kind is Kind.KEY else layer.values
    first = header.start_pos + key.start
    piece = tensor[0, :, first : first + key.stop - key.start]  # [1, H, T, D] -> [H, t, D]
    chain = chain_for(header, key.layer_idx, key.kind, basis)
    return chain.encode(piece, piece_of(header, key.start, key.stop))


def digest_chunks(chunks: Sequence[bytes | memoryview]) -> str:
    """The content digest of raw chunks in plan order."""
    return content_digest([chunk_digest(chunk) for chunk in chunks])


def refuse_incompatible(header: MemoryHeader, geometry: Geometry) -> None:
    """Raise IncompatibleModel, with every field that differs, unless the memory fits as it is.

    Another dtype is no obstacle: the same model, quantized otherwise, may well compute in another. Nor is
    the key space: decoding turns keys of content space to their positions.
    Raises UnknownAlignment for a memory in a port's coordinates, which fits no model as it is.
    """
    _refuse_coordinates(header)
    refuse_other_geometry(
        header.geometry,
        geometry,
        f"the memory of {header.fingerprint.model}",
        "align it first, or send it to a node with the same model",
        start_pos=header.start_pos,
    )


def refuse_other_geometry(
    found: Geometry, needed: Geometry, what: str, remedy: str, *, start_pos: int = 0
) -> None:
    """Raise IncompatibleModel, with every field but the dtype that differs."""
    if same_rope(found.rope, needed.rope):
        needed = replace(needed, rope=found.rope)
    wanted = {**_flatten(needed), "start_pos": "0"}
    got = {**_flatten(found), "start_pos": str(start_pos)}
    details = {name: [got[name], wanted[name]] for name in wanted if got[name] != wanted[name]}
    if details:
        first, (theirs, ours) = next(iter(details.items()))
        raise IncompatibleModel(
            f"{what} has {first} {theirs}, this model needs {ours}; {remedy}", details=details
        )


def _decode(
    memory: RawMemory, basis: Basis | None, device: torch.device | str
) -> Iterator[tuple[int, Kind, torch.Tensor]]:
    """Keys, then values, of each layer in turn: [num_kv_heads, seq_len, head_dim] in the memory's dtype."""
    header = memory.header
    if header.seq_len < 1 or len(memory.chunks) != count_chunks(header):
        raise MalformedChunk(
            f"a memory of {header.seq_len} tokens has {len(memory.chunks)} chunks, "
            f"its header needs {count_chunks(header)}; ask for it again"
        )
    if problem := check_coding(header):
        raise MalformedChunk(f"the coding of a memory is none: {problem}; ask for it again")
    _refuse_coordinates(header)
    parts: list[torch.Tensor] = []
    for key, chunk in zip(plan_memory(header), memory.chunks, strict=True):
        if key.kind is Kind.ATTENTION:
            continue
        chain = chain_for(header, key.layer_idx, key.kind, basis)
        parts.append(chain.decode(chunk, piece_of(header, key.start, key.stop), device))
        if key.stop == header.seq_len:
            yield key.layer_idx, key.kind, parts[0] if len(parts) == 1 else torch.cat(parts, 1)
            parts = []


def _refuse_coordinates(header: MemoryHeader) -> None:
    if header.coding.scheme is Scheme.PORT:
        raise UnknownAlignment(
            f"the memory of {header.fingerprint.model} holds coordinates of the port "
            f"{header.coding.basis[:19]}…, no keys and values; only that port expands them, for its own model"
        )


def _recoded(
    source: MemoryHeader,
    preset: Preset,
    basis: Basis | None,
    dtype: DType | None,
    pruned_heads: Sequence[tuple[int, int]],
) -> MemoryHeader:
    """The header of `source` in another coding; its content digest is still the source's."""
    channels = source.geometry.num_kv_heads * source.geometry.head_dim
    coding = fit_groups(preset.coding, channels)
    if preset.needs_basis:
        if basis is None:
            raise UnknownBasis(
                f"the preset {preset.name} needs a calibration of {source.fingerprint.model}; "
                "calibrate the model first, or choose another preset"
            )
        coding = with_basis(coding, basis.digest, len(basis.raw))
    pruned = sorted({*source.coding.pruned_heads, *pruned_heads})
    geometry = source.geometry if dtype is None else replace(source.geometry, dtype=dtype)
    header = replace(
        source,
        geometry=geometry,
        key_space=_key_space(coding, geometry),
        coding=replace(coding, pruned_heads=tuple(pruned)),
        derived_from=source.id,
    )
    if problem := check_coding(header):
        raise RequestError(f"the preset {preset.name} does not fit: {problem}; choose another")
    return header


def _key_space(coding: Coding, geometry: Geometry) -> KeySpace:
    turned = coding.scheme is not Scheme.RAW and geometry.rope.rope_theta > 0
    return KeySpace.CONTENT if turned else KeySpace.ROTATED


def cast_finite(tensor: torch.Tensor, wanted: torch.dtype) -> torch.Tensor:
    """`tensor` as `wanted`. Raises NotFinite where its numbers are too large for that."""
    cast = tensor.to(wanted)
    finite_peak(cast, f"a memory cast to {str(wanted).removeprefix('torch.')}")
    return cast


def _count_heads(attention: Sequence[bytes], seq_len: int) -> int:
    """Query heads that sections of attention metadata tell of, by their length."""
    if not attention:
        return 0
    return (len(attention[0]) - 16) // 4 - min(MAX_IMPORTANT_TOKENS, seq_len)


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
