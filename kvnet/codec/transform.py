"""Transform coding: a calibrated basis, one code per component, a few tokens exact.

Knows nothing of how the basis was found. Source: FORMAT.md §8.3; KVTC (arXiv:2511.01815) has the shape of
it, with another metric and another entropy coder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch

from kvnet.codec.basis import LayerBasis
from kvnet.codec.finite import finite_peak
from kvnet.codec.piece import Blocks, Piece, ReadBlock, byte_tensor
from kvnet.errors import MalformedChunk
from kvnet.plan import SPARE_EXACT_SHARE
from kvnet.types import DType

_MAX_CODE: Final = 127
_COUNT_NBYTES: Final = 4
_INDEX_NBYTES: Final = 4
_EXACT_NBYTES: Final = 2


@dataclass(frozen=True, slots=True)
class Transform:
    """Rows of a token's channels as integer coordinates in a basis, and the first and last rows exact."""

    basis: LayerBasis
    sink_tokens: int
    recent_tokens: int

    @property
    def token_major(self) -> bool:
        """Whether blocks are best laid out token by token."""
        return True

    def encode(self, read: ReadBlock, piece: Piece, device: torch.device) -> tuple[bytes, float]:
        """The chunk's raw bytes (exact tokens, then the codes component by component), and its peak.

        Raises NotFinite for a block with NaN or infinity, or an exact token beyond its 16 bits.
        """
        rows = torch.empty(piece.num_tokens, piece.num_channels, device=device)
        for start, stop in piece.blocks(device):
            rows[start:stop] = read(start, stop).permute(1, 0, 2).flatten(1)  # [H, b, D] -> [b, H*D]
        peak = finite_peak(rows, "the cache")
        mean, forward = self.basis.mean.to(device), self.basis.forward.to(device)
        codes = ((rows - mean) @ forward).round_()  # [n, r]
        exact = self._exact_tokens(codes.abs().amax(1), piece)
        coded = torch.ones(piece.num_tokens, dtype=torch.bool, device=device)
        coded[exact] = False
        columns = codes[coded].clamp_(-_MAX_CODE, _MAX_CODE).T  # [r, n - |E|]
        exact_rows = rows[exact].to(_exact_dtype(piece))
        if exact.numel():
            finite_peak(exact_rows, "an exact token")
        parts = (
            torch.tensor([exact.numel()], dtype=torch.int32).view(torch.uint8),
            exact.to(torch.int32).cpu().view(torch.uint8),
            exact_rows.cpu().flatten().view(torch.uint8),
            columns.to(torch.int8, memory_format=torch.contiguous_format).cpu().flatten().view(torch.uint8),
        )
        return torch.cat(parts).numpy().tobytes(), peak

    def decode(self, raw: bytes | memoryview, piece: Piece, device: torch.device) -> Blocks:
        """Inverse of `encode`.

        Raises MalformedChunk for lengths, counts or indices that FORMAT.md does not allow and for the
        code -128, NotFinite for exact rows.
        """
        exact, exact_rows, codes = self._parse(raw, piece)
        rows = torch.empty(piece.num_tokens, piece.num_channels, device=device)
        coded = torch.ones(piece.num_tokens, dtype=torch.bool)
        coded[exact] = False
        mean, backward = self.basis.mean.to(device), self.basis.backward.to(device)
        numbers = codes.to(device).float()
        if exact.numel():
            rows[coded.to(device)] = torch.addmm(mean, numbers.T, backward)  # [n - |E|, C]
            rows[exact.to(device)] = exact_rows.to(device).float()
        else:
            torch.addmm(mean, numbers.T, backward, out=rows)
        tokens = rows.view(piece.token_shape)
        blocks = ((a, tokens[a:b].permute(1, 0, 2)) for a, b in piece.blocks(device))  # -> [H, b, D]
        return math.inf, blocks

    def _forced(self, piece: Piece) -> torch.Tensor:
        """Whether each token of the chunk is among the memory's first or last: bool [n]."""
        places = torch.arange(piece.start, piece.start + piece.num_tokens)
        return (places < self.sink_tokens) | (places >= piece.seq_len - self.recent_tokens)

    def _exact_tokens(self, peaks: torch.Tensor, piece: Piece) -> torch.Tensor:
        """Tokens to keep as they are, ascending: the forced ones, and of the outliers the worst."""
        exact = self._forced(piece).to(peaks.device)
        outside = peaks.masked_fill(exact, 0)
        worst = outside.topk(min(piece.num_tokens, piece.num_tokens // SPARE_EXACT_SHARE))
        exact[worst.indices[worst.values > _MAX_CODE]] = True
        return exact.nonzero().flatten()

    def _parse(
        self, raw: bytes | memoryview, piece: Piece
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(exact tokens int64 [e], their rows [e, C], codes int8 [r, n - e]) of a chunk from outside."""
        num_tokens, channels, rank = piece.num_tokens, piece.num_channels, self.basis.rank
        largest = num_tokens * (_INDEX_NBYTES + _EXACT_NBYTES * channels + rank)
        data = byte_tensor(raw, piece, range(_COUNT_NBYTES, _COUNT_NBYTES + largest + 1))
        num_exact = int(data[:_COUNT_NBYTES].view(torch.int32)) & 0xFFFFFFFF
        most = min(num_tokens, self.sink_tokens + self.recent_tokens + num_tokens // SPARE_EXACT_SHARE)
        if num_exact > most:
            raise MalformedChunk(
                f"a chunk of {num_tokens} tokens keeps {num_exact} exact, at most {most}; ask for it again"
            )
        ends = [_COUNT_NBYTES + _INDEX_NBYTES * num_exact]
        ends.append(ends[0] + _EXACT_NBYTES * channels * num_exact)
        ends.append(ends[1] + rank * (num_tokens - num_exact))
        if data.numel() != ends[2]:
            raise MalformedChunk(
                f"a chunk of {num_tokens} tokens, {num_exact} of them exact, has {data.numel()} bytes, its "
                f"basis needs {ends[2]}; ask for it again"
            )
        exact = data[_COUNT_NBYTES : ends[0]].view(torch.int32).long()
        self._refuse_bad_order(exact, piece)
        rows = data[ends[0] : ends[1]].view(_exact_dtype(piece)).view(num_exact, channels)
        if num_exact:
            finite_peak(rows, "an exact token of a chunk")
        codes = data[ends[1] :].view(torch.int8).view(rank, num_tokens - num_exact)
        if codes.numel() and int(codes.amin()) < -_MAX_CODE:
            raise MalformedChunk("a chunk holds the code -128, codes are -127 to 127; ask for it again")
        return exact, rows, codes

    def _refuse_bad_order(self, exact: torch.Tensor, piece: Piece) -> None:
        inside = bool(((exact >= 0) & (exact < piece.num_tokens)).all())
        if not inside or not bool((exact.diff() > 0).all()):
            raise MalformedChunk("the exact tokens of a chunk are not ascending within it; ask for it again")
        forced = self._forced(piece)
        forced[exact] = False
        if bool(forced.any()):
            raise MalformedChunk("a chunk lacks first or last tokens that are kept exact; ask for it again")


def _exact_dtype(piece: Piece) -> torch.dtype:
    return torch.bfloat16 if piece.dtype is DType.BFLOAT16 else torch.float16
