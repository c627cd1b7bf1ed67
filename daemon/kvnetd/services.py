"""What the daemon's actions share, built once by `app` and passed down, and its threads' entrances."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from kvnet.errors import StateCorrupt, StoreFull
from kvnet.identity.keys import NodeKey
from kvnet.identity.peers import PeerList
from kvnet.model.runner import ModelRunner
from kvnet.transport.gate import Gate
from kvnetd.config import Config
from kvnetd.directory import Directory
from kvnetd.links import Links
from kvnetd.log import EventLog
from kvnetd.no_model import refuse_without_model
from kvnetd.rates import Rates
from kvnetd.store.alignments import AlignmentStore
from kvnetd.store.bases import BasisStore
from kvnetd.store.ledger import Ledger
from kvnetd.store.memories import MemoryStore
from kvnetd.store.models import ModelNotes
from kvnetd.store.spool import Spool

if TYPE_CHECKING:
    from kvnet.model.host import ModelHost

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class Listening:
    """Where this node answers; filled in once the peer port is bound."""

    address: str = ""
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Services:
    """The four homes of state and the threads that own them."""

    config: Config
    key: NodeKey
    log: EventLog
    peers: PeerList
    gate: Gate
    directory: Directory
    memories: MemoryStore
    bases: BasisStore
    alignments: AlignmentStore
    models: ModelNotes
    spool: Spool
    ledger: Ledger
    host: ModelHost
    runner: ModelRunner
    store_thread: Executor
    trust_thread: Executor  # the one that changes `peers`: a revocation waits for no store
    pool: Executor
    listening: Listening
    rates: Rates = field(default_factory=Rates)
    links: Links = field(default_factory=Links)

    def require_model(self) -> None:
        """Raise NoModelHosted on a node without one."""
        refuse_without_model(self.host)

    async def in_store(self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking store call on the store's one thread. Its OSErrors leave as KvnetErrors."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.store_thread, partial(_translated, act, *args, **kwargs))

    async def in_trust(self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a change of the trust list on its one thread. Its OSErrors leave as KvnetErrors."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.trust_thread, partial(_translated, act, *args, **kwargs))

    async def in_pool(self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run something that only reads and hashes beside the store's thread, which others wait for."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.pool, partial(_translated, act, *args, **kwargs))

    async def take_from_store(
        self, act: Callable[P, T], release: Callable[[T], object], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`in_store` for a result that must be released: it is, if the caller is cancelled meanwhile."""
        loop = asyncio.get_running_loop()
        taking = loop.run_in_executor(self.store_thread, partial(_translated, act, *args, **kwargs))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            taking.add_done_callback(lambda done: done.exception() or release(done.result()))
            raise


def _translated(act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return act(*args, **kwargs)
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull("the store's disk is full; free some space and try again") from exc
        raise StateCorrupt(f"the store cannot be used ({exc.strerror}: {exc.filename}); mend it") from exc


def utc_seconds() -> str:
    """The time as files state it: whole seconds (FORMAT.md §7.1)."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def utc_now() -> str:
    """The time as it is stored and shown, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
