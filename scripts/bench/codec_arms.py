"""The ways of putting a cache on the wire that the codec bench compares. Knows no models, no questions."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol

import safetensors.torch
import torch

from kvnet.codec.basis import Basis
from kvnet.codec.chain import chain_for, piece_of
from kvnet.codec.presets import Preset
from kvnet.format.compress import compress, decompress, suited_compression
from kvnet.model.cache import LayerKV
from kvnet.model.memory import encode_memory, pack_memory, unpack_memory
from kvnet.model.quality import count_wire_nbytes
from kvnet.plan import plan_memory
from kvnet.types import Coding, Compression, DType, Kind, RawMemory

PLAIN: Final = Preset("raw", Coding(), Compression.NONE)


class Arm(Protocol):
    """One row of the table."""

    @property
    def name(self) -> str: ...

    def code(self, memory: RawMemory) -> tuple[int, RawMemory]:
        """Bytes on the wire, and the memory as the receiver has it."""

    def time_both(self, memory: RawMemory, repeats: int) -> tuple[float, float]:
        """Seconds to encode the memory's layers to wire bytes, and to decode them; the fastest of each."""


@dataclass(frozen=True, slots=True)
class PresetArm:
    """A chain of kvnet's and its byte compression."""

    name: str
    preset: Preset
    dtype: DType
    basis: Basis | None = None
    pruned_heads: tuple[tuple[int, int], ...] = ()

    def code(self, memory: RawMemory) -> tuple[int, RawMemory]:
        coded = self._encode(memory)
        return count_wire_nbytes(coded, self.preset), coded

    def time_both(self, memory: RawMemory, repeats: int) -> tuple[float, float]:
        coded = self._encode(memory)
        header = coded.header
        layers = unpack_memory(encode_memory(memory, PLAIN, dtype=self.dtype))
        plan = [key for key in plan_memory(header) if key.kind in (Kind.KEY, Kind.VALUE)]
        halves = [
            layers[k.layer_idx].keys if k.kind is Kind.KEY else layers[k.layer_idx].values for k in plan
        ]
        tensors = [half[0, :, k.start : k.stop] for k, half in zip(plan, halves, strict=True)]
        chains = [chain_for(header, k.layer_idx, k.kind, self.basis) for k in plan]
        pieces = [piece_of(header, k.start, k.stop) for k in plan]
        wanted = suited_compression(self.preset.compression, header.coding, Kind.KEY)
        itemsize = header.geometry.dtype.itemsize

        def encode() -> list[tuple[int, Compression, bytes | memoryview]]:
            sent = []
            for chain, tensor, piece in zip(chains, tensors, pieces, strict=True):
                raw = chain.encode(tensor, piece)
                used, wire = compress(raw, wanted, level=self.preset.level, itemsize=itemsize)
                sent.append((len(raw), used, wire))
            return sent

        def decode() -> None:
            for chain, piece, (nbytes, used, wire) in zip(chains, pieces, sent, strict=True):
                chain.decode(decompress(wire, used, nbytes, itemsize=itemsize), piece)

        sent = encode()
        return _fastest_s(encode, repeats), _fastest_s(decode, repeats)

    def _encode(self, memory: RawMemory) -> RawMemory:
        return encode_memory(
            memory, self.preset, basis=self.basis, dtype=self.dtype, pruned_heads=self.pruned_heads
        )


@dataclass(frozen=True, slots=True)
class BytesArm:
    """Someone else's way: each layer's float16 tensors to bytes and back."""

    name: str
    dump: Callable[[dict[str, torch.Tensor]], bytes]
    load: Callable[[bytes], dict[str, torch.Tensor]]

    def code(self, memory: RawMemory) -> tuple[int, RawMemory]:
        dumped = [self.dump(layer) for layer in _tensors(memory)]
        layers = [
            LayerKV(i, *(self.load(data)[name].float()[None] for name in ("keys", "values")))
            for i, data in enumerate(dumped)
        ]
        header = memory.header
        geometry = replace(header.geometry, dtype=DType.FLOAT32)
        decoded = pack_memory(
            layers, fingerprint=header.fingerprint, geometry=geometry, token_ids=range(header.seq_len)
        )
        return sum(map(len, dumped)), decoded

    def time_both(self, memory: RawMemory, repeats: int) -> tuple[float, float]:
        layers = list(_tensors(memory))
        dumped = [self.dump(layer) for layer in layers]
        return (
            _fastest_s(lambda: [self.dump(layer) for layer in layers], repeats),
            _fastest_s(lambda: [self.load(data) for data in dumped], repeats),
        )


def baselines() -> tuple[Arm, ...]:
    """What one would do without kvnet's codec."""
    return (
        PresetArm("raw fp16", PLAIN, DType.FLOAT16),
        BytesArm("torch.save", _torch_save, _torch_load),
        BytesArm("safetensors", safetensors.torch.save, safetensors.torch.load),
        PresetArm("zstd-3", replace(PLAIN, compression=Compression.ZSTD, level=3), DType.FLOAT16),
        BytesArm("int8 per token", _int8_dump, _int8_load),
    )


def _tensors(memory: RawMemory) -> Iterator[dict[str, torch.Tensor]]:
    for layer in unpack_memory(memory, dtype=DType.FLOAT16):
        yield {"keys": layer.keys[0].contiguous(), "values": layer.values[0].contiguous()}


def _torch_save(tensors: dict[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def _torch_load(data: bytes) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(io.BytesIO(data), weights_only=True)
    return loaded


def _int8_dump(tensors: dict[str, torch.Tensor]) -> bytes:
    """One float16 scale for each token and head, rotated keys as they are."""
    coded = {}
    for name, tensor in tensors.items():
        numbers = tensor.float()
        scale = (numbers.abs().amax(-1, keepdim=True) / 127).half().float().clamp_min(2**-14)
        coded[name] = (numbers / scale).round().clamp(-127, 127).to(torch.int8)
        coded[f"{name}.scale"] = scale.half()
    return safetensors.torch.save(coded)


def _int8_load(data: bytes) -> dict[str, torch.Tensor]:
    coded = safetensors.torch.load(data)
    return {n: (coded[n].float() * coded[f"{n}.scale"].float()).half() for n in ("keys", "values")}


def _fastest_s(act: Callable[[], object], repeats: int) -> float:
    act()
    seconds: list[float] = []
    for _ in range(repeats):
        began = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - began)
    return min(seconds)  # whatever else this machine does can only slow a run down
