"""Calibrations of transform codings, kept by digest.

Knows bytes only; what they mean is kvnet.codec's business.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from pathlib import Path

from kvnet.durable import write_durably
from kvnet.errors import UnknownBasis
from kvnet.types import sha256_hex
from kvnetd.store.disk import full_disk_refused, require_room

RECENT_S = 600.0
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class BasisStore:
    """The folder of calibrations; a file is named by its digest."""

    def __init__(self, root: Path, elsewhere: Callable[[str], bytes | None] = lambda digest: None) -> None:
        """`elsewhere` gives the file of a digest that is kept somewhere else on this node, or None."""
        self.root = root
        self._elsewhere = elsewhere
        self._used_at: dict[str, float] = {}
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def get(self, digest: str) -> bytes | None:
        """The calibration with this digest, checked against it; None if it is not here."""
        path = self._path(digest)
        self._used_at[digest] = time.monotonic()
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            found = self._elsewhere(digest)
            return found if found is not None and sha256_hex(found) == digest else None
        if hashlib.sha256(data).hexdigest() != path.stem:
            path.unlink(missing_ok=True)  # damaged: as good as not here, and it can be sent again
            return None
        return data

    def require(self, digest: str) -> bytes:
        """`get`, with UnknownBasis for one that is not here."""
        data = self.get(digest)
        if data is None:
            raise UnknownBasis(
                f"calibration {digest[:19]}…: not here, and the memory cannot be decoded without it; "
                "import the memory's package, or have the memory sent by a node"
            )
        return data

    def put(self, data: bytes) -> str:
        """Keep a calibration durably; returns its digest."""
        digest = sha256_hex(data)
        if self.get(digest) is None:
            require_room(self.root, len(data), what="calibration")
            with full_disk_refused("calibration"):
                write_durably(self._path(digest), data)
        return digest

    def keep_only(self, digests: AbstractSet[str]) -> int:
        """Remove every calibration but these, and what a crash left of one; returns how many files went."""
        kept = {self._path(digest).name for digest in digests}
        gone = [path for path in self.root.iterdir() if path.name not in kept]
        for path in gone:
            path.unlink(missing_ok=True)
        return len(gone)

    def recent(self) -> frozenset[str]:
        """Calibrations used lately: a memory that will name one may be in the making."""
        since = time.monotonic() - RECENT_S
        return frozenset(digest for digest, at in list(self._used_at.items()) if at >= since)

    def _path(self, digest: str) -> Path:
        found = _DIGEST.fullmatch(digest)
        if found is None:
            raise UnknownBasis(f"calibration {digest!r:.80}: not a sha256 digest")
        return self.root / f"{found[1]}.safetensors"
