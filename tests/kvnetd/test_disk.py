"""A full disk is StoreFull, and what was durable before stays so. Needs root for a tiny tmpfs."""

from __future__ import annotations

import errno
import os
import subprocess
from collections import namedtuple
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from kvnetd.log import EventLog
from kvnetd.store import disk
from kvnetd.store.bases import BasisStore
from kvnetd.store.ledger import Ledger
from kvnetd.store.memories import MemoryStore
from kvnetd.store.spool import Spool
from kvnetd.store.vault import KEY_NBYTES, Vault

from kvnet.durable import write_durably
from kvnet.errors import StoreFull
from kvnet.types import Compression
from tests.builders import RECEIVER, make_memory
from tests.kvnetd.conftest import Arrival
from tests.kvnetd.nodes import AT, making

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 2 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True)
    if made.returncode:
        pytest.skip(f"no tmpfs here: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    """Take every byte that is left."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as out, suppress(OSError):
        while True:
            out.write(bytes(4096))
    return ballast


def big_arrival() -> Arrival:
    """Six chunks of 64 KiB, half of which do not compress."""
    return Arrival(make_memory(seq_len=2048))


@pytest.mark.parametrize(
    ("total", "free", "wanted"),
    [(100 << 30, 5 << 30, 4 << 30), (1000, 500, 400), (100 << 30, 1 << 29, 0), (0, 0, 0)],
)
def test_reserve_is_a_gibibyte_or_a_tenth(
    total: int, free: int, wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: Usage(total, total - free, free))
    assert disk.free_nbytes(tmp_path) == wanted
    disk.require_room(tmp_path, wanted, what="test")
    with pytest.raises(StoreFull, match=f"needs {wanted + 1} bytes"):
        disk.require_room(tmp_path, wanted + 1, what="test")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_and_full_quota_are_store_full(number: int) -> None:
    with pytest.raises(StoreFull, match="free some space"), disk.full_disk_refused("test"):
        raise OSError(number, "full")


def test_other_disk_errors_are_themselves() -> None:
    with pytest.raises(PermissionError), disk.full_disk_refused("test"):
        raise PermissionError(errno.EACCES, "no")


def test_write_durably_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (b"first", b"second"):
        write_durably(path, data)
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_write_durably_on_a_full_disk_leaves_the_file_as_it_was(tiny_disk: Path) -> None:
    path = tiny_disk / "file"
    write_durably(path, b"first")
    fill(tiny_disk)
    with pytest.raises(StoreFull), disk.full_disk_refused("test"):
        write_durably(path, bytes(100_000))
    assert path.read_bytes() == b"first"


def test_disk_that_fills_up_ends_a_transfer_which_resumes_with_what_was_durable(tiny_disk: Path) -> None:
    arrival = big_arrival()
    spool = Spool(tiny_disk / "incoming", BasisStore(tiny_disk / "bases"))
    memories = MemoryStore(tiny_disk / "memories")
    incoming = spool.open(arrival.offer, arrival.sealed)
    incoming.store(arrival.chunks[:3])
    ballast = fill(tiny_disk)
    with pytest.raises(StoreFull):
        incoming.store(arrival.chunks[3:])
    assert set(incoming.held) == {0, 1, 2}
    incoming.close()
    ballast.unlink()
    resumed = spool.open(arrival.offer, arrival.sealed)
    assert set(resumed.held) == {0, 1, 2}
    resumed.store(arrival.chunks[3:])
    record = resumed.finish(memories, arrival.head, stored_at=AT)
    assert memories.load(record) == arrival.memory


@pytest.mark.parametrize("seals", [False, True], ids=["clear", "sealed"])
def test_disk_that_fills_up_in_the_middle_of_a_commit_loses_nothing(tiny_disk: Path, seals: bool) -> None:
    arrival, vault = big_arrival(), Vault(b"k" * KEY_NBYTES, seals=seals)
    memories = MemoryStore(tiny_disk / "memories", vault)
    incoming = Spool(tiny_disk / "incoming", BasisStore(tiny_disk / "bases"), vault).open(
        arrival.offer, arrival.sealed
    )
    incoming.store(arrival.chunks[::-1])  # out of order, so that the commit has to copy
    ballast = fill(tiny_disk)
    with pytest.raises(StoreFull):
        incoming.finish(memories, arrival.head, stored_at=AT)
    incoming.close()
    assert memories.all() == ()
    ballast.unlink()
    resumed = Spool(tiny_disk / "incoming", BasisStore(tiny_disk / "bases"), vault).open(
        arrival.offer, arrival.sealed
    )
    assert set(resumed.held) == set(range(6))
    record = resumed.finish(memories, arrival.head, stored_at=AT)
    assert MemoryStore(memories.root, vault).load(record) == arrival.memory


def test_transfer_larger_than_the_disk_is_refused_at_its_offer(tiny_disk: Path) -> None:
    arrival = Arrival(make_memory(seq_len=12_000))
    spool = Spool(tiny_disk / "incoming", BasisStore(tiny_disk / "bases"))
    with pytest.raises(StoreFull):
        spool.open(arrival.offer, arrival.sealed)
    assert list(spool.root.iterdir()) == []


def test_memory_that_does_not_fit_leaves_no_trace(tiny_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvnetd.store.memories.require_room", lambda *args, **kwargs: None)
    memories = MemoryStore(tiny_disk / "memories")
    small = memories.put(make_memory(1), making(Compression.NONE), RECEIVER)
    with pytest.raises(StoreFull):
        memories.put(make_memory(seq_len=12_000), making(Compression.NONE), RECEIVER)
    assert [entry.name for entry in memories.root.iterdir()] == [small.id]
    assert MemoryStore(memories.root).load(small) == make_memory(1)


def name_a_thousand(ledger: Ledger) -> None:
    """More than fits into pages that the file has already."""
    for number in range(1000):
        ledger.name(f"name {number}" * 50, "mem_2")


def test_ledger_on_a_full_disk_keeps_what_it_had(tiny_disk: Path) -> None:
    path = tiny_disk / "ledger.sqlite"
    with closing(Ledger(path)) as ledger:
        ledger.name("notes", "mem_1")
        ballast = fill(tiny_disk)
        with pytest.raises(StoreFull):
            name_a_thousand(ledger)
        ballast.unlink()
        ledger.name("after", "mem_3")
    with closing(Ledger(path)) as again:
        assert again.memory_named("notes") == "mem_1"
        assert again.memory_named("after") == "mem_3"


def test_full_disk_costs_lines_of_the_event_log_and_nothing_else(tiny_disk: Path) -> None:
    log = EventLog(tiny_disk / "events.jsonl", node="n", max_nbytes=1 << 20)
    fill(tiny_disk)
    for _ in range(200):
        log.write("transfer.failed", message="x" * 100)
    log.close()
