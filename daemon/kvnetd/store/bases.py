"""Calibrations of transform codings, kept by digest.

Knows bytes only; what they mean is kvnet.codec's business.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from kvnet.errors import UnknownBasis
from kvnetd.store.disk import full_disk_refused, require_room, write_durably

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class BasisStore:
    """The folder of calibrations; a file is named by its digest."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def get(self, digest: str) -> bytes | None:
        """The calibration with this digest, checked against it; None if it is not here."""
        path = self._path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.sha256(data).hexdigest() != path.stem:
            path.unlink()  # damaged: as good as not here, and it can be sent again
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
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        if self.get(digest) is None:
            require_room(self.root, len(data), what="calibration")
            with full_disk_refused("calibration"):
                write_durably(self._path(digest), data)
        return digest

    def _path(self, digest: str) -> Path:
        found = _DIGEST.fullmatch(digest)
        if found is None:
            raise UnknownBasis(f"calibration {digest!r:.80}: not a sha256 digest")
        return self.root / f"{found[1]}.safetensors"
