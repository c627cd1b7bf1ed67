"""Maps and ports as files: a signed manifest over safetensors, read without tensors (FORMAT.md §10)."""

from kvnet.files.alignments.artefact import (
    TensorBytes,
    VerifiedAlignment,
    read_alignment,
    read_alignment_file,
    read_head_file,
    write_alignment,
)
from kvnet.files.alignments.head import (
    MAX_ALIGNMENT_NBYTES,
    AlignmentHead,
    TensorEntry,
    check_file_nbytes,
)

__all__ = [
    "MAX_ALIGNMENT_NBYTES",
    "AlignmentHead",
    "TensorBytes",
    "TensorEntry",
    "VerifiedAlignment",
    "check_file_nbytes",
    "read_alignment",
    "read_alignment_file",
    "read_head_file",
    "write_alignment",
]
