"""What waits for its peer: one row for each memory that shall be delivered, in the order it was asked for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from kvnet.api import OutboxEntry
from kvnet.errors import RequestError, TooBusy, UnknownOutboxEntry
from kvnetd.store.database import Database
from kvnetd.store.failpoints import reach

MIN_PREFIX_CHARS: Final = 8
WAITING: Final = "waiting"
FAILED: Final = "failed"
_COLUMNS: Final = ", ".join(field.name for field in fields(OutboxEntry))
_SELECT: Final = f"SELECT {_COLUMNS} FROM outbox"  # noqa: S608  # constants only


@dataclass(frozen=True, slots=True)
class Parcel:
    """A memory and whom it is for. The same again, while it waits, is the same entry."""

    peer: str  # node id
    peer_name: str
    agent: str  # of the peer
    sender_agent: str
    memory: str  # full id
    note: str
    codec: str
    with_text: bool
    label: str = ""
    quiet: bool = False


class Outbox:
    """The entries. Those that failed stay, out of the way of others, until removed or tried again."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def add(self, entry_id: str, parcel: Parcel, *, now: str, expires_at: str, most: int) -> OutboxEntry:
        """Queue a parcel behind the others. Raises TooBusy where `most` entries are here already."""
        with self._db.transaction() as run:
            known = run(
                f"{_SELECT} WHERE state = 'waiting' AND peer = ? AND agent = ? "
                "AND sender_agent = ? AND memory = ? AND note = ? AND codec = ? AND with_text = ? "
                "AND label = ? AND quiet = ?",
                *(parcel.peer, parcel.agent, parcel.sender_agent, parcel.memory, parcel.note, parcel.codec),
                *(int(parcel.with_text), parcel.label, int(parcel.quiet)),
            )
            if known:
                return _entry(known[0])
            ((count,),) = run("SELECT count(*) FROM outbox")
            if count >= most:
                raise TooBusy(f"outbox: {count} entries, at most {most}; see `kvnet outbox ls`")
            row = {"id": entry_id, **asdict(parcel), "queued_at": now, "expires_at": expires_at}
            columns, places = ", ".join(row), ", ".join("?" * len(row))
            run(f"INSERT INTO outbox ({columns}) VALUES ({places})", *row.values())  # noqa: S608  # fields
        reach("outbox.queued")
        return self.find(entry_id)

    def all(self) -> tuple[OutboxEntry, ...]:
        """Every entry, in the order in which they were queued."""
        return tuple(map(_entry, self._db.run(f"{_SELECT} ORDER BY number")))

    def waiting(self) -> tuple[OutboxEntry, ...]:
        """What shall be delivered still, in the order in which it was queued."""
        return tuple(entry for entry in self.all() if entry.state == WAITING)

    def has_waiting(self, peer: str) -> bool:
        """Whether something waits for this peer."""
        query = "SELECT 1 FROM outbox WHERE state = 'waiting' AND peer = ? LIMIT 1"
        return bool(self._db.run(query, peer))

    def find(self, wanted: str) -> OutboxEntry:
        """The entry with this id, or the only one whose id starts so.

        Raises UnknownOutboxEntry, RequestError.
        """
        found = [entry for entry in self.all() if entry.id.startswith(wanted)]
        exact = [entry for entry in found if entry.id == wanted]
        if not found or (len(wanted) < MIN_PREFIX_CHARS and not exact):
            raise UnknownOutboxEntry(
                f"outbox entry {wanted:.60}: delivered, or never there; see `kvnet outbox ls`"
            )
        if len(found) > 1 and not exact:
            raise RequestError(f"outbox entry {wanted}: {len(found)} ids start so; use more of the id")
        return (exact or found)[0]

    def tried(self, entry_id: str, *, problem: str) -> None:
        """An attempt came to nothing; it still waits."""
        self._db.run("UPDATE outbox SET attempts = attempts + 1, problem = ? WHERE id = ?", problem, entry_id)

    def fail(self, entry_id: str, *, problem: str) -> None:
        """It waits no more."""
        self._db.run(
            "UPDATE outbox SET state = 'failed', attempts = attempts + 1, problem = ? WHERE id = ?",
            problem,
            entry_id,
        )

    def expire(self, *, now: str, busy: Collection[str] = ()) -> tuple[OutboxEntry, ...]:
        """Fail those whose time is over, but for those in `busy`: they are being delivered. Returns them."""
        with self._db.transaction() as run:
            over = run(f"{_SELECT} WHERE state = 'waiting' AND expires_at <= ?", now)
            idle = (entry for entry in map(_entry, over) if entry.id not in busy)
            failed = tuple(replace(entry, state=FAILED, problem=_over(entry)) for entry in idle)
            for entry in failed:
                run("UPDATE outbox SET state = 'failed', problem = ? WHERE id = ?", entry.problem, entry.id)
        return failed

    def retry(self, entry_id: str, *, expires_at: str) -> OutboxEntry:
        """Let an entry wait again, in its old place."""
        self._db.run(
            "UPDATE outbox SET state = 'waiting', problem = '', expires_at = ? WHERE id = ?",
            expires_at,
            entry_id,
        )
        return self.find(entry_id)

    def readdress(self, old: str, new: str) -> None:
        """A peer has another id now: what was for the old one is for the new one."""
        self._db.run("UPDATE outbox SET peer = ? WHERE peer = ?", new, old)

    def remove(self, entry_id: str) -> None:
        """Take an entry out, whatever its state."""
        self._db.run("DELETE FROM outbox WHERE id = ?", entry_id)


def _over(entry: OutboxEntry) -> str:
    return f"not delivered by {entry.expires_at}" + (f": {entry.problem}" if entry.problem else "")


def _entry(row: tuple[Any, ...]) -> OutboxEntry:
    entry = OutboxEntry(*row)  # SQLite has no truth values
    return replace(entry, with_text=bool(entry.with_text), quiet=bool(entry.quiet))
