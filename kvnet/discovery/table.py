"""The table of peers heard on the LAN. Pure: the clock is an argument, events are return values.

Anyone on the LAN can write here, so everything is bounded: entries, endpoints per entry, and how
long one packet lasts. A peer's id can be claimed by anyone too; an entry therefore keeps several
endpoints and the caller says, after its signed handshake, which one it can confirm.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

MAX_ENTRIES = 512
MAX_ENDPOINTS = 8
MAX_TTL_S = 120.0
# After a goodbye the real peer has this long to contradict it: a question and its rate-limited answer
# take up to two seconds (RFC 6762 §10.1 gives one, without the question).
GOODBYE_GRACE_S = 2.5


class Endpoint(NamedTuple):
    """Where to dial."""

    address: str
    port: int


@dataclass(frozen=True, slots=True)
class PeerSeen:
    """A peer appeared, or its endpoints changed. Best endpoint first: confirmed, untried, doubted."""

    short_id: str
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class PeerLost:
    """Nothing was heard of a peer for the life of its advert, or it said goodbye."""

    short_id: str


Event = PeerSeen | PeerLost


class _Standing(IntEnum):
    CONFIRMED = 0
    UNTRIED = 1
    DOUBTED = 2


@dataclass(slots=True)
class _Candidate:
    heard_at: float
    expires_at: float
    standing: _Standing = _Standing.UNTRIED


@dataclass(slots=True)
class _Entry:
    candidates: dict[Endpoint, _Candidate] = field(default_factory=dict)

    def ranked(self) -> tuple[Endpoint, ...]:
        order = sorted(self.candidates.items(), key=lambda item: (item[1].standing, -item[1].heard_at))
        return tuple(endpoint for endpoint, _ in order)


class PeerTable:
    """Who is there, by short id. Known ids are never evicted by strangers."""

    def __init__(self, *, max_entries: int = MAX_ENTRIES, max_endpoints: int = MAX_ENDPOINTS) -> None:
        self._max_entries = max_entries
        self._max_endpoints = max_endpoints
        self._known_ids: frozenset[str] = frozenset()
        # Each in the order last heard, so the first stranger is the one to evict.
        self._known: dict[str, _Entry] = {}
        self._strangers: dict[str, _Entry] = {}

    def __len__(self) -> int:
        return len(self._known) + len(self._strangers)

    def __contains__(self, short_id: str) -> bool:
        return short_id in self._known or short_id in self._strangers

    def peers(self) -> dict[str, tuple[Endpoint, ...]]:
        """Every peer with its endpoints, best first."""
        return {short_id: entry.ranked() for short_id, entry in (self._known | self._strangers).items()}

    def set_known(self, short_ids: Iterable[str]) -> None:
        """Replace the ids that strangers cannot push out."""
        self._known_ids = frozenset(short_ids)
        entries = self._known | self._strangers
        self._known = {key: entry for key, entry in entries.items() if key in self._known_ids}
        self._strangers = {key: entry for key, entry in entries.items() if key not in self._known_ids}

    def observe(
        self, short_id: str, endpoints: Iterable[Endpoint], *, ttl_s: float, now: float
    ) -> list[Event]:
        """A packet named these endpoints for `short_id`. Empty result: nothing new, or no room.

        Whether there was room is `short_id in table`.
        """
        home = self._known if short_id in self._known_ids else self._strangers
        entry = home.pop(short_id, None)
        events: list[Event] = []
        if entry is None:
            if not self._make_room(events):
                return events
            entry = _Entry()
        home[short_id] = entry  # re-inserted: now the one heard last
        before = set(entry.candidates)
        expires_at = now + min(max(ttl_s, 1.0), MAX_TTL_S)
        for endpoint in endpoints:
            candidate = entry.candidates.get(endpoint)
            if candidate is None:
                self._trim(entry, self._max_endpoints - 1)
                entry.candidates[endpoint] = _Candidate(now, expires_at)
            else:
                candidate.heard_at, candidate.expires_at = now, expires_at
        if not entry.candidates:
            del home[short_id]
        elif set(entry.candidates) != before:
            events.append(PeerSeen(short_id, entry.ranked()))
        return events

    def goodbye(self, short_id: str, *, now: float) -> bool:
        """A goodbye arrived: the entry goes in `GOODBYE_GRACE_S` unless it is heard again before.

        Anyone can send one in another's name; the caller asks the LAN and the real peer answers.
        Returns whether there is an entry to ask about.
        """
        entry = self._known.get(short_id) or self._strangers.get(short_id)
        if entry is None:
            return False
        for candidate in entry.candidates.values():
            candidate.expires_at = min(candidate.expires_at, now + GOODBYE_GRACE_S)
        return True

    def confirm(self, short_id: str, endpoint: Endpoint) -> None:
        """The peer itself answered at `endpoint`: list it first, evict it last."""
        self._stand(short_id, endpoint, _Standing.CONFIRMED)

    def doubt(self, short_id: str, endpoint: Endpoint) -> None:
        """Nobody, or somebody else, answered at `endpoint`: list it last, evict it first."""
        self._stand(short_id, endpoint, _Standing.DOUBTED)

    def expire(self, now: float) -> list[Event]:
        """Drop what has outlived its advert."""
        events: list[Event] = []
        for home in (self._known, self._strangers):
            for short_id, entry in list(home.items()):
                stale = [key for key, candidate in entry.candidates.items() if candidate.expires_at <= now]
                for endpoint in stale:
                    del entry.candidates[endpoint]
                if not entry.candidates:
                    del home[short_id]
                    events.append(PeerLost(short_id))
                elif stale:
                    events.append(PeerSeen(short_id, entry.ranked()))
        return events

    def _make_room(self, events: list[Event]) -> bool:
        if len(self) < self._max_entries:
            return True
        if not self._strangers:
            return False
        oldest = next(iter(self._strangers))
        del self._strangers[oldest]
        events.append(PeerLost(oldest))
        return True

    def _trim(self, entry: _Entry, size: int) -> None:
        """Evict down to `size` endpoints: doubted before untried, the longest unheard first."""
        while len(entry.candidates) > size:
            del entry.candidates[entry.ranked()[-1]]

    def _stand(self, short_id: str, endpoint: Endpoint, standing: _Standing) -> None:
        entry = self._known.get(short_id) or self._strangers.get(short_id)
        if entry is None or endpoint not in entry.candidates:
            return
        if standing is _Standing.CONFIRMED:  # one at a time, or a moved peer would fill its own entry
            for candidate in entry.candidates.values():
                if candidate.standing is _Standing.CONFIRMED:
                    candidate.standing = _Standing.UNTRIED
        entry.candidates[endpoint].standing = standing
