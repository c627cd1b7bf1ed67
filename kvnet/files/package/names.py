"""Which paths a package may hold. Knows no bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kvnet.errors import MalformedPackage
from kvnet.files.documents import DOCUMENT_TYPES, MEMORY_PATH, is_alignment_path

SIGNATURE_PATH: Final = "signature.sig"
BASIS_PATH: Final = "codec/basis.safetensors"
FOLDERS: Final = ("alignments", "codec")
REQUIRED_PATHS: Final = frozenset({MEMORY_PATH, *DOCUMENT_TYPES})
# A list of a mebibyte, the most that is read, names fewer.
MAX_FILES: Final = 10_000


def is_package_path(path: str) -> bool:
    """Whether FORMAT.md §9 knows a file of this name, the signature included."""
    return path in REQUIRED_PATHS or path in (SIGNATURE_PATH, BASIS_PATH) or is_alignment_path(path)


def check_paths(paths: Iterable[str], *, what: str) -> None:
    """Raise MalformedPackage for a path that is none of §9's, and for two that some disk takes for one."""
    seen: set[str] = set()
    for path in paths:
        if not is_package_path(path):
            raise MalformedPackage(
                f"{what}: {path!r:.120} is no file of a package; nothing else may be in it"
            )
        if path.casefold() in seen:
            raise MalformedPackage(f"{what}: {path!r:.120} is there twice")
        seen.add(path.casefold())
