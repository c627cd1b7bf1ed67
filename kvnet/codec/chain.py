"""The chain that turns one chunk's tensor into raw bytes and back: stages in their only legal order.

    prune heads -> strip rope -> Hadamard -> (group quantization | transform) -> bytes
    prune heads ---------------------------------------------> pack ----------> bytes

Knows no byte compression, no digests, no files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import torch

from kvnet.codec.basis import Basis
from kvnet.codec.finite import finite_peak
from kvnet.codec.grouped import Along, GroupQuantize
from kvnet.codec.mixing import Hadamard, PruneHeads
from kvnet.codec.pack import TORCH_DTYPES, pack, unpack
from kvnet.codec.piece import Blocks, Piece, ReadBlock
from kvnet.codec.rope import RopeStrip, rope_strip
from kvnet.codec.transform import Transform
from kvnet.errors import NotFinite, RequestError, UnknownBasis
from kvnet.types import KeySpace, Kind, MemoryHeader, Scheme

# Coders bound what they make. Stages then enlarge it by at most sqrt(2 * head_dim) < 64, and where keys are
# turned by MAX_ATTENTION_FACTOR, so below this share of a dtype's range nothing can have left it, and only
# above is every number looked at.
_SAFE_SHARE: Final = 1 / 256


class BlockStage(Protocol):
    """float32 [num_kv_heads, b, head_dim] to the same shape, token ranges independent of each other."""

    def encode(self, block: torch.Tensor, start: int, piece: Piece) -> torch.Tensor: ...

    def decode(self, block: torch.Tensor, start: int, piece: Piece) -> torch.Tensor: ...


class Coder(Protocol):
    """The last stage: blocks to a chunk's raw bytes."""

    def encode(self, read: ReadBlock, piece: Piece, device: torch.device) -> tuple[bytes, float]: ...

    def decode(self, raw: bytes | memoryview, piece: Piece, device: torch.device) -> Blocks: ...


