"""Slots: what a memory holds at some positions, in content space, so that it can be moved, joined and mapped.

Knows no text, no peers, no maps. A slot is one position's keys and values in every layer; the receiver's own
first token (its BOS) is never among them, and positions count from the one behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kvnet.codec.basis import Basis
from kvnet.codec.rope import turn_keys
from kvnet.errors import IncompatibleModel, MalformedChunk
from kvnet.model.cache import LayerKV
from kvnet.model.memory import unpack_memory
from kvnet.types import DType, Geometry, RawMemory


@dataclass(frozen=True, slots=True, eq=False)
class Slots:
    """`rows` is float32 [num_slots, row_width]: for each layer in turn its keys, without rotation, then its
    values, each [num_kv_heads * head_dim]. `positions` is int64 [num_slots], ascending, below `span`.
    """

    geometry: Geometry
    rows: torch.Tensor
    positions: torch.Tensor
    span: int

    @property
    def num_slots(self) -> int:
        """Positions whose keys and values are here."""
        return self.rows.shape[0]


def slots_of(memory: RawMemory, *, num_sinks: int, basis: Basis | None = None) -> Slots:
    """Every slot of a memory but the first `num_sinks`. Inverse, but for those, of `to_layers`.

    Raises MalformedChunk for a memory that holds nothing else, and what `unpack_memory` raises.
    """
    header = memory.header
    if header.seq_len <= num_sinks:
        raise MalformedChunk(
            f"a memory of {header.seq_len} tokens holds nothing behind its first {num_sinks}; "
            "send a longer one"
        )
    layers = unpack_memory(memory, dtype=DType.FLOAT32, basis=basis)
    first = header.start_pos + num_sinks
    positions = torch.arange(first, header.start_pos + header.seq_len)
    rows = rows_of_layers(layers, header.geometry, positions, seq_len=header.start_pos + header.seq_len)
    return Slots(header.geometry, rows, positions - first, header.seq_len - num_sinks)


def rows_of_layers(
    layers: Sequence[LayerKV], geometry: Geometry, positions: torch.Tensor, *, seq_len: int
) -> torch.Tensor:
    """float32 [num_slots, row_width] of the last slots of `layers`, whose keys were turned to `positions`.

    `seq_len` is how many positions had been read when the keys were made (some ropes scale with it).
    """
    parts = []
    num_slots = len(positions)
    for layer in layers:
        keys = layer.keys[0, :, -num_slots:].float().cpu()  # [1, H, T, D] -> [H, n, D]
        keys = turn_keys(keys, positions, geometry.rope, geometry.head_dim, forward=False, seq_len=seq_len)
        values = layer.values[0, :, -num_slots:].float().cpu()
        parts += [half.transpose(0, 1).flatten(1) for half in (keys, values)]  # [H, n, D] -> [n, H * D]
    return torch.cat(parts, 1)


def to_layers(slots: Slots, *, num_sinks: int, dtype: torch.dtype) -> tuple[LayerKV, ...]:
    """The layers of slots whose keys are turned to their positions behind `num_sinks` tokens.

    Each is [1, num_kv_heads, num_slots, head_dim].
    """
    geometry = slots.geometry
    shape = (slots.num_slots, geometry.num_kv_heads, geometry.head_dim)
    positions, seq_len = slots.positions + num_sinks, slots.span + num_sinks
    layers = []
    for layer_idx, halves in enumerate(slots.rows.chunk(geometry.num_layers, 1)):
        keys, values = (half.reshape(shape).transpose(0, 1) for half in halves.chunk(2, 1))  # [H, n, D]
        keys = turn_keys(keys, positions, geometry.rope, geometry.head_dim, forward=True, seq_len=seq_len)
        layers.append(LayerKV(layer_idx, keys.to(dtype).unsqueeze(0), values.to(dtype).unsqueeze(0)))
    return tuple(layers)


def join(parts: Sequence[Slots]) -> Slots:
    """Several memories as one: each relocated behind the one before, in the order given.

    Nothing is computed again, so no memory knows of those before it. Raises IncompatibleModel for models that
    do not rotate, whose slots cannot be moved.
    """
    geometry = parts[0].geometry
    if len(parts) > 1 and geometry.rope.rope_theta <= 0:
        raise IncompatibleModel(
            "several memories of a model without rotary positions cannot be put behind each other, as their "
            "numbers say where each token stood; ask with one of them at a time"
        )
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + part.span)
    return Slots(
        geometry,
        torch.cat([part.rows for part in parts]),
        torch.cat([part.positions + start for part, start in zip(parts, starts, strict=False)]),
        starts[-1],
    )
