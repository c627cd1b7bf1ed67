"""Memories in coordinates of a port: their header, their plan, their codes (FORMAT.md §8.5).

Imports nothing of kvnet. What the codes are worth is the port's to say; of it only the rank is read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.second_reader.strict import Refused, digest, parse_strict

MAX_RANK = 1024
_TOKENS_PER_CHUNK = 1000
_MAP_ID = re.compile(r"map_[a-z2-7]{52}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Coordinates:
    """The slots that are sent, ascending, and a row of codes for each."""

    slots: list[int]
    codes: NDArray[np.int64]  # [n_sent, rank]


def check_port(header: dict[str, Any]) -> None:
    """Rule 5 of a port coding, but for fields that no port coding has."""
    coding = header["coding"]
    if coding["keyBits"] != coding["valueBits"] or coding["keyBits"] not in (4, 8):
        raise Refused("malformed_file", "bits that no port coding has")
    if not digest(coding["basis"]) or not 1 <= coding["basisNbytes"] <= 1 << 30:
        raise Refused("malformed_file", "a port coding without its port")
    if header["keySpace"] != "content" or header["attentionHeads"]:
        raise Refused("malformed_file", "coordinates with rotated keys, or attention metadata")
    if not _MAP_ID.fullmatch(header["wMatrixReference"]):
        raise Refused("malformed_file", "coordinates that no map made")


def count_parts(seq_len: int) -> int:
    """How many chunks the plan has."""
    return -(-seq_len // _TOKENS_PER_CHUNK)


def plan(seq_len: int) -> list[tuple[int, str, int, int]]:
    """Layer, kind, start and stop of every section (§3)."""
    starts = range(0, seq_len, _TOKENS_PER_CHUNK)
    return [(0, "coordinates", start, min(seq_len, start + _TOKENS_PER_CHUNK)) for start in starts]


def raw_bounds(n: int) -> tuple[int, int]:
    """The raw lengths that a chunk of n tokens may have, whatever its rank."""
    bitmap = (n + 7) // 8
    return bitmap, bitmap + n * MAX_RANK


def rank_of(port: bytes) -> int:
    """The rank of a port's artefact, a safetensors file: rows of its tensor `basis`."""
    nbytes = int.from_bytes(port[:8], "little")
    table = parse_strict(port[8 : 8 + nbytes], "malformed_file", "the port")
    return int(table["basis"]["shape"][0])


def decode(raws: list[bytes], seq_len: int, rank: int, bits: int) -> Coordinates:
    """The codes of a whole memory."""
    slots: list[int] = []
    rows = []
    for raw, (_, _, start, stop) in zip(raws, plan(seq_len), strict=True):
        n, bitmap_nbytes = stop - start, (stop - start + 7) // 8
        marks = int.from_bytes(raw[:bitmap_nbytes], "little")
        sent = [i for i in range(8 * bitmap_nbytes) if marks >> i & 1]
        row_nbytes = (rank * bits + 7) // 8
        if len(raw) != bitmap_nbytes + len(sent) * row_nbytes:
            raise Refused("malformed_chunk", "another length than its slots need")
        if marks >> n:
            raise Refused("malformed_chunk", "a spare bit that is not zero")
        starts = range(bitmap_nbytes, len(raw), row_nbytes)
        rows += [_codes(raw[at : at + row_nbytes], rank, bits) for at in starts]
        slots += [start + i for i in sent]
    return Coordinates(slots, np.array(rows, np.int64).reshape(len(rows), rank))


def _codes(row: bytes, rank: int, bits: int) -> list[int]:
    parts = list(row) if bits == 8 else [half for byte in row for half in (byte & 15, byte >> 4)]
    if any(parts[rank:]):
        raise Refused("malformed_chunk", "a last half byte that is not zero")
    half = 1 << (bits - 1)
    if half in parts[:rank]:
        raise Refused("malformed_chunk", "the lowest code")
    return [part - 2 * half if part > half else part for part in parts[:rank]]
