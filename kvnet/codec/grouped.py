"""Group quantization to 8 or 4 bits: one scale, or a minimum and a step, for each group of numbers.

Keys are grouped along tokens, values along channels. Knows no rotation, no compression.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import torch

from kvnet.codec.finite import finite_peak
from kvnet.codec.nibbles import pack_nibbles, unpack_nibbles
from kvnet.codec.piece import Blocks, Piece, ReadBlock, byte_tensor
from kvnet.errors import MalformedChunk

_LEVELS: Final = {8: 127, 4: 16}  # times the largest parameter: no number of a group is larger
_SMALLEST_STEP: Final = 2.0**-120  # smaller ones have no finite reciprocal in float32
_DROPPED_BITS: Final = 0xFFFF  # of a float32 that becomes a bfloat16


class Along(StrEnum):
    """Which numbers share a group."""

    TOKENS = "tokens"  # one channel over several tokens: keys
    CHANNELS = "channels"  # one token over several channels: values


@dataclass(frozen=True, slots=True)
class GroupQuantize:
    """`group_size` numbers share one scale (8 bits), or one minimum and one step (4 bits).

    |x - decoded| is at most half a step, since steps are rounded up and minima down.
    Source: FORMAT.md §8.2; keys per channel before rotation, values per token: KIVI (arXiv:2402.02750),
    KVQuant (arXiv:2401.18079).
    """

    along: Along
    bits: int
    group_size: int

    def __post_init__(self) -> None:
        if self.bits not in (4, 8) or self.group_size < 1:
            raise ValueError(f"groups of {self.group_size} numbers of {self.bits} bits; 8 and 4 bits exist")

    def encode(self, read: ReadBlock, piece: Piece, device: torch.device) -> tuple[bytes, float]:
        """The chunk's raw bytes (parameters, then codes), and a bound of all its numbers.

        Raises NotFinite for a block with NaN or infinity.
        """
        store = _Store.empty(self, piece, device)
        for start, stop in piece.blocks(device, multiple_of=self.group_size):
            numbers = self._arrange(read(start, stop))
            found = [_quantize(group, self.bits) for group in _split(numbers, self.group_size)]
            for place, parameters in zip(store.parameters, zip(*found, strict=True), strict=True):
                self._parameters_of(place, start, stop).copy_(torch.cat(parameters, 1))
            self._codes_of(store.codes, start, stop).copy_(numbers)
        peak = max(finite_peak(parameters, "the cache") for parameters in store.parameters)
        return store.to_bytes(), peak * _LEVELS[self.bits]

    def decode(self, raw: bytes | memoryview, piece: Piece, device: torch.device) -> Blocks:
        """Inverse of `encode`.

        Raises MalformedChunk for another length, a negative scale or the code -128, NotFinite for scales.
        """
        store = _Store.parse(self, piece, raw, device)
        peak = max(finite_peak(values, "a chunk's scales") for values in store.parameters)
        return peak * _LEVELS[self.bits], self._blocks(store, piece, device)

    def _blocks(
        self, store: _Store, piece: Piece, device: torch.device
    ) -> Iterator[tuple[int, torch.Tensor]]:
        for start, stop in piece.blocks(device, multiple_of=self.group_size):
            codes = self._codes_of(store.codes, start, stop)
            numbers = torch.empty(codes.shape, device=device).copy_(codes)
            parameters = [self._parameters_of(place, start, stop).float() for place in store.parameters]
            done = 0
            for group in _split(numbers, self.group_size):
                mine = [values.narrow(1, done, group.shape[1]).unsqueeze(2) for values in parameters]
                _dequantize(group, mine)
                done += group.shape[1]
            yield start, self._restore(numbers, piece)

    def shapes(self, piece: Piece) -> tuple[int, ...]:
        """Shape of one kind of parameter: [groups, num_kv_heads, head_dim] or [tokens, groups]."""
        if self.along is Along.TOKENS:
            return (-(-piece.num_tokens // self.group_size), piece.num_kv_heads, piece.head_dim)
        return (piece.num_tokens, -(-piece.num_channels // self.group_size))

    # Numbers are worked on as [x, y, ...] with groups along y: [num_kv_heads, b, head_dim] or [b, channels].

    def _arrange(self, block: torch.Tensor) -> torch.Tensor:
        if self.along is Along.TOKENS:
            return block
        return block.permute(1, 0, 2).flatten(1)  # [H, b, D] -> [b, H*D]

    def _restore(self, numbers: torch.Tensor, piece: Piece) -> torch.Tensor:
        if self.along is Along.TOKENS:
            return numbers
        tokens = numbers.view(-1, piece.num_kv_heads, piece.head_dim)  # [b, H*D] -> [b, H, D]
        return tokens.permute(1, 0, 2)

    def _codes_of(self, codes: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        rows = codes[start:stop]  # [b, H, D]
        return rows.permute(1, 0, 2) if self.along is Along.TOKENS else rows.flatten(1)

    def _parameters_of(self, parameters: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        if self.along is Along.CHANNELS:
            return parameters[start:stop]  # [b, K]
        first, last = start // self.group_size, -(-stop // self.group_size)
        return parameters[first:last].permute(1, 0, 2)  # [K, H, D] -> [H, K, D]


@dataclass(frozen=True, slots=True)
class _Store:
    """The parts of a chunk: views of `raw`, but for 4-bit codes, which are kept one to a byte."""

    raw: torch.Tensor  # uint8 [raw_nbytes]
    parameters: tuple[torch.Tensor, ...]  # bfloat16: (scales,) or (minima, steps)
    codes: torch.Tensor  # int8 or uint8 [n, num_kv_heads, head_dim]

    @classmethod
    def empty(cls, coder: GroupQuantize, piece: Piece, device: torch.device) -> _Store:
        """Room for a chunk."""
        raw = torch.empty(_raw_nbytes(coder, piece), dtype=torch.uint8, device=device)
        parameters, packed = _cut(coder, piece, raw)
        if coder.bits == 8:
            return cls(raw, parameters, packed.view(torch.int8).view(piece.token_shape))
        return cls(raw, parameters, torch.empty(piece.token_shape, dtype=torch.uint8, device=device))

    @classmethod
    def parse(
        cls, coder: GroupQuantize, piece: Piece, data: bytes | memoryview, device: torch.device
    ) -> _Store:
        """The parts of a chunk that came from outside, checked."""
        wanted = _raw_nbytes(coder, piece)
        raw = byte_tensor(data, piece, range(wanted, wanted + 1)).to(device)
        parameters, packed = _cut(coder, piece, raw)
        if bool((parameters[-1] < 0).any()):
            raise MalformedChunk("a scale of a chunk is negative; ask for the memory again")
        if coder.bits == 4:
            codes = unpack_nibbles(packed, piece.num_tokens * piece.num_channels)
            return cls(raw, parameters, codes.view(piece.token_shape))
        signed = packed.view(torch.int8)
        if int(signed.amin()) == -128:
            raise MalformedChunk("a chunk holds the code -128, codes are -127 to 127; ask for it again")
        return cls(raw, parameters, signed.view(piece.token_shape))

    def to_bytes(self) -> bytes:
        """The chunk's raw bytes."""
        if self.codes.dtype == torch.uint8:
            packed = pack_nibbles(self.codes.flatten())
            self.raw[self.raw.numel() - packed.numel() :] = packed
        return self.raw.cpu().numpy().tobytes()


