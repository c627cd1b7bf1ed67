"""Coordinates of slots in a port as a chunk's raw bytes, and back: which slots are sent, and their codes.

Knows no port and no steps: a code is worth what the port's steps say. Source: FORMAT.md §8.5.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from kvnet.codec.nibbles import pack_nibbles, unpack_nibbles
from kvnet.errors import MalformedChunk
from kvnet.plan import MAX_PORT_RANK

MAX_CODES: Final = {8: 127, 4: 7}  # by bits; the one code below the negative of it is never used
_SIGN_NIBBLE: Final = 8


def pack_coordinates(codes: torch.Tensor, sent: torch.Tensor, bits: int) -> bytes:
    """The raw bytes of a chunk: a bitmap of the slots that are sent, then their codes.

    `codes` is int8 [n_sent, rank], in the order of the slots, each within ±127 (8 bits) or ±7 (4 bits);
    `sent` is bool [n], true n_sent times. Raises ValueError for anything else.
    """
    _check_shape(codes.shape[-1], bits)
    fits = codes.dtype is torch.int8 and codes.ndim == 2 and sent.dtype is torch.bool and sent.ndim == 1
    if not fits or len(codes) != int(sent.sum()):
        raise ValueError(f"codes {tuple(codes.shape)} of {codes.dtype}, for {int(sent.sum())} slots")
    if codes.numel() and int(codes.to(torch.int16).abs().amax()) > MAX_CODES[bits]:
        raise ValueError(f"a code beyond {MAX_CODES[bits]}, which {bits} bits do not hold")
    bitmap = np.packbits(sent.cpu().numpy(), bitorder="little").tobytes()
    rows = codes.cpu().view(torch.uint8) if bits == 8 else _pack_rows(codes.cpu())
    return bitmap + rows.contiguous().numpy().tobytes()


def unpack_coordinates(
    raw: bytes | memoryview, num_tokens: int, rank: int, bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inverse of `pack_coordinates`: (codes int8 [n_sent, rank], sent bool [num_tokens]).

    Raises MalformedChunk for another length, spare bits or a half byte of padding that are not zero, and
    the codes -128 and -8.
    """
    _check_shape(rank, bits)
    data = np.frombuffer(raw, dtype=np.uint8)
    bitmap_nbytes, row_nbytes = -(-num_tokens // 8), -(-rank * bits // 8)
    slots = np.unpackbits(data[:bitmap_nbytes], bitorder="little")
    num_sent = int(slots.sum())
    wanted = bitmap_nbytes + num_sent * row_nbytes
    if len(data) != wanted:
        raise MalformedChunk(
            f"a chunk of {num_tokens} slots, {num_sent} of them sent, has {len(data)} bytes, {rank} codes of "
            f"{bits} bits each need {wanted}; ask for it again"
        )
    if slots[num_tokens:].any():
        raise MalformedChunk(f"a chunk of {num_tokens} slots marks one beyond them as sent; ask for it again")
    sent = torch.from_numpy(slots[:num_tokens].astype(np.bool_))
    rows = torch.from_numpy(data[bitmap_nbytes:].reshape(num_sent, row_nbytes).copy())
    codes = rows.view(torch.int8) if bits == 8 else _unpack_rows(rows, rank)
    if codes.numel() and int(codes.amin()) < -MAX_CODES[bits]:
        most = MAX_CODES[bits]
        raise MalformedChunk(
            f"a chunk holds the code {-most - 1}, wanted -{most} to {most}; ask for it again"
        )
    return codes, sent


def _check_shape(rank: int, bits: int) -> None:
    if bits not in MAX_CODES or not 1 <= rank <= MAX_PORT_RANK:
        raise ValueError(f"{rank} coordinates of {bits} bits; there are 1 to {MAX_PORT_RANK} of 8 or 4")


def _pack_rows(codes: torch.Tensor) -> torch.Tensor:
    """int8 [n, rank] of -7..7 as nibbles, each row in whole bytes: uint8, flat."""
    nibbles = codes.view(torch.uint8) & 0x0F
    if codes.shape[1] % 2:
        nibbles = torch.nn.functional.pad(nibbles, (0, 1))  # [n, rank + 1]
    return pack_nibbles(nibbles.flatten())


def _unpack_rows(rows: torch.Tensor, rank: int) -> torch.Tensor:
    """Inverse of `_pack_rows`, for bytes from outside: uint8 [n, row_nbytes] to int8 [n, rank]."""
    nibbles = unpack_nibbles(rows.flatten(), 2 * rows.numel()).view(len(rows), 2 * rows.shape[1])
    if bool(nibbles[:, rank:].any()):
        raise MalformedChunk("a slot of a chunk ends in half a byte that is not zero; ask for it again")
    return (nibbles[:, :rank] ^ _SIGN_NIBBLE).to(torch.int8) - _SIGN_NIBBLE
