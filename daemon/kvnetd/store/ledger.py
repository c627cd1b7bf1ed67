"""Names, messages and finished transfers; as its parts the outbox, own offers, receipts and seen requests."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvnet.api import InboxMessage
from kvnet.errors import RequestError, UnknownMessage
from kvnet.identity.signing import SignedMessage
from kvnet.transfer.messages import Receipt
from kvnetd.store.database import SCHEMA_VERSION, Database
from kvnetd.store.failpoints import reach
from kvnetd.store.offers import KeptOffers
from kvnetd.store.outbox import Outbox
from kvnetd.store.receipts import Receipts
from kvnetd.store.requests import SeenRequests

__all__ = ["SCHEMA_VERSION", "CompletedTransfer", "Ledger"]
MIN_PREFIX_CHARS = 8


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
    offer_signature: bytes = b""  # the sender's; empty where the body is not kept


class Ledger:
    """What must survive a restart and is not a memory itself."""

    def __init__(self, path: Path) -> None:
        self._db = Database(path)
        self._run = self._db.run
        self.outbox = Outbox(self._db)
        self.offers = KeptOffers(self._db)
        self.receipts = Receipts(self._db)
        self.requests = SeenRequests(self._db)

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

    def memories_from(self, peers: Collection[str]) -> frozenset[str]:
        """Ids of the memories that these nodes sent, also those that others had sent before."""
        listed = f"({', '.join('?' * len(peers))})"
        query = f"SELECT memory FROM transfers WHERE direction = 'in' AND peer IN {listed}"  # noqa: S608
        return frozenset(memory for (memory,) in self._run(query, *peers))

    def received_nbytes(self, peers: Collection[str]) -> int:
        """Bytes that the rows of what these nodes have sent take: offers, receipts and messages."""
        listed = f"({', '.join('?' * len(peers))})"
        where = f"direction = 'in' AND peer IN {listed}"
        size = "length(offer) + length(receipt_body) + 128"
        ((transfers,),) = self._run(f"SELECT total({size}) FROM transfers WHERE {where}", *peers)  # noqa: S608
        ((messages,),) = self._run(
            f"SELECT total(length(CAST(note AS BLOB)) + 256) FROM messages WHERE sender IN {listed}",  # noqa: S608
            *peers,
        )
        return int(transfers + messages)

    def count_unread(self, peers: Collection[str]) -> int:
        """How many messages of these nodes nobody has acknowledged."""
        listed = f"({', '.join('?' * len(peers))})"
        query = f"SELECT count(*) FROM messages WHERE acknowledged_at = '' AND sender IN {listed}"  # noqa: S608
        ((count,),) = self._run(query, *peers)
        return int(count)

    def complete(self, transfer: CompletedTransfer, message: InboxMessage | None) -> None:
        """Record a finished transfer in one transaction; once is enough.

        One that came brings its inbox message; one that went out takes the offer with it that it was resumed
        by, and the entry of the outbox that it was sent for.
        """
        receipt = transfer.receipt
        row = (
            *(transfer.direction, transfer.peer, transfer.transfer_id, transfer.memory, transfer.offer_body),
            *(receipt.body, receipt.signer, receipt.signature, transfer.completed_at),
            transfer.offer_signature,
        )
        with self._db.transaction() as run:
            run("INSERT OR IGNORE INTO transfers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", *row)
            if message is not None:
                columns = [getattr(message, field) for field in _MESSAGE_FIELDS]
                run("INSERT OR IGNORE INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", *columns)
            if transfer.direction == "out":
                self.offers.delivered(run, transfer.transfer_id)
            reach("ledger.completing")
        reach("ledger.completed")

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

    def check(self) -> str:
        """What SQLite finds wrong with the file; "" for nothing."""
        return self._db.check()


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
