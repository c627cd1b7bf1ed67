"""Names, messages and receipts in one SQLite file: WAL, synchronous FULL, one connection, one thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from kvnet.api import InboxMessage
from kvnet.errors import RequestError, StateCorrupt, StoreFull, UnknownMessage
from kvnet.identity.signing import SignedMessage
from kvnet.transfer.messages import Receipt

SCHEMA_VERSION = 1
MIN_PREFIX_CHARS = 8
_MAGIC = b"SQLite format 3\0"
_SCHEMA = """
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
"""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CompletedTransfer:
    """A transfer with its receipt; `peer` is the node on the other side."""

    direction: Literal["in", "out"]
    peer: str
    transfer_id: str
    memory: str
    offer_body: bytes
    receipt: SignedMessage
    completed_at: str


class Ledger:
    """What must survive a restart and is not a memory itself."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = self._guard(lambda: _open(path))

    def name(self, name: str, memory: str) -> None:
        """Point a name at a memory; an earlier use of the name moves."""
        self._run("INSERT OR REPLACE INTO names VALUES (?, ?)", name, memory)

    def names(self) -> dict[str, str]:
        """Memory id -> its name."""
        return {memory: name for name, memory in self._run("SELECT name, memory FROM names")}

    def memory_named(self, name: str) -> str | None:
        """The memory a name points at."""
        rows = self._run("SELECT memory FROM names WHERE name = ?", name)
        return rows[0][0] if rows else None

    def forget_memory(self, memory: str) -> None:
        """Drop the names of a memory; messages about it stay as history."""
        self._run("DELETE FROM names WHERE memory = ?", memory)

    def received(self, peer: str, transfer_id: str) -> tuple[bytes, SignedMessage] | None:
        """The offer's body and our sealed receipt of a transfer from `peer` that is done."""
        rows = self._run(
            "SELECT offer, receipt_body, receipt_signer, receipt_signature FROM transfers "
            "WHERE direction = 'in' AND peer = ? AND transfer_id = ?",
            peer,
            transfer_id,
        )
        if not rows:
            return None
        offer, body, signer, signature = rows[0]
        return offer, SignedMessage(Receipt.TYPE, body, signer, signature)

    def complete(self, transfer: CompletedTransfer, message: InboxMessage | None) -> None:
        """Record a finished transfer and its inbox message in one transaction; once is enough."""
        receipt = transfer.receipt
        row = (
            *(transfer.direction, transfer.peer, transfer.transfer_id, transfer.memory, transfer.offer_body),
            *(receipt.body, receipt.signer, receipt.signature, transfer.completed_at),
        )

        def write() -> None:
            with self._db:
                self._db.execute("INSERT OR IGNORE INTO transfers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
                if message is not None:
                    columns = [getattr(message, field) for field in _MESSAGE_FIELDS]
                    self._db.execute(
                        "INSERT OR IGNORE INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", columns
                    )

        self._guard(write)

    def messages(self, *, agent: str | None, unread_only: bool) -> tuple[InboxMessage, ...]:
        """The inbox, oldest first; `agent` None means every agent's."""
        where = ["1 = 1"]
        values: list[str] = []
        if agent is not None:
            where.append("agent = ?")
            values.append(agent)
        if unread_only:
            where.append("acknowledged_at = ''")
        query = f"{_SELECT_MESSAGES} WHERE {' AND '.join(where)} ORDER BY received_at"
        return tuple(InboxMessage(*row) for row in self._run(query, *values))

    def acknowledge(self, message_id: str, *, at: str) -> InboxMessage:
        """Mark the message with this id, or the only one whose id starts so; twice changes nothing.

        Raises UnknownMessage, RequestError.
        """
        found = [m.id for m in self.messages(agent=None, unread_only=False) if m.id.startswith(message_id)]
        if len(found) > 1 and len(message_id) >= MIN_PREFIX_CHARS and message_id not in found:
            raise RequestError(f"message {message_id}: {len(found)} ids start so; use more of the id")
        if not found or len(message_id) < MIN_PREFIX_CHARS:
            raise UnknownMessage(f"message {message_id:.60}: not in the inbox; see `kvnet inbox ls --all`")
        wanted = message_id if message_id in found else found[0]
        update = "UPDATE messages SET acknowledged_at = ? WHERE id = ? AND acknowledged_at = ''"
        self._run(update, at, wanted)
        return InboxMessage(*self._run(f"{_SELECT_MESSAGES} WHERE id = ?", wanted)[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _run(self, query: str, *values: Any) -> list[Any]:
        def run() -> list[Any]:
            with self._db:
                return self._db.execute(query, values).fetchall()

        return self._guard(run)

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


_MESSAGE_FIELDS = (
    "id",
    "sender",
    "sender_name",
    "sender_agent",
    "agent",
    "memory",
    "note",
    "received_at",
    "acknowledged_at",
)
_SELECT_MESSAGES = f"SELECT {', '.join(_MESSAGE_FIELDS)} FROM messages"  # noqa: S608  # constants only


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
    if version == 0:
        db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
