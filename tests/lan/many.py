"""Many nodes without a model on one LAN, who know each other, the first of them with memories to send.

with Many(8, mbit=100.0, memories=[make_bytes(8 << 20, seed=1)]) as many:
    took = many.send(many.memories[0], many.names[1:])
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from kvnetd.store.folder import open_folder
from kvnetd.store.memories import MemoryStore
from kvnetd.store.records import LocalNotes, Making

from kvnet.api import SendReport
from kvnet.identity.keys import NodeKey
from kvnet.identity.peers import AddedPeer, PeerList
from kvnet.plan import decoded_nbytes, plan_memory
from kvnet.types import (
    Compression,
    DType,
    Fingerprint,
    Geometry,
    KeySpace,
    MemoryHeader,
    MemoryId,
    RawMemory,
    Rope,
    chunk_digest,
    content_digest,
    sha256_hex,
)
from tests.e2e.daemons import Daemon
from tests.lan.harness import INTERFACE, Lan

PORT = 7420
AT = "2027-01-01T00:00:00Z"
GEOMETRY = Geometry(4, 4, 64, DType.FLOAT16, Rope("default", 10000.0))  # chunks of a MiB are of 2,048 tokens


@dataclass(frozen=True, slots=True)
class Took:
    """One sending, from the call to the last report."""

    seconds: float
    uploaded_nbytes: int  # what left the first node's interface, headers and acknowledgements included
    reports: tuple[SendReport, ...]


def make_bytes(nbytes: int, seed: int) -> RawMemory:
    """A memory of about so many bytes that compress to nothing less, of a model that exists nowhere."""
    nothing = sha256_hex(b"")
    header = MemoryHeader(
        fingerprint=Fingerprint("many", "many", nothing, nothing, nothing, "none"),
        geometry=GEOMETRY,
        seq_len=max(1, nbytes // GEOMETRY.token_nbytes),
        start_pos=0,
        key_space=KeySpace.ROTATED,
        token_digest=sha256_hex(str(seed).encode()),
        content_digest="",
    )
    rng = random.Random(seed)
    chunks = tuple(rng.randbytes(decoded_nbytes(GEOMETRY, key)) for key in plan_memory(header))
    digests = [chunk_digest(chunk) for chunk in chunks]
    return RawMemory(replace(header, content_digest=content_digest(digests)), chunks)


class Many:
    """`size` daemons, each in a namespace whose link is limited to `mbit`, each other's peers."""

    def __init__(self, size: int, *, mbit: float, memories: Sequence[RawMemory]) -> None:
        self.names = tuple(f"n{number}" for number in range(size))
        self.memories = tuple(memory.header.id for memory in memories)
        self._mbit = mbit
        self._folder = Path(tempfile.mkdtemp(prefix="kv-"))
        self._lan = Lan(size)
        self._daemons = tuple(
            Daemon(
                self._folder / name,
                name,
                inside=("ip", "netns", "exec", node),
                listen=f"{self._lan.address(node)}:{PORT}",
                model="none",
            )
            for name, node in zip(self.names, self._lan.nodes, strict=True)
        )
        keys = [NodeKey.load_or_create(daemon.home.identity) for daemon in self._daemons]
        for daemon in self._daemons:
            peers = PeerList(daemon.home.peers)
            for other, key in zip(self._daemons, keys, strict=True):
                if other is not daemon:
                    peers.add(AddedPeer(key.node_id, other.name, other.flags["listen"], AT))
        first = self._daemons[0].home
        first.store.mkdir(parents=True)
        store = MemoryStore(first.store / "memories", open_folder(first.store, first.vault_key, seals=True))
        making = Making(Compression.NONE, 0, "many", AT, LocalNotes(origin="", stored_at=AT))
        for memory in memories:
            store.put(memory, making, keys[0])

    def __enter__(self) -> Self:
        try:
            self._lan.__enter__()
            for node in self._lan.nodes:
                self._lan.limit_rate(node, self._mbit)
            for daemon in self._daemons:
                daemon.launch()
            for daemon in self._daemons:
                daemon.wait_until_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for daemon in self._daemons:
            daemon.stop()
        self._lan.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def send(self, memory: MemoryId, to: Sequence[str], *, one_by_one: bool = False) -> Took:
        """The first node sends to others: at once, or to each as if there were no other."""
        before, began = self._sent_nbytes(), time.perf_counter()
        with self._daemons[0].node() as node:
            if one_by_one:
                reports = [node.send(memory, name, codec="exact", if_off="fail") for name in to]
            else:
                reports = node.send(memory, list(to), codec="exact", if_off="fail")
        seconds = time.perf_counter() - began
        return Took(seconds, self._sent_nbytes() - before, tuple(reports))

    def inbox_senders(self, name: str) -> list[str]:
        """Who the messages at a node are from."""
        with self._daemons[self.names.index(name)].node() as node:
            return [message.sender_name for message in node.inbox(every_agent=True)]

    def _sent_nbytes(self) -> int:
        counter = f"/sys/class/net/{INTERFACE}/statistics/tx_bytes"
        return int(self._lan.run(self._lan.nodes[0], ["cat", counter]).stdout)
