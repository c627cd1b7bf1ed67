"""The second, independent reader of `.awkg` version 3. Source: FORMAT.md §7 and §8, and nothing else.

Imports nothing of kvnet. Refuses in the order of §7.2, so both readers must give the same code for the same
bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.second_reader import chunks, port, rope
from tests.second_reader.basis import Basis, read_basis
from tests.second_reader.header import check_coding, check_repeats, check_schema, check_table
from tests.second_reader.strict import Refused, blake3_of, check_signature, key_of, parse_strict, sha256_text

MAX_HEADER_NBYTES = 1 << 20
SIGNATURE_NBYTES = 64
SIGNATURE_TYPE = "kvnet/awkg/v3"


@dataclass(frozen=True, slots=True)
class Memory:
    """A whole file, checked and decoded. Arrays are [num_kv_heads, seq_len, head_dim], one a layer.

    A port-coded one has coordinates instead of keys and values.
    """

    header: dict[str, Any]
    keys: list[NDArray[np.float32]]
    values: list[NDArray[np.float32]]
    attention: list[chunks.Attention]
    coordinates: port.Coordinates | None = None


def read(source: str | Path | bytes, basis: bytes | None = None) -> Memory:
    """Read one file by every rule of §7.2. Raises Refused.

    A transform-coded memory is decoded with `basis`, the bytes that its header names; without them it is
    refused as `unknown_basis` once everything before rule 12 holds. So is a port-coded one with its port, and
    as `unknown_alignment`.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    header, sections_at = read_head(data)
    raws = _read_sections(header, data[sections_at:-SIGNATURE_NBYTES])
    return _decode(header, raws, basis)


def read_sections(data: bytes) -> list[bytes]:
    """The raw bytes of every section: rules 1 to 11."""
    header, sections_at = read_head(data)
    return _read_sections(header, data[sections_at:-SIGNATURE_NBYTES])


def read_head(data: bytes) -> tuple[dict[str, Any], int]:
    """The header, defaults filled in, and where the sections begin: rules 1 to 8."""
    if len(data) < 10 or data[:4] != b"AWKG":
        raise Refused("malformed_file", "not a memory file")
    if int.from_bytes(data[4:6], "little") != 3:
        raise Refused("unsupported_format", "another format version")
    header_nbytes = int.from_bytes(data[6:10], "little")
    sections_at = 10 + header_nbytes
    if not 2 <= header_nbytes <= MAX_HEADER_NBYTES or len(data) < sections_at + SIGNATURE_NBYTES:
        raise Refused("malformed_file", f"a header of {header_nbytes} bytes in a file of {len(data)}")
    header = check_schema(parse_strict(data[10:sections_at], "malformed_file", "the header"))
    public = key_of(header["signedBy"], "malformed_file")
    check_signature(public, SIGNATURE_TYPE, data[:sections_at], data[-SIGNATURE_NBYTES:])
    check_repeats(header)
    check_coding(header)
    check_table(header)
    stored_nbytes = sum(section["wireLength"] for section in header["sections"])
    if len(data) != sections_at + stored_nbytes + SIGNATURE_NBYTES:
        raise Refused("malformed_file", "the file does not end where its table says")
    return header, sections_at


def _read_sections(header: dict[str, Any], stored: bytes) -> list[bytes]:
    """The raw bytes of every section: rules 9 to 11."""
    raws, itemsize = [], chunks.ITEMSIZE[header["dtype"]]
    for section in header["sections"]:
        wire = stored[section["offset"] : section["offset"] + section["wireLength"]]
        if blake3_of(wire).hex() != section["blake3"]:
            raise Refused("bad_signature", "a section's digest is not that of its bytes")
        raws.append(chunks.decompress(wire, section["codec"], section["rawLength"], itemsize))
    digests = b"".join(blake3_of(raw) for raw in raws)
    if header["contentDigest"] != sha256_text(b"kvnet/content/v2\0" + digests):
        raise Refused("bad_signature", "the content digest is not that of the raw bytes")
    return raws


def _decode(header: dict[str, Any], raws: list[bytes], basis_bytes: bytes | None) -> Memory:
    """Rule 12: every number."""
    if header["coding"]["scheme"] == "port":
        return Memory(header, [], [], [], _coordinates(header, raws, basis_bytes))
    basis = _basis(header, basis_bytes)
    parts: dict[tuple[int, str], list[NDArray[np.float32]]] = {}
    attention = []
    for section, raw in zip(header["sections"], raws, strict=True):
        layer, kind = section["layer"], section["kind"]
        if kind == "attention":
            heads, seq_len = header["attentionHeads"], header["sequenceLength"]
            attention.append(chunks.decode_attention(raw, layer, heads, seq_len))
        else:
            parts.setdefault((layer, kind), []).append(_numbers(header, section, raw, basis))
    keys, values = (
        [np.concatenate(parts[layer, kind], axis=1) for layer in range(header["numLayers"])]
        for kind in ("key", "value")
    )
    return Memory(header, keys, values, attention)


def _coordinates(header: dict[str, Any], raws: list[bytes], data: bytes | None) -> port.Coordinates:
    coding = header["coding"]
    if data is None or len(data) != coding["basisNbytes"] or sha256_text(data) != coding["basis"]:
        raise Refused("unknown_alignment", "the port that the header names is not here")
    return port.decode(raws, header["sequenceLength"], port.rank_of(data), coding["keyBits"])


def _basis(header: dict[str, Any], data: bytes | None) -> Basis | None:
    coding = header["coding"]
    if coding["scheme"] != "transform":
        return None
    if data is None or len(data) != coding["basisNbytes"] or sha256_text(data) != coding["basis"]:
        raise Refused("unknown_basis", "the basis that the header names is not here")
    return read_basis(data, header["numLayers"], header["numKvHeads"] * header["headDim"])


def _numbers(
    header: dict[str, Any], section: dict[str, Any], raw: bytes, basis: Basis | None
) -> NDArray[np.float32]:
    """One chunk as [num_kv_heads, n, head_dim], at its positions, rounded to the memory's dtype."""
    coding, heads, dim, dtype = (header[key] for key in ("coding", "numKvHeads", "headDim", "dtype"))
    kind, n = section["kind"], section["stop"] - section["start"]
    if basis is not None:
        at = (section["layer"], kind)
        mean, backward = basis.means[at], basis.backwards[at]
        x = chunks.decode_transform(raw, header, section["start"], section["stop"], mean, backward)
    elif coding["scheme"] == "grouped":
        x = chunks.decode_grouped(raw, kind, heads, dim, n, coding)
    else:
        x = chunks.decode_raw(raw, heads, dim, dtype)
    if kind == "key" and header["keySpace"] == "content":
        first, turns = header["startPosition"], header["rope"]
        freqs = rope.frequencies(turns, dim, first + header["sequenceLength"])
        scale = rope.attention_factor(turns["ropeType"], turns["extra"])
        x = rope.turn_forward(x, first + section["start"], freqs, scale)
    return chunks.round_to(x, dtype)
