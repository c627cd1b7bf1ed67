"""Memories that go on behind others: which memory here holds the tokens before one.

A token digest is its sender's word. So the memory before one counts only if this node made it, or if it came
from whoever the other came from: nobody else's may slip in below it. Knows no transfers and no questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from kvnet.errors import KvnetError, MissingPrefix, NotPermitted, UnknownMemory
from kvnet.types import MemoryHeader, MemoryId, Scheme
from kvnetd.parties import require_may_ask
from kvnetd.services import Services
from kvnetd.store.memories import MemoryStore
from kvnetd.store.origins import source_of
from kvnetd.store.records import MemoryRecord

MAX_LINKS: Final = 4096  # memories behind one another
AFTER: Final = "after"  # of the step that read a memory: the memory that it was read behind


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the memory before one has to be, and of whom it may be."""

    fingerprint: str
    digest: str
    num_tokens: int
    origin: str  # "" of a memory made here
    after: str  # id of the one that a memory made here was read behind

    @classmethod
    def by(cls, header: MemoryHeader, origin: str, after: str = "") -> _Wanted:
        return cls(header.fingerprint.digest, header.prefix_digest, header.start_pos, origin, after)


async def links_before(
    services: Services, header: MemoryHeader, *, origin: str, after: str = ""
) -> tuple[MemoryRecord, ...]:
    """The memories before one of this header, from position 0 on; none if it begins there.

    `origin` is the node that it came from, "" for this one. Raises MissingPrefix.
    """
    if not header.start_pos:
        return ()
    by_digest: dict[str, list[MemoryRecord]] = {}
    for record in services.memories.all():
        by_digest.setdefault(record.header.through_digest, []).append(record)
    found: list[MemoryRecord] = []
    wanted = _Wanted.by(header, origin, after)
    while wanted.num_tokens:
        candidates = by_digest.get(wanted.digest, ())
        sent = await _sent_by(services, wanted.origin) if candidates else frozenset()
        fitting = [one for one in candidates if _fits(services, one, wanted, sent)]
        if not fitting or len(found) == MAX_LINKS:
            raise _missing(header, wanted)
        link = min(fitting, key=lambda one: _order(services, one, wanted))
        found.append(link)
        wanted = _Wanted.by(link.header, _source_of(services.memories, link), after_of(link))
    return tuple(reversed(found))


async def links_of(services: Services, record: MemoryRecord) -> tuple[MemoryRecord, ...]:
    """`links_before` of a stored memory."""
    return await links_before(services, record.header, origin=record.origin, after=after_of(record))


def behind(services: Services, record: MemoryRecord) -> Iterator[MemoryId]:
    """Ids of memories here that end where this one begins, whoever they came from."""
    digest = record.header.prefix_digest
    if digest:
        for other in services.memories.all():
            if other.header.through_digest == digest and not other.notes.in_passing:
                yield other.id


def after_of(record: MemoryRecord) -> str:
    """The memory that one made here was read behind, as its notes have it; or ""."""
    return next((str(step.details[AFTER]) for step in record.notes.steps if AFTER in step.details), "")


async def _sent_by(services: Services, origin: str) -> frozenset[str]:
    if not origin:
        return frozenset()
    return await services.in_store(services.ledger.memories_from, _ids_of(services, origin))


def _ids_of(services: Services, origin: str) -> frozenset[str]:
    """A node by the ids of all the keys that it has had; of this one, or a stranger, as it is."""
    peer = services.peers.ever(origin)
    return frozenset({origin} if peer is None else peer.all_ids)


def _fits(services: Services, record: MemoryRecord, wanted: _Wanted, sent: frozenset[str]) -> bool:
    memories = services.memories
    header = record.header
    if (
        header.fingerprint.digest != wanted.fingerprint
        or header.start_pos + header.seq_len != wanted.num_tokens
        or header.coding.scheme is Scheme.PORT
        or record.id in memories.damaged
    ):
        return False
    origin = _source_of(memories, record)
    its_own = not origin or origin in _ids_of(services, wanted.origin)
    return its_own or record.id == wanted.after or record.id in sent


def _source_of(memories: MemoryStore, record: MemoryRecord) -> str:
    """Where a memory came from, or what it was encoded from here."""
    source = source_of(memories, record)
    if source or not record.notes.in_passing:
        return source
    try:
        memories.get(MemoryId(record.header.derived_from))
    except UnknownMemory:
        return "gone"
    return ""


def _order(services: Services, record: MemoryRecord, wanted: _Wanted) -> tuple[bool, bool, bool]:
    """What is chosen first: the memory it was read behind, one that may be used, one without loss."""
    try:
        require_may_ask(services, record)
    except NotPermitted:
        may_ask = False
    else:
        may_ask = True
    return record.id != wanted.after, not may_ask, record.header.coding.scheme is not Scheme.RAW


def _missing(header: MemoryHeader, wanted: _Wanted) -> KvnetError:
    name = "a memory" if header.is_open else f"memory {header.id}"
    return MissingPrefix(
        f"{name}: goes on at position {header.start_pos}, and the memory of the {wanted.num_tokens} tokens "
        f"that end in {wanted.digest[:19]}… is not here; send or read that one first",
        details={"prefix_digest": [wanted.digest], "start_pos": [str(wanted.num_tokens)]},
    )
