"""Group quantization to 8 or 4 bits: one scale, or a minimum and a step, for each group of numbers.

Keys are grouped along tokens, values along channels. Knows no rotation, no compression.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import torch

from kvnet.codec.finite import finite_peak
from kvnet.codec.nibbles import pack_nibbles, unpack_nibbles
from kvnet.codec.piece import Blocks, Piece, ReadBlock, byte_tensor
from kvnet.errors import MalformedChunk

_NUM_PARAMETERS: Final = {8: 1, 4: 2}  # scale; minimum and step
_PARAMETER_NBYTES: Final = 2  # bfloat16
_LEVELS: Final = {8: 127, 4: 16}  # times the largest parameter: no number of a group is larger
_SMALLEST_STEP: Final = 2.0**-120  # smaller ones have no finite reciprocal in float32
_NAN_BITS: Final = 0x7FC00000
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

    @property
    def token_major(self) -> bool:
        """Whether blocks are best laid out token by token."""
        return self.along is Along.CHANNELS

    def encode(self, read: ReadBlock, piece: Piece, device: torch.device) -> tuple[bytes, float]:
        """The chunk's raw bytes (parameters, then codes), and a bound of all its numbers.

        Raises NotFinite for a block with NaN or infinity.
        """
        raw = torch.empty(self._raw_nbytes(piece), dtype=torch.uint8, device=device)
        places, packed = self._cut(raw, piece)
        for start, stop in self._ranges(piece, device):
            numbers = self._arrange(read(start, stop))
            found = [_quantize(group, self.bits) for group in _split(numbers, self.group_size)]
            for place, parameters in zip(places, zip(*found, strict=True), strict=True):
                values = parameters[0] if len(parameters) == 1 else torch.cat(parameters, 1)
                self._parameters_of(place, start, stop).copy_(values)
            self._write_codes(packed, numbers, piece, start, stop)
        peak = max(finite_peak(values, "the cache") for values in places)
        return raw.cpu().numpy().tobytes(), peak * _LEVELS[self.bits]

    def decode(self, raw: bytes | memoryview, piece: Piece, device: torch.device) -> Blocks:
        """Inverse of `encode`.

        Raises MalformedChunk for another length, a negative scale, the code -128 or padding other than
        zero, NotFinite for scales.
        """
        wanted = self._raw_nbytes(piece)
        data = byte_tensor(raw, piece, range(wanted, wanted + 1))
        places, packed = self._cut(data, piece)
        peak = max(finite_peak(values, "a chunk's scales") for values in places)
        if float(places[-1].amin()) < 0:
            raise MalformedChunk("a scale of a chunk is negative; ask for the memory again")
        if self.bits == 8 and int(packed.view(torch.int8).amin()) < -127:
            raise MalformedChunk("a chunk holds the code -128, codes are -127 to 127; ask for it again")
        if self.bits == 4 and piece.num_tokens * piece.num_channels % 2 and int(packed[-1]) > 15:
            raise MalformedChunk("the last half byte of a chunk is not zero; ask for it again")
        return peak * _LEVELS[self.bits], self._blocks(data.to(device), piece, device)

    def _blocks(
        self, data: torch.Tensor, piece: Piece, device: torch.device
    ) -> Iterator[tuple[int, torch.Tensor]]:
        places, packed = self._cut(data, piece)
        for start, stop in self._ranges(piece, device):
            numbers = self._read_codes(packed, piece, start, stop)
            parameters = [self._parameters_of(place, start, stop).float() for place in places]
            done = 0
            for group in _split(numbers, self.group_size):
                mine = [values.narrow(1, done, group.shape[1]).unsqueeze(2) for values in parameters]
                _dequantize(group, mine)
                done += group.shape[1]
            yield start, self._restore(numbers, piece)

    def _ranges(self, piece: Piece, device: torch.device) -> Iterator[tuple[int, int]]:
        """Blocks of whole groups and, of 4-bit codes, of whole bytes."""
        return piece.blocks(device, multiple_of=self.group_size * 8 // self.bits)

    def _raw_nbytes(self, piece: Piece) -> int:
        parameters = _NUM_PARAMETERS[self.bits] * _PARAMETER_NBYTES * math.prod(self.shape(piece))
        return parameters + -(-piece.num_tokens * piece.num_channels * self.bits // 8)

    def _cut(self, raw: torch.Tensor, piece: Piece) -> tuple[list[torch.Tensor], torch.Tensor]:
        """(each kind of parameter, bytes of the codes) as views of a chunk's bytes."""
        shape = self.shape(piece)
        nbytes = _PARAMETER_NBYTES * math.prod(shape)
        count = _NUM_PARAMETERS[self.bits]
        parts = [raw[i * nbytes : (i + 1) * nbytes] for i in range(count)]
        return [part.view(torch.bfloat16).view(shape) for part in parts], raw[count * nbytes :]

    def shape(self, piece: Piece) -> tuple[int, ...]:
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

    def _write_codes(
        self, packed: torch.Tensor, numbers: torch.Tensor, piece: Piece, start: int, stop: int
    ) -> None:
        tokens = numbers.permute(1, 0, 2) if self.along is Along.TOKENS else numbers  # [b, H, D] or [b, H*D]
        first, last = self._code_range(piece, start, stop)
        if self.bits == 8:
            packed[first:last].view(torch.int8).view(tokens.shape).copy_(tokens)
        else:
            codes = torch.empty(tokens.shape, dtype=torch.uint8, device=tokens.device).copy_(tokens)
            packed[first:last] = pack_nibbles(codes.flatten())

    def _read_codes(self, packed: torch.Tensor, piece: Piece, start: int, stop: int) -> torch.Tensor:
        """Inverse of `_write_codes`: float32 numbers."""
        first, last = self._code_range(piece, start, stop)
        part = packed[first:last]
        count = (stop - start) * piece.num_channels
        codes = part.view(torch.int8) if self.bits == 8 else unpack_nibbles(part, count)
        if self.along is Along.CHANNELS:
            return codes.view(stop - start, piece.num_channels).float()
        tokens = codes.view(stop - start, piece.num_kv_heads, piece.head_dim).permute(1, 0, 2)  # [H, b, D]
        return torch.empty(tokens.shape, device=codes.device).copy_(tokens)

    def _code_range(self, piece: Piece, start: int, stop: int) -> tuple[int, int]:
        """Bytes of the codes of tokens start..stop."""
        bits_of_token = piece.num_channels * self.bits
        return start * bits_of_token // 8, -(-stop * bits_of_token // 8)

    def _parameters_of(self, parameters: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        if self.along is Along.CHANNELS:
            return parameters[start:stop]  # [b, K]
        first, last = start // self.group_size, -(-stop // self.group_size)
        return parameters[first:last].permute(1, 0, 2)  # [K, H, D] -> [H, K, D]


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
        scale = _up(torch.maximum(group.amax(2), -group.amin(2)) / 127)
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
    bits = steps.clamp_min(_SMALLEST_STEP).abs().view(torch.int32)
    rounded = bits.clamp_max(_NAN_BITS) + _DROPPED_BITS  # NaN comes with any bits, and must not wrap around
    return (rounded & ~_DROPPED_BITS).view(torch.float32)


def _down(minima: torch.Tensor) -> torch.Tensor:
    """The next bfloat16 at or below, as float32."""
    bits = minima.view(torch.int32)
    away = torch.where(bits < 0, bits + _DROPPED_BITS, bits)  # a negative number grows away from zero
    return (away & ~_DROPPED_BITS).view(torch.float32)
