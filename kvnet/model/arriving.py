"""A memory that is used while it still arrives: decoded as its chunks come, waited for layer by layer.

Chunks are given by whoever receives them, already verified; layers are taken by the model's thread, which
waits for each of them no longer than `LAYER_DEADLINE_S`. Knows no peers and no files.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

import torch

from kvnet.codec.basis import Basis
from kvnet.codec.chain import chain_for, piece_of
from kvnet.codec.pack import TORCH_DTYPES
from kvnet.errors import KvnetError, TransferIncomplete
from kvnet.model.cache import LayerKV
from kvnet.model.memory import cast_finite
from kvnet.plan import ChunkKey, plan_memory
from kvnet.types import DType, Kind, MemoryHeader

LAYER_DEADLINE_S: Final = 120.0
_POLL_S: Final = 0.5


class ArrivingMemory:
    """The layers of a memory on its way in. One thread adds, another waits."""

    def __init__(
        self,
        header: MemoryHeader,
        *,
        basis: Basis | None = None,
        dtype: DType,
        device: torch.device | str = "cpu",
        before: Sequence[LayerKV] = (),
    ) -> None:
        """`dtype` and `device` are those of the model that takes it.

        `before` are the layers of the `start_pos` tokens before the memory's.
        """
        self.header = header
        self.num_positions = header.start_pos + header.seq_len
        self.before: Sequence[LayerKV] = before
        self._basis = basis
        self._wanted = TORCH_DTYPES[dtype]
        self._device = device
        self._halves: dict[tuple[int, Kind], torch.Tensor] = {}  # [num_kv_heads, seq_len, head_dim]
        self._missing = _tokens_by_half(header)
        self._arrived = threading.Condition()
        self._failure: BaseException | None = None

    def add(self, key: ChunkKey, raw: bytes | memoryview) -> None:
        """Decode a verified chunk; keys and values only. Raises MalformedChunk, NotFinite, UnknownBasis."""
        if key.kind not in (Kind.KEY, Kind.VALUE):
            return
        header = self.header
        chain = chain_for(header, key.layer_idx, key.kind, self._basis)
        piece = chain.decode(raw, piece_of(header, key.start, key.stop), self._device)
        piece = piece if piece.dtype == self._wanted else cast_finite(piece, self._wanted)
        half = (key.layer_idx, key.kind)
        with self._arrived:
            if (key.start, key.stop) == (0, header.seq_len):
                self._halves[half] = piece
            else:
                self._half(half)[:, key.start : key.stop] = piece
            self._missing[half] -= key.stop - key.start
            self._arrived.notify_all()

    def fail(self, failure: BaseException) -> None:
        """Nothing more will come: whoever waits gets `failure`."""
        with self._arrived:
            self._failure = failure
            self._arrived.notify_all()

    def layer(self, layer_idx: int) -> LayerKV:
        """Keys and values [1, num_kv_heads, seq_len, head_dim] of a layer, once all of it is there.

        Raises TransferIncomplete where they do not come, or what ended the transfer.
        """
        halves = ((layer_idx, Kind.KEY), (layer_idx, Kind.VALUE))
        waited_s = 0.0
        with self._arrived:
            while any(self._missing[half] for half in halves):
                if self._failure is not None:
                    raise _as_kvnet_error(self._failure) from self._failure
                if waited_s >= LAYER_DEADLINE_S:
                    raise TransferIncomplete(
                        f"layer {layer_idx}: did not arrive within {LAYER_DEADLINE_S:.0f} s; ask again"
                    )
                self._arrived.wait(_POLL_S)
                waited_s += _POLL_S
            keys, values = (self._halves.pop(half).unsqueeze(0) for half in halves)
        if self.before:
            earlier = self.before[layer_idx]
            keys, values = torch.cat((earlier.keys, keys), -2), torch.cat((earlier.values, values), -2)
        return LayerKV(layer_idx, keys, values)

    def has_layer(self, layer_idx: int) -> bool:
        """Whether all of a layer is there."""
        with self._arrived:
            return not any(self._missing[layer_idx, kind] for kind in (Kind.KEY, Kind.VALUE))

    def _half(self, half: tuple[int, Kind]) -> torch.Tensor:
        geometry = self.header.geometry
        shape = (geometry.num_kv_heads, self.header.seq_len, geometry.head_dim)
        if half not in self._halves:
            self._halves[half] = torch.empty(shape, dtype=self._wanted, device=self._device)
        return self._halves[half]


def _tokens_by_half(header: MemoryHeader) -> dict[tuple[int, Kind], int]:
    """Tokens that keys and values of each layer lack, when nothing is there yet."""
    missing: dict[tuple[int, Kind], int] = {}
    for key in plan_memory(header):
        if key.kind in (Kind.KEY, Kind.VALUE):
            half = (key.layer_idx, key.kind)
            missing[half] = missing.get(half, 0) + key.stop - key.start
    return missing


def _as_kvnet_error(failure: BaseException) -> KvnetError:
    if isinstance(failure, KvnetError):
        return type(failure)(failure.message, details=failure.details)
    return TransferIncomplete("the memory stopped arriving; ask again")
