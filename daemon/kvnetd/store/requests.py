"""Requests that were honoured once and must not be again, a restart in between included."""

from __future__ import annotations

from kvnetd.store.database import Database


class SeenRequests:
    """Nonces by kind and signer, each until nobody would take its request any more."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def count(self, kind: str, signer: str, *, now: int) -> int:
        """How many requests of a signer could still be repeated; older ones are dropped."""
        with self._db.transaction() as run:
            run("DELETE FROM requests WHERE until < ?", now)
            found: list[tuple[int]] = run(
                "SELECT count(*) FROM requests WHERE kind = ? AND signer = ?", kind, signer
            )
            return found[0][0]

    def take(self, kind: str, signer: str, nonce: str, *, until: int) -> bool:
        """Note a request; false if it was noted before."""
        row = (kind, signer, nonce, until)
        return bool(self._db.run("INSERT OR IGNORE INTO requests VALUES (?, ?, ?, ?) RETURNING 1", *row))
