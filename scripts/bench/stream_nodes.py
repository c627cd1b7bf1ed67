"""What the throughput rows of `stream` share: daemons without a model, synthetic memories, a row."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from kvnetd.store.folder import open_folder
from kvnetd.store.memories import MemoryStore
from kvnetd.store.records import LocalNotes, Making

from kvnet.cli import spawn
from kvnet.client import Node
from kvnet.identity.keys import NodeKey
from kvnet.paths import Home
from kvnet.plan import MAX_CHUNK_RAW_NBYTES, decoded_nbytes, plan_memory
from kvnet.types import (
    Compression,
    DType,
    Fingerprint,
    Geometry,
    KeySpace,
    MemoryHeader,
    RawMemory,
    Rope,
    chunk_digest,
    content_digest,
    sha256_hex,
)

MIB = 1 << 20
LAYERS = 16
TOKEN_NBYTES = 2 * LAYERS * 2048  # 8 heads of 128 in float16, keys and values
AT = "2027-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Row:
    """One measured figure; `met` is None where there is no target."""

    metric: str
    value: float
    target: str
    met: bool | None
    details: dict[str, Any] = field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """As tables and JSON show it."""
        plain = {"metric": self.metric, "value": self.value, "target": self.target, "met": self.met}
        return {**plain, **self.details}


def header_of(num_tokens: int, *, layers: int = LAYERS) -> MemoryHeader:
    """The open header of a synthetic memory: 128 KiB a layer and 32 tokens, chunks of 1 MiB."""
    nothing = sha256_hex(b"")
    return MemoryHeader(
        fingerprint=Fingerprint("bench", "bench", nothing, nothing, nothing, "none"),
        geometry=Geometry(layers, 8, 128, DType.FLOAT16, Rope("default", 10000.0)),
        seq_len=num_tokens,
        start_pos=0,
        key_space=KeySpace.ROTATED,
        token_digest=nothing,
        content_digest="",
    )


def tokens_of(nbytes: int) -> int:
    """How many tokens a synthetic memory of so many bytes has."""
    return max(1, nbytes // TOKEN_NBYTES)


def put_memory(home: Home, num_tokens: int, *, seed: int, sealed: bool = True, layers: int = LAYERS) -> str:
    """Lay a synthetic memory into the store of a node that is not up; returns its id.

    Its chunks are views of one random block, rotated: memory is bounded, and no two chunks are alike.
    """
    header = header_of(num_tokens, layers=layers)
    plan = plan_memory(header)
    block = np.random.default_rng([seed, num_tokens]).bytes(MAX_CHUNK_RAW_NBYTES)

    def chunk(index: int) -> bytes:
        nbytes = decoded_nbytes(header.geometry, plan[index])
        return (index.to_bytes(8, "little") + block)[:nbytes]

    digests = [chunk_digest(chunk(index)) for index in range(len(plan))]
    chunks: Any = _Chunks(chunk, len(plan))
    memory = RawMemory(replace(header, content_digest=content_digest(digests)), chunks)
    home.store.mkdir(parents=True, exist_ok=True)
    vault = open_folder(home.store, home.vault_key, seals=sealed)
    store = MemoryStore(home.store / "memories", vault)
    making = Making(Compression.NONE, 0, "bench", AT, LocalNotes(origin="", stored_at=AT))
    return store.put(memory, making, NodeKey.load_or_create(home.identity)).id


class _Chunks:
    """Chunks that are made as they are read: a memory of 4 GiB is never there at once."""

    def __init__(self, make: Callable[[int], bytes], count: int) -> None:
        self._make = make
        self._count = count

    def __iter__(self) -> Iterator[bytes]:
        return map(self._make, range(self._count))


@contextmanager
def folder_at(where: Path | None = None) -> Iterator[Path]:
    """A temporary folder, on a real disk or where told."""
    folder = Path(tempfile.mkdtemp(prefix="kvnet-bench-", dir=where))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def keepers(
    folder: Path, *names: str, limits: dict[str, int] | None = None, **settings: Any
) -> Iterator[dict[str, Node]]:
    """Daemons without a model, each introduced to all the others; settings and limits are config.toml's."""
    said = [f"{k} = {json.dumps(v)}\n" for k, v in settings.items()]
    said += ["[limits]\n", *(f"{k} = {v}\n" for k, v in (limits or {}).items())]
    with ExitStack() as stack:
        nodes: dict[str, Node] = {}
        for name in names:
            home = Home(folder / name)
            home.root.mkdir(parents=True, exist_ok=True)
            home.config.write_text("".join(said))
            flags = {"model": "none", "name": name, "listen": "127.0.0.1:0", "mdns": "0"}
            spawn.start(home, flags)
            stack.callback(spawn.stop, home)
            nodes[name] = stack.enter_context(Node(home=home.root))
        known = {name: node.status() for name, node in nodes.items()}
        for one in nodes:
            for other in nodes:
                if one != other:
                    nodes[one].add_peer(known[other].grpc, node_id=known[other].node_id, name=other)
        yield nodes


def touch(nbytes: int) -> None:
    """Use that much memory once, so that what is measured next gets pages that were used before.

    On a virtual machine the host backs a page when it is first touched: slower than hashing what it holds.
    """
    with mmap.mmap(-1, nbytes) as pages:
        for start in range(0, nbytes, mmap.PAGESIZE):
            pages[start] = 1


def resident_nbytes(pid: int) -> int:
    """Resident memory of a process now, without the page cache of what it maps."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    return int(fields["RssAnon"].split()[0]) * 1024


def cpu_s(pid: int) -> float:
    """Seconds of processor time a process has used, in user and kernel mode."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def timed_send(sender: Node, memory: str, to: str) -> float:
    """Seconds that one exact send took."""
    began = time.perf_counter()
    sender.send(memory, to, codec="exact", if_off="fail")
    return time.perf_counter() - began


def load() -> float:
    """What else runs on this machine: the one-minute load average."""
    return os.getloadavg()[0]
