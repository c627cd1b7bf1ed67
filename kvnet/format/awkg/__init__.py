"""The head of a memory file, `.awkg` version 3: prelude, JSON header and section table. Source: FORMAT.md §7.

Knows what the head says and when it contradicts itself; no keys, no signatures, no files, no tensors.
"""

from __future__ import annotations

from kvnet.format.awkg.document import (
    MAX_HEAD_NBYTES,
    PRELUDE_NBYTES,
    SIGNATURE_NBYTES,
    pack_head,
    read_prelude,
    unpack_head,
)
from kvnet.format.awkg.header import (
    AwkgHeader,
    Metadata,
    Repeated,
    Section,
    SectionFacts,
    make_sections,
    quantization_label,
)
from kvnet.format.awkg.rules import check_head

__all__ = [
    "MAX_HEAD_NBYTES",
    "PRELUDE_NBYTES",
    "SIGNATURE_NBYTES",
    "AwkgHeader",
    "Metadata",
    "Repeated",
    "Section",
    "SectionFacts",
    "check_head",
    "make_sections",
    "pack_head",
    "quantization_label",
    "read_prelude",
    "unpack_head",
]
