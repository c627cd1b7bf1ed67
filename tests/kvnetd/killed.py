"""A receiver or sender that is killed at a failpoint of its store: run as a process of its own.

`python killed.py FOLDER receive|queue`; what it acknowledges it writes to stdout, a line each, unbuffered.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kvnetd.store.bases import BasisStore
from kvnetd.store.ledger import CompletedTransfer, Ledger
from kvnetd.store.memories import MemoryStore
from kvnetd.store.offers import KeptOffer
from kvnetd.store.outbox import Parcel
from kvnetd.store.spool import Spool
from kvnetd.store.vault import KEY_NBYTES, Vault

from kvnet.api import InboxMessage
from kvnet.identity.signing import SignedMessage
from kvnet.transfer.messages import Receipt
from tests.builders import make_memory
from tests.kvnetd.arrival import Arrival

AT = "2026-01-01T00:00:00Z"
VAULT = Vault(b"k" * KEY_NBYTES)
MEMORY = make_memory(seq_len=32)
MESSAGE = InboxMessage("msg_1", "alice", "alice", "", "", MEMORY.header.id, "", AT, "")
RECEIPT = SignedMessage(Receipt.TYPE, b"body", b"signer", b"signature")
DONE = CompletedTransfer("in", "alice", "ab" * 16, MEMORY.header.id, b"offer", RECEIPT, AT)
PARCEL = Parcel("bob", "bob", "", "", MEMORY.header.id, "", "", with_text=False)


def open_stores(folder: Path) -> tuple[Spool, MemoryStore, Ledger]:
    """The stores of a node, as its daemon opens them at each start."""
    bases = BasisStore(folder / "bases")
    spool = Spool(folder / "incoming", bases, VAULT)
    return spool, MemoryStore(folder / "memories", VAULT), Ledger(folder / "ledger.sqlite")


def receive(folder: Path) -> None:
    """Take a memory in, two chunks at a time; each that is acknowledged is told."""
    spool, memories, ledger = open_stores(folder)
    arrival = Arrival(MEMORY)
    if ledger.received("alice", DONE.transfer_id) is None:
        incoming = spool.open(arrival.offer, arrival.sealed)
        missing = [chunk for index, chunk in enumerate(arrival.chunks) if index not in incoming.held]
        for start in range(0, len(missing), 2):
            incoming.store(missing[start : start + 2])
            for chunk in missing[start : start + 2]:
                print("chunk", chunk.envelope.key.index, flush=True)
        incoming.finish(memories, arrival.head, stored_at=AT)
        ledger.complete(DONE, MESSAGE)
    print("receipt", flush=True)
    ledger.close()


def queue(folder: Path) -> None:
    """Queue a memory for a peer, and keep the offer that it goes out under."""
    _, _, ledger = open_stores(folder)
    arrival = Arrival(MEMORY)
    ledger.outbox.add("out_1", PARCEL, now=AT, expires_at="2126-01-01", most=9)
    print("queued", flush=True)
    ledger.offers.keep(("slot",), KeptOffer(arrival.offer, arrival.sealed, "out_1"), VAULT)
    print("offered", flush=True)
    out = CompletedTransfer("out", "bob", arrival.offer.transfer_id, MEMORY.header.id, b"", RECEIPT, AT)
    ledger.complete(out, None)
    print("delivered", flush=True)
    ledger.close()


if __name__ == "__main__":
    {"receive": receive, "queue": queue}[sys.argv[2]](Path(sys.argv[1]))
