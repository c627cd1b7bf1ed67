"""What the head of a memory file says, as values. Knows no JSON, checks nothing. Source: FORMAT.md §7.1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from kvnet.plan import ChunkKey, plan_memory
from kvnet.types import Coding, Compression, MemoryHeader, NodeId, Scheme, chunks_digest

_GROUPED_LABELS: Final = {(8, 8): "int8", (8, 4): "k8v4", (4, 4): "int4", (4, 8): "k4v8"}


@dataclass(frozen=True, slots=True)
class Section:
    """One chunk in a file: where its wire bytes lie, counted from the first section byte."""

    key: ChunkKey
    offset: int
    wire_nbytes: int
    raw_nbytes: int
    compression: Compression
    wire_digest: bytes  # BLAKE3, 32 bytes


class SectionFacts(NamedTuple):
    """What compressing one chunk gave: all of a section that the plan does not say."""

    compression: Compression
    wire_nbytes: int
    raw_nbytes: int
    wire_digest: bytes  # BLAKE3, 32 bytes


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a file tells people of its contents. Nothing but `token_count` is checked."""

    domain: str
    topic: str
    language_hint: str
    quality_score: float | None
    token_count: int


@dataclass(frozen=True, slots=True)
class Repeated:
    """What a file that was read says again about its memory, checked by `check_head`."""

    source_model_hash: str
    quantization: str
    checksum: str


@dataclass(frozen=True, slots=True)
class AwkgHeader:
    """The header of a memory file. `compression` is what the writer was asked for."""

    memory: MemoryHeader
    sections: tuple[Section, ...]
    compression: Compression
    compression_level: int
    created_at: str  # YYYY-MM-DDThh:mm:ssZ
    created_by: str
    signed_by: NodeId
    metadata: Metadata
    w_matrix_reference: str = ""
    alignment: Mapping[str, Any] = field(default_factory=dict)
    repeated: Repeated | None = field(default=None, compare=False, repr=False)  # None: not from a file

    @property
    def source_model_hash(self) -> str:
        """The fingerprint's digest, as the file states it if it came from one."""
        return self.repeated.source_model_hash if self.repeated else self.memory.fingerprint.digest

    @property
    def quantization(self) -> str:
        """The coding's label, as the file states it if it came from one."""
        return self.repeated.quantization if self.repeated else quantization_label(self.memory.coding)

    @property
    def checksum(self) -> str:
        """The digest over all sections' digests, as the file states it if it came from one."""
        if self.repeated:
            return self.repeated.checksum
        return chunks_digest([section.wire_digest for section in self.sections])

    @property
    def sections_nbytes(self) -> int:
        """Bytes of all sections: the offset at which the last one ends."""
        return sum(section.wire_nbytes for section in self.sections)


def quantization_label(coding: Coding) -> str:
    """A coding by name: `none`, `int8`, `k8v4`, `int4`, `k4v8`, `transform`, `port8` or `port4`.

    Empty for bits that FORMAT.md §8 does not allow.
    """
    if coding.scheme is Scheme.GROUPED:
        return _GROUPED_LABELS.get((coding.key_bits, coding.value_bits), "")
    if coding.scheme is Scheme.PORT:
        return f"port{coding.key_bits}" if coding.key_bits in (4, 8) else ""
    return "none" if coding.scheme is Scheme.RAW else coding.scheme.value


def make_sections(
    memory: MemoryHeader, facts: Iterable[tuple[Compression, int, int, bytes]]
) -> tuple[Section, ...]:
    """The section table from the `SectionFacts` of each chunk in plan order; offsets follow from them.

    Raises ValueError for more or fewer of them than the memory has chunks.
    """
    sections: list[Section] = []
    offset = 0
    for key, (compression, wire_nbytes, raw_nbytes, digest) in zip(plan_memory(memory), facts, strict=True):
        sections.append(Section(key, offset, wire_nbytes, raw_nbytes, compression, digest))
        offset += wire_nbytes
    return tuple(sections)
