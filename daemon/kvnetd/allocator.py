"""How the C library hands out memory: chunks are a MiB, and come by the hundred a second.

Knows nothing of what the memory is for. Where the C library is not glibc nothing changes.
"""

from __future__ import annotations

import ctypes
from typing import Final

# Of glibc's malloc.h, for mallopt(3).
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

MAPPED_NBYTES: Final = 8 << 20  # what is larger is mapped for itself, and given back when it is freed
KEPT_NBYTES: Final = 64 << 20  # free at the heap's end before it is given back


def keep_chunks_mapped() -> bool:
    """Let freed chunks be used again, not unmapped and mapped as fresh pages; whether that could be set.

    A fresh page costs a fault, and on a virtual machine a second one in its host: more than to hash it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, MAPPED_NBYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, KEPT_NBYTES))
