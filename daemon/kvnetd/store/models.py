"""What this node found out about models it hosted, by fingerprint: one small JSON file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvnet.durable import write_durably
from kvnet.errors import KvnetError, StateCorrupt
from kvnet.format import strict_json
from kvnet.types import canonical_json

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class ModelNotes:
    """Fingerprint digest -> notes by name: `basis`, the calibration it encodes with; `auto`, its codec."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def get(self, fingerprint_digest: str) -> Mapping[str, Any]:
        """The notes on a model; empty for one that is not known. Raises StateCorrupt."""
        notes = self._read().get(fingerprint_digest, {})
        return notes if isinstance(notes, dict) else {}

    def basis(self, fingerprint_digest: str) -> str:
        """The digest of the calibration that a model encodes with, or "". Raises StateCorrupt."""
        found = self.get(fingerprint_digest).get("basis", "")
        if not isinstance(found, str) or (found and not _DIGEST.fullmatch(found)):
            raise StateCorrupt(f"{self._path}: the basis {found!r:.80} is no sha256 digest; calibrate again")
        return found

    def bases(self) -> frozenset[str]:
        """The digest of every model's calibration. Raises StateCorrupt."""
        return frozenset(filter(None, map(self.basis, self._read())))

    def note(self, fingerprint_digest: str, **notes: Any) -> None:
        """Add to the notes on a model; what was noted under a name before is replaced."""
        known = self._read()
        merged = {**known, fingerprint_digest: {**self.get(fingerprint_digest), **notes}}
        write_durably(self._path, canonical_json(merged))

    def _read(self) -> dict[str, Any]:
        try:
            found = strict_json.loads(self._path.read_bytes(), what=str(self._path))
        except FileNotFoundError:
            return {}
        except (KvnetError, OSError) as exc:
            raise StateCorrupt(
                f"{self._path}: cannot be read ({exc}); remove it, kvnet measures again what it held"
            ) from exc
        if not isinstance(found, dict):
            raise StateCorrupt(f"{self._path}: not an object; remove it, kvnet measures again what it held")
        return found