def _raw_nbytes(coder: GroupQuantize, piece: Piece) -> int:
    per_group = 2 if coder.bits == 8 else 4
    num_groups = torch.Size(coder.shapes(piece)).numel()
    return num_groups * per_group + -(-piece.num_tokens * piece.num_channels * coder.bits // 8)


def _cut(
    coder: GroupQuantize, piece: Piece, raw: torch.Tensor
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """(parameters, bytes of the codes) as views of a chunk's bytes."""
    shape = coder.shapes(piece)
    nbytes = 2 * torch.Size(shape).numel()
    count = 1 if coder.bits == 8 else 2
    parameters = tuple(
        raw[i * nbytes : (i + 1) * nbytes].view(torch.bfloat16).view(shape) for i in range(count)
    )
    return parameters, raw[count * nbytes :]


def _split(numbers: torch.Tensor, group_size: int) -> Iterator[torch.Tensor]:
    """Views [x, groups, group_size, ...] of [x, y, ...]: the whole groups, then the shorter last one."""
    num_whole = numbers.shape[1] // group_size
    whole = num_whole * group_size
    if num_whole:
        size, rest = numbers.shape[0], numbers.shape[2:]
        yield numbers.narrow(1, 0, whole).view(size, num_whole, group_size, *rest)
    if whole < numbers.shape[1]:
        yield numbers.narrow(1, whole, numbers.shape[1] - whole).unsqueeze(1)


def _quantize(group: torch.Tensor, bits: int) -> tuple[torch.Tensor, ...]:
    """Replace float32 [x, groups, g, ...] by its codes, in place; returns its parameters [x, groups, ...]."""
    if bits == 8:
        scale = _up(group.abs().amax(2) / 127)
        group.mul_(scale.reciprocal().unsqueeze(2)).round_()
        return (scale,)
    minimum = _down(group.amin(2))
    step = _up((group.amax(2) - minimum) / 15)
    group.sub_(minimum.unsqueeze(2)).mul_(step.reciprocal().unsqueeze(2)).round_()
    return minimum, step


def _dequantize(group: torch.Tensor, parameters: list[torch.Tensor]) -> None:
    """Inverse of `_quantize`, in place."""
    group.mul_(parameters[-1])
    if len(parameters) == 2:
        group.add_(parameters[0])


def _up(steps: torch.Tensor) -> torch.Tensor:
    """The next bfloat16 at or above a step (not negative), as float32. NaN stays NaN."""
    bits = steps.clamp_min(_SMALLEST_STEP).view(torch.int32)
    return ((bits + _DROPPED_BITS) & ~_DROPPED_BITS).view(torch.float32)


def _down(minima: torch.Tensor) -> torch.Tensor:
    """The next bfloat16 at or below, as float32."""
    bits = minima.view(torch.int32)
    away = torch.where(bits < 0, bits + _DROPPED_BITS, bits)  # a negative number grows away from zero
    return (away & ~_DROPPED_BITS).view(torch.float32)
