"""Whether the header of a memory file agrees with itself. Source: FORMAT.md §7.2, rules 5 to 7."""

from __future__ import annotations

import re
from typing import Final

from kvnet.errors import MalformedFile
from kvnet.format.awkg.header import AwkgHeader, Section, quantization_label
from kvnet.plan import ChunkKey, check_coding, count_chunks, plan_memory, raw_nbytes_range
from kvnet.types import Compression, Kind, MemoryHeader, Scheme, chunks_digest

_MAP_ID: Final = re.compile(r"map_[a-z2-7]{52}")


def check_head(header: AwkgHeader) -> None:
    """Refuse a header that contradicts itself. Allocates no more than the header itself takes.

    Raises MalformedFile.
    """
    _check_repeated(header)
    num_chunks = count_chunks(header.memory)  # before a plan is built: seq_len is only a claim yet
    if len(header.sections) != num_chunks:
        raise MalformedFile(f"memory file: {len(header.sections)} sections, wanted {num_chunks}")
    plan = plan_memory(header.memory)
    for section, key in zip(header.sections, plan, strict=True):
        if section.key != key:
            raise MalformedFile(
                f"memory file: section {key.index} is {_part(section.key)}, wanted {_part(key)}"
            )
    offset = 0
    for section in header.sections:
        if section.offset != offset:
            raise MalformedFile(
                f"memory file: section {section.key.index} is at {section.offset}, wanted {offset}"
            )
        _check_lengths(header.memory, section)
        offset += section.wire_nbytes
    if header.checksum != chunks_digest([section.wire_digest for section in header.sections]):
        raise MalformedFile("memory file: checksum is not that of its sections' digests")


def _check_repeated(header: AwkgHeader) -> None:
    memory = header.memory
    if header.source_model_hash != memory.fingerprint.digest:
        raise MalformedFile("memory file: sourceModelHash is not that of its fingerprint")
    if header.metadata.token_count != memory.seq_len:
        counted = header.metadata.token_count
        raise MalformedFile(f"memory file: tokenCount is {counted}, sequenceLength {memory.seq_len}")
    wrong = check_coding(memory)
    if wrong:
        raise MalformedFile(f"memory file: {wrong}")
    label = quantization_label(memory.coding)
    if header.quantization != label:
        raise MalformedFile(f"memory file: quantization is {header.quantization}, its coding is {label}")
    if memory.coding.scheme is Scheme.PORT and not _MAP_ID.fullmatch(header.w_matrix_reference):
        raise MalformedFile(
            f"memory file: wMatrixReference is {header.w_matrix_reference!r:.80}, wanted the id of the map "
            "that made the coordinates"
        )


def _check_lengths(memory: MemoryHeader, section: Section) -> None:
    index, raw_nbytes, wire_nbytes = section.key.index, section.raw_nbytes, section.wire_nbytes
    allowed = raw_nbytes_range(memory, section.key)
    if raw_nbytes not in allowed:
        raise MalformedFile(
            f"memory file: section {index} has {raw_nbytes} raw bytes, allowed are {allowed.start} to "
            f"{allowed.stop - 1}"
        )
    stored = section.compression is Compression.NONE
    if not 1 <= wire_nbytes <= raw_nbytes or (stored and wire_nbytes != raw_nbytes):
        name = section.compression.name.lower()
        raise MalformedFile(
            f"memory file: section {index} has {wire_nbytes} bytes by {name}, but {raw_nbytes} raw bytes"
        )
    splits = memory.coding.scheme is Scheme.RAW and section.key.kind in (Kind.KEY, Kind.VALUE)
    if section.compression is Compression.SPLIT and not splits:
        raise MalformedFile(f"memory file: section {index} is split, but holds no raw keys or values")


def _part(key: ChunkKey) -> str:
    return f"layer {key.layer_idx} {key.kind.name.lower()} {key.start}..{key.stop}"
