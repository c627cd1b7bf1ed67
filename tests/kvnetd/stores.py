"""Stores and spools as the tests drive them, a crash included."""

from __future__ import annotations

from pathlib import Path

from kvnetd.store.memories import MemoryStore
from kvnetd.store.records import MemoryRecord
from kvnetd.store.spool import Spool, folder_name
from kvnetd.store.unfinished import IncomingTransfer
from kvnetd.store.upload import Upload

from kvnet.types import NodeId
from tests.builders import RECEIVER, SENDER, make_memory
from tests.kvnetd.conftest import Arrival
from tests.kvnetd.nodes import AT, making


def put(memories: MemoryStore, seed: int = 0, *, at: str = AT) -> MemoryRecord:
    """Store the memory made from `seed`."""
    return memories.put(make_memory(seed), making(at=at), RECEIVER)


def reopened(memories: MemoryStore) -> MemoryStore:
    """The same folder after a restart."""
    return MemoryStore(memories.root)


def import_file(memories: MemoryStore, path: Path, *, own: str = RECEIVER.node_id) -> MemoryRecord:
    """Take in an `.awkg` file as a caller of the node `own` would, in pieces that end anywhere."""
    upload = Upload(memories)
    try:
        data = path.read_bytes()
        for start in range(0, len(data), 777):
            upload.write(data[start : start + 777])
        return upload.finish(memories, upload.verify(), own=[NodeId(own)], stored_at=AT)
    finally:
        upload.discard()


def begin(spool: Spool, arrival: Arrival) -> IncomingTransfer:
    """Start or resume."""
    return spool.open(arrival.offer, arrival.sealed)


def crashed(spool: Spool, arrival: Arrival, *batches: list[int]) -> Path:
    """The folder of a transfer that stored these chunks and was never closed in order."""
    incoming = begin(spool, arrival)
    for batch in batches:
        incoming.store([arrival.chunks[index] for index in batch])
    incoming.close()
    return spool.root / folder_name(arrival.offer)


def held(spool: Spool, arrival: Arrival) -> set[int]:
    """What a restart finds; every digest is the right one."""
    incoming = begin(spool, arrival)
    found = incoming.held
    incoming.close()
    assert found == {index: arrival.digests[index] for index in found}
    return set(found)


def finish(spool: Spool, arrival: Arrival, memories: MemoryStore) -> None:
    """Store what is missing; the memory is the one offered, and its file the sender's."""
    incoming = begin(spool, arrival)
    incoming.store([chunk for index, chunk in enumerate(arrival.chunks) if index not in incoming.held])
    record = incoming.finish(memories, arrival.head, stored_at=AT)
    assert (record.origin, record.stored_at) == (SENDER.node_id, AT)
    assert b"".join(memories.export(record)) == file_of(arrival)
    for store in (memories, MemoryStore(memories.root)):
        assert store.load(store.find(record.id)) == arrival.memory
    assert list(spool.root.iterdir()) == []


def file_of(arrival: Arrival) -> bytes:
    """The `.awkg` file as its maker would write it."""
    sealed, count = arrival.head.sealed, len(arrival.head.header.sections)
    return sealed.body + b"".join(arrival.payloads[:count]) + sealed.signature
