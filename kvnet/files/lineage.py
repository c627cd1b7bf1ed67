"""How a memory came to be, as the node that holds it tells it. Measures nothing and knows no sockets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kvnet.files.documents import Documents, Measurement, ProcessingStep, SourceInput
from kvnet.files.package.compose import About, compose_documents


@dataclass(frozen=True, slots=True)
class Lineage:
    """What goes into a package's provenance and quality report."""

    creation_method: str
    created_by: str
    created_at: str  # YYYY-MM-DDThh:mm:ssZ
    source_inputs: tuple[SourceInput, ...]
    processing_steps: tuple[ProcessingStep, ...]
    measurements: tuple[Measurement, ...]


def compose(
    memory_file: Path, about: About, lineage: Lineage, *, alignments: Mapping[str, str] | None = None
) -> Documents:
    """The documents of a package around a memory file. Raises what `MemoryFile.open` raises.

    `alignments` maps names of target models to paths in the package.
    """
    return compose_documents(
        memory_file,
        about,
        created_at=lineage.created_at,
        created_by=lineage.created_by,
        creation_method=lineage.creation_method,
        source_inputs=lineage.source_inputs,
        processing_steps=lineage.processing_steps,
        measurements=lineage.measurements,
        alignments=alignments,
    )
