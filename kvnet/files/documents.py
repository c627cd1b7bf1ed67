"""The documents of a package: manifest, provenance, quality report, preview. Knows no files and no keys.

Their JSON Schemas, for readers that are not kvnet, are in schemas/ beside this file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from kvnet.files.document_coding import Rule, matching
from kvnet.types import DType, MemoryId, base32

MEMORY_PATH: Final = "kv-cache.awkg"
_ALIGNMENT_PATH: Final = re.compile(r"alignments/[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}\.bin")

Label = Annotated[str, Rule(bool, "at least one character")]
Count = Annotated[int, Rule(lambda count: count >= 1, "at least 1")]
Share = Annotated[float, Rule(lambda share: 0 <= share <= 1, "0 to 1")]
NotNegative = Annotated[float, Rule(lambda number: number >= 0, "0 or more")]
Digest = Annotated[str, matching(r"sha256:[0-9a-f]{64}", "sha256: and 64 lower-case hex digits")]
Time = Annotated[
    str,
    matching(
        r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z",
        "YYYY-MM-DDThh:mm:ssZ",
    ),
]
PackageId = Annotated[str, matching(r"pkg_[a-z2-7]{26}", "pkg_ and 26 characters of base32")]
ComparedMemory = Annotated[MemoryId, matching(r"mem_[a-z2-7]{51}[aq]", "a memory id")]


def is_alignment_path(path: object) -> bool:
    """Whether a package may hold an alignment under this path (FORMAT.md §9)."""
    return isinstance(path, str) and _ALIGNMENT_PATH.fullmatch(path) is not None


def package_id_of(memory_file_digest: bytes) -> str:
    """The name of the package around a memory file, from its SHA-256. Source: FORMAT.md §9."""
    return "pkg_" + base32(memory_file_digest)[:26]


AlignmentPaths = Annotated[
    Mapping[str, str],
    Rule(lambda paths: all(map(is_alignment_path, paths.values())), "paths of the form alignments/NAME.bin"),
]


@dataclass(frozen=True, slots=True)
class Quality:
    """The measurements of a quality report in one line: the worst of each."""

    kl: NotNegative  # nats
    top1: Share
    tokens_checked: Count


@dataclass(frozen=True, slots=True)
class Manifest:
    """manifest.json: what the package is, and where its parts lie."""

    package_id: PackageId
    version: Label
    name: Label
    description: str
    source_model: str
    token_count: Count
    domain: str
    tags: tuple[Label, ...]
    kv_cache_file: Annotated[str, matching(re.escape(MEMORY_PATH), MEMORY_PATH)]
    alignments: AlignmentPaths  # by the name of the target model
    created_at: Time
    created_by: str
    quality: Quality | None = None  # None: nothing was measured
    pricing: Mapping[str, Any] = field(default_factory=dict)  # carried, never interpreted
    license: str = ""  # carried, never interpreted


@dataclass(frozen=True, slots=True)
class SourceInput:
    """Something a memory was made from; `hash` is over its bytes."""

    type: Label
    description: str
    hash: Digest
    token_count: int


@dataclass(frozen=True, slots=True)
class ProcessingStep:
    """One thing that was done, when it began and how long it took."""

    step: Label
    timestamp: Time
    model: str = ""  # a name for people
    model_hash: Annotated[str, matching(r"(sha256:[0-9a-f]{64})?", "sha256: and 64 hex digits")] = ""
    duration_s: NotNegative | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Provenance:
    """provenance.json: how the memory came to be. `integrity_hash` is the memory file's checksum."""

    package_id: PackageId
    creation_method: Label
    source_inputs: tuple[SourceInput, ...]
    processing_steps: tuple[ProcessingStep, ...]
    integrity_hash: Digest


@dataclass(frozen=True, slots=True)
class Measurement:
    """How far answers after this memory are from those after another, usually the uncompressed one."""

    kl: NotNegative  # nats, mean over the tokens checked
    top1: Share  # of the positions, how many have the same most likely token
    tokens_checked: Count
    against: ComparedMemory
    probe: Digest  # of the questions asked
    measured_at: Time
    measured_by: str


@dataclass(frozen=True, slots=True)
class QualityReport:
    """quality-report.json: what was measured; empty where nothing was."""

    package_id: PackageId
    measurements: tuple[Measurement, ...]

    @property
    def summary(self) -> Quality | None:
        """The worst KL and top-1 of all measurements; None without any."""
        if not self.measurements:
            return None
        return Quality(
            kl=max(found.kl for found in self.measurements),
            top1=min(found.top1 for found in self.measurements),
            tokens_checked=sum(found.tokens_checked for found in self.measurements),
        )


@dataclass(frozen=True, slots=True)
class PreviewGeometry:
    """The shape of the memory: keys and values are [num_kv_heads, token_count, head_dim] a layer."""

    num_layers: Count
    num_kv_heads: Count
    head_dim: Count
    dtype: DType


@dataclass(frozen=True, slots=True)
class Preview:
    """preview.json: what may be shown before the package is handed over. Nothing of the text."""

    package_id: PackageId
    name: Label
    description: str
    domain: str
    tags: tuple[Label, ...]
    source_model: str
    token_count: Count
    geometry: PreviewGeometry
    file_nbytes: Count  # of the memory file
    quantization: Label


@dataclass(frozen=True, slots=True)
class Documents:
    """The four documents of one package."""

    manifest: Manifest
    provenance: Provenance
    quality: QualityReport
    preview: Preview

    @property
    def by_path(self) -> Mapping[str, Any]:
        """The documents by the path each has in the package."""
        return dict(
            zip(DOCUMENT_TYPES, (self.manifest, self.provenance, self.quality, self.preview), strict=True)
        )


DOCUMENT_TYPES: Final[Mapping[str, type]] = {
    "manifest.json": Manifest,
    "provenance.json": Provenance,
    "quality-report.json": QualityReport,
    "preview.json": Preview,
}
