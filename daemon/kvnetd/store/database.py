"""The ledger's SQLite file: WAL, synchronous FULL, one connection, one thread. Knows tables, no meaning.

SQLite's WAL-reset bug can damage a file that two connections write to; there is never more than one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from kvnet.errors import StateCorrupt, StoreFull

_MAGIC: Final = b"SQLite format 3\0"

# What brings a file from the version before to this one; the first makes one from nothing.
_STEPS: Final = (
    """
CREATE TABLE names (name TEXT PRIMARY KEY, memory TEXT NOT NULL) STRICT;
CREATE TABLE messages (
    id TEXT PRIMARY KEY, sender TEXT NOT NULL, sender_name TEXT NOT NULL, sender_agent TEXT NOT NULL,
    agent TEXT NOT NULL, memory TEXT NOT NULL, note TEXT NOT NULL, received_at TEXT NOT NULL,
    acknowledged_at TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE transfers (
    direction TEXT NOT NULL, peer TEXT NOT NULL, transfer_id TEXT NOT NULL, memory TEXT NOT NULL,
    offer BLOB NOT NULL, receipt_body BLOB NOT NULL, receipt_signer BLOB NOT NULL,
    receipt_signature BLOB NOT NULL, completed_at TEXT NOT NULL,
    PRIMARY KEY (direction, peer, transfer_id)
) STRICT;
""",
    """
ALTER TABLE transfers ADD COLUMN offer_signature BLOB NOT NULL DEFAULT x'';
CREATE TABLE requests (
    kind TEXT NOT NULL, signer TEXT NOT NULL, nonce TEXT NOT NULL, until INTEGER NOT NULL,
    PRIMARY KEY (kind, signer, nonce)
) STRICT;
CREATE TABLE offers (
    slot TEXT PRIMARY KEY, transfer_id TEXT NOT NULL, parcel TEXT NOT NULL, sealed_body BLOB NOT NULL,
    signer BLOB NOT NULL, signature BLOB NOT NULL, created_at INTEGER NOT NULL
) STRICT;
CREATE TABLE outbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, peer TEXT NOT NULL,
    peer_name TEXT NOT NULL, agent TEXT NOT NULL, sender_agent TEXT NOT NULL, memory TEXT NOT NULL,
    note TEXT NOT NULL, codec TEXT NOT NULL, with_text INTEGER NOT NULL, queued_at TEXT NOT NULL,
    expires_at TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, state TEXT NOT NULL DEFAULT 'waiting',
    problem TEXT NOT NULL DEFAULT ''
) STRICT;
""",
    """
ALTER TABLE outbox ADD COLUMN label TEXT NOT NULL DEFAULT '';
ALTER TABLE outbox ADD COLUMN quiet INTEGER NOT NULL DEFAULT 0;
""",
)
SCHEMA_VERSION: Final = len(_STEPS)

T = TypeVar("T")


class Database:
    """The file, open. Its errors leave as StateCorrupt and StoreFull."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = self._guard(lambda: _open(path))

    def run(self, query: str, *values: Any) -> list[Any]:
        """One statement, a transaction of its own; returns its rows."""
        with self.transaction() as run:
            return run(query, *values)

    @contextmanager
    def transaction(self) -> Iterator[Callable[..., list[Any]]]:
        """Statements that take effect together, durably, when the block ends, or not at all."""

        def run(query: str, *values: Any) -> list[Any]:
            return self._guard(lambda: self._db.execute(query, values).fetchall())

        try:
            yield run
        except BaseException:
            self._db.rollback()
            raise
        self._guard(self._db.commit)

    def check(self) -> str:
        """What SQLite finds wrong with the file; "" for nothing."""
        found = ", ".join(row[0] for row in self.run("PRAGMA integrity_check"))
        return "" if found == "ok" else found

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _guard(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except sqlite3.OperationalError as exc:
            if "disk is full" in str(exc):
                raise StoreFull(f"ledger {self._path}: {exc}; free some space and try again") from exc
            raise StateCorrupt(f"ledger {self._path}: {exc}; restore it or move it away") from exc
        except sqlite3.DatabaseError as exc:
            raise StateCorrupt(
                f"ledger {self._path}: {exc}; restore it from a backup or move it away, "
                "kvnet left it untouched"
            ) from exc


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _head(path) not in (b"", _MAGIC):
        # SQLite would take a file of a few bytes for an empty one, and overwrite it.
        raise sqlite3.DatabaseError("file is not a database")
    db = sqlite3.connect(path, check_same_thread=False)
    try:
        _prepare(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as ledger:
            return ledger.read(len(_MAGIC))
    except OSError:
        return b""  # not there yet; whatever else it is, SQLite says


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    # The version first: setting the journal mode already writes to the file.
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise StateCorrupt(
            f"ledger {path}: version {version}, this kvnet reads {SCHEMA_VERSION}; install the newer kvnet"
        )
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    if version < SCHEMA_VERSION:
        steps = "".join(_STEPS[version:])
        db.executescript(f"BEGIN; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
