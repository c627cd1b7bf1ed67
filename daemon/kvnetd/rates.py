"""How fast links and models were, in one small JSON file: what estimates are made of."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path
from typing import Any

from kvnet.cost import Line
from kvnet.durable import write_durably
from kvnet.errors import KvnetError
from kvnet.format import strict_json
from kvnet.types import canonical_json

MAX_KEPT = 256  # links, and as many models; the oldest go
_SUMS = len(astuple(Line()))


class Rates:
    """Two tables of lines: to each peer by bytes sent, and of each model by tokens read and stored."""

    def __init__(self, path: Path | None = None) -> None:
        """Without a path nothing outlives the process. What cannot be read is measured anew."""
        self._path = path
        self._tables: dict[str, dict[str, Line]] = {"links": {}, "readings": {}}
        if path is not None and path.exists():
            self._tables |= _read(path)

    def link(self, node_id: str) -> Line:
        """Seconds from an offer to its receipt, by bytes."""
        return self._tables["links"].get(node_id, Line())

    def reading(self, fingerprint_digest: str) -> Line:
        """Seconds in which a model of this node reads a text and stores the memory, by tokens."""
        return self._tables["readings"].get(fingerprint_digest, Line())

    def sent(self, node_id: str, nbytes: int, seconds: float) -> None:
        """A transfer of so many bytes took so long. Blocks."""
        self._see("links", node_id, nbytes, seconds)

    def read(self, fingerprint_digest: str, num_tokens: int, seconds: float) -> None:
        """A text of so many tokens took so long. Blocks."""
        self._see("readings", fingerprint_digest, num_tokens, seconds)

    def _see(self, table: str, key: str, units: int, seconds: float) -> None:
        lines = self._tables[table]
        line = lines.pop(key, Line()).seen(units, seconds)
        lines[key] = line  # behind the others: the first is the oldest
        while len(lines) > MAX_KEPT:
            lines.pop(next(iter(lines)))
        if self._path is not None:
            plain = {name: {k: list(astuple(v)) for k, v in t.items()} for name, t in self._tables.items()}
            write_durably(self._path, canonical_json(plain))


def _read(path: Path) -> dict[str, dict[str, Line]]:
    try:
        found: Any = strict_json.loads(path.read_bytes(), what=str(path))
        return {
            table: {key: Line(*map(float, sums)) for key, sums in found[table].items() if len(sums) == _SUMS}
            for table in ("links", "readings")
        }
    except (KvnetError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return {}