@dataclass(frozen=True, slots=True)
class PackChain:
    """Raw coding: the numbers as they are, bit for bit."""

    prune: PruneHeads | None = None

    def encode(self, tensor: torch.Tensor, piece: Piece) -> bytes:
        """Raw bytes of [num_kv_heads, n, head_dim]. Raises NotFinite."""
        finite_peak(tensor, "the cache")
        return pack(tensor if self.prune is None else self.prune.encode(tensor, 0, piece))

    def decode(
        self, raw: bytes | memoryview, piece: Piece, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """Inverse of `encode`. Raises MalformedChunk for another length, NotFinite."""
        tensor = unpack(raw, piece.geometry, piece.num_tokens)
        finite_peak(tensor, "a chunk")
        return tensor.to(device)


@dataclass(frozen=True, slots=True)
class QuantizeChain:
    """Stages in order, and the coder that ends them. Raises ValueError for any other order."""

    stages: tuple[BlockStage, ...]
    coder: GroupQuantize | Transform

    def __post_init__(self) -> None:
        places = [_ORDER.index(type(stage)) if type(stage) in _ORDER else -1 for stage in self.stages]
        if -1 in places or places != sorted(set(places)):
            listed = ", ".join(type(stage).__name__ for stage in self.stages)
            raise ValueError(f"stages are [{listed}], their order is prune, strip rope, Hadamard")
        if isinstance(self.coder, Transform) and any(isinstance(stage, Hadamard) for stage in self.stages):
            raise ValueError("a transform has its own rotation, Hadamard does not go before it")

    def encode(self, tensor: torch.Tensor, piece: Piece) -> bytes:
        """Raw bytes of [num_kv_heads, n, head_dim] in the piece's dtype, any stride, on any device.

        Raises NotFinite for a tensor with NaN or infinity, RequestError for numbers so large that
        their decoded selves would overflow.
        """
        by_token = self.coder.token_major and not self.stages  # stages are fastest head by head

        def read(start: int, stop: int) -> torch.Tensor:
            block = _float_copy(tensor[:, start:stop], token_major=by_token)
            for stage in self.stages:
                block = stage.encode(block, start, piece)
            return block

        raw, peak = self.coder.encode(read, piece, tensor.device)
        if peak > _SAFE_SHARE * torch.finfo(tensor.dtype).max:
            self._refuse_overflow(raw, piece, peak)
        return raw

    def decode(
        self, raw: bytes | memoryview, piece: Piece, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """Inverse of `encode`, up to quantization: [num_kv_heads, n, head_dim] in the piece's dtype.

        Raises MalformedChunk for bytes that break FORMAT.md §8, NotFinite for what they decode to.
        """
        shape = (piece.num_kv_heads, piece.num_tokens, piece.head_dim)
        where = torch.device(device)
        tensor = torch.empty(shape, dtype=TORCH_DTYPES[piece.dtype], device=where)
        bound, blocks = self.coder.decode(raw, piece, where)
        certain = bound <= _SAFE_SHARE * torch.finfo(tensor.dtype).max
        for start, numbers in blocks:
            block = numbers
            for stage in reversed(self.stages):
                block = stage.decode(block, start, piece)
            tensor[:, start : start + block.shape[1]] = block
        if not certain:
            finite_peak(tensor, "a decoded chunk")
        return tensor

    def _refuse_overflow(self, raw: bytes, piece: Piece, peak: float) -> None:
        try:
            self.decode(raw, piece)
        except NotFinite as exc:
            raise RequestError(
                f"the cache holds numbers up to {peak:.3g}, which {piece.dtype} cannot hold once they are "
                "quantized; send it with the preset exact"
            ) from exc


Chain = PackChain | QuantizeChain
_ORDER: Final[tuple[type, ...]] = (PruneHeads, RopeStrip, Hadamard)


def chain_for(header: MemoryHeader, layer_idx: int, kind: Kind, basis: Basis | None = None) -> Chain:
    """The chain of one layer's keys or values, by the memory's coding.

    The header has passed `kvnet.plan.check_coding`. Raises UnknownBasis for a transform whose basis is
    not the one given.
    """
    coding = header.coding
    pruned = tuple(pair[1] for pair in coding.pruned_heads if pair[0] == layer_idx)
    prune = PruneHeads(pruned) if pruned else None
    if coding.scheme is Scheme.RAW:
        return PackChain(prune)
    is_key = kind is Kind.KEY
    strips = is_key and header.key_space is KeySpace.CONTENT
    num_read = header.start_pos + header.seq_len
    strip = rope_strip(header.geometry.rope, header.geometry.head_dim, num_read) if strips else None
    if coding.scheme is Scheme.TRANSFORM:
        return QuantizeChain(_present(prune, strip), _transform(header, layer_idx, kind, basis))
    bits = coding.key_bits if is_key else coding.value_bits
    along = Along.TOKENS if is_key else Along.CHANNELS
    mix = Hadamard() if coding.hadamard else None
    return QuantizeChain(_present(prune, strip, mix), GroupQuantize(along, bits, coding.group_size))


def _float_copy(block: torch.Tensor, *, token_major: bool) -> torch.Tensor:
    """A float32 copy of [num_kv_heads, b, head_dim], laid out in memory token by token or head by head."""
    ordered = block.permute(1, 0, 2) if token_major else block
    copy = ordered.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return copy.permute(1, 0, 2) if token_major else copy


def piece_of(header: MemoryHeader, start: int, stop: int) -> Piece:
    """The piece of a memory that a chunk of these tokens holds."""
    return Piece(header.geometry, start, stop - start, header.seq_len, header.start_pos)


def _transform(header: MemoryHeader, layer_idx: int, kind: Kind, basis: Basis | None) -> Transform:
    coding = header.coding
    if basis is None or basis.digest != coding.basis:
        raise UnknownBasis(
            f"the memory was coded with calibration {coding.basis[:19]}…, which is not here; "
            "ask its sender for the basis, or for another preset"
        )
    return Transform(basis.layers[layer_idx, kind], coding.sink_tokens, coding.recent_tokens)


def _present(*stages: BlockStage | None) -> tuple[BlockStage, ...]:
    return tuple(stage for stage in stages if stage is not None)
