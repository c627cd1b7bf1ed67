"""The documents of a package, from its memory file and what is known of it. Measures and invents nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvnet.errors import RequestError
from kvnet.files.documents import (
    MEMORY_PATH,
    Documents,
    Manifest,
    Measurement,
    Preview,
    ProcessingStep,
    Provenance,
    QualityReport,
    SourceInput,
    package_id_of,
)
from kvnet.files.package.agreement import preview_geometry
from kvnet.files.reader import MemoryFile


@dataclass(frozen=True, slots=True)
class About:
    """What the author says of a package."""

    name: str
    description: str = ""
    domain: str = ""
    tags: tuple[str, ...] = ()
    license: str = ""
    pricing: Mapping[str, Any] = field(default_factory=dict)
    version: str = "1.0.0"


def compose_documents(
    memory_file: Path,
    about: About,
    *,
    created_at: str,
    created_by: str,
    creation_method: str,
    source_inputs: Iterable[SourceInput] = (),
    processing_steps: Iterable[ProcessingStep] = (),
    measurements: Iterable[Measurement] = (),
    alignments: Mapping[str, str] | None = None,
) -> Documents:
    """The four documents around a memory file, which is read once for its SHA-256.

    `alignments` maps names of target models to paths in the package. Times are YYYY-MM-DDThh:mm:ssZ.
    Raises what `MemoryFile.open` raises.
    """
    with MemoryFile.open(memory_file) as opened:
        header = opened.header
    package_id, nbytes = _digest(memory_file)
    model, seq_len = header.memory.fingerprint.model, header.memory.seq_len
    report = QualityReport(package_id, tuple(measurements))
    manifest = Manifest(
        package_id=package_id,
        version=about.version,
        name=about.name,
        description=about.description,
        source_model=model,
        token_count=seq_len,
        domain=about.domain,
        tags=about.tags,
        kv_cache_file=MEMORY_PATH,
        alignments=dict(alignments or {}),
        created_at=created_at,
        created_by=created_by,
        quality=report.summary,
        pricing=about.pricing,
        license=about.license,
    )
    provenance = Provenance(
        package_id, creation_method, tuple(source_inputs), tuple(processing_steps), header.checksum
    )
    preview = Preview(
        package_id=package_id,
        name=about.name,
        description=about.description,
        domain=about.domain,
        tags=about.tags,
        source_model=model,
        token_count=seq_len,
        geometry=preview_geometry(header),
        file_nbytes=nbytes,
        quantization=header.quantization,
    )
    return Documents(manifest, provenance, report, preview)


def _digest(memory_file: Path) -> tuple[str, int]:
    """The package's id and the file's bytes."""
    try:
        with memory_file.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
            return package_id_of(digest), file.tell()
    except OSError as exc:
        raise RequestError(f"{memory_file}: cannot be read ({exc.strerror})") from exc
