"""Calibrations go once nothing names them any more, and never while something does."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from kvnetd.services import Services
from kvnetd.store import bases as bases_module
from kvnetd.store.bases import BasisStore
from kvnetd.store.memories import MemoryStore
from kvnetd.store.records import HEAD_FILE
from kvnetd.store.sweep import drop_unused_bases
from kvnetd.transfers import Transfers

from tests.builders import make_basis, make_memory
from tests.kvnetd.conftest import Arrival
from tests.kvnetd.nodes import making

CODING, BASIS = make_basis()
COMPACT = make_memory(coding=CODING)


@pytest.fixture
def later(services: Services, monkeypatch: pytest.MonkeyPatch) -> Services:
    """A node that has a calibration, and has not used it for long."""
    services.bases.put(BASIS)
    now = time.monotonic() + bases_module.RECENT_S + 1
    monkeypatch.setattr(bases_module, "time", SimpleNamespace(monotonic=lambda: now))
    return services


def is_here(services: Services) -> bool:
    return bool(list(services.bases.root.iterdir()))


def test_keep_only_removes_the_others_and_halves_of_them(bases: BasisStore) -> None:
    kept, other = bases.put(b"kept"), bases.put(b"other")
    (bases.root / "half.safetensors.new").write_bytes(b"ha")
    assert bases.keep_only({kept}) == 2
    assert (bases.get(kept), bases.get(other)) == (b"kept", None)


async def test_calibration_that_nothing_names_goes_at_the_start(
    later: Services, transfers: Transfers
) -> None:
    await transfers.expire()
    assert not is_here(later)


async def test_calibration_stays_while_a_memory_names_it_and_goes_with_it(
    later: Services, transfers: Transfers
) -> None:
    record = later.memories.put(COMPACT, making(), later.key)
    await transfers.expire()
    assert is_here(later)
    later.memories.forget(record.id)
    await transfers.expire()
    assert not is_here(later)


async def test_calibration_of_a_model_stays(later: Services, transfers: Transfers) -> None:
    later.models.note("sha256:any", basis=CODING.basis)
    await transfers.expire()
    assert is_here(later)


def test_calibration_that_a_transfer_counts_on_stays(later: Services) -> None:
    arrival = Arrival(COMPACT, basis=BASIS)
    later.spool.open(arrival.offer, arrival.sealed).close()
    later.bases._used_at.clear()
    assert drop_unused_bases(later.bases, later.memories, later.models, later.spool) == 0
    assert is_here(later)


async def test_calibration_that_is_in_use_stays(services: Services, transfers: Transfers) -> None:
    services.bases.put(BASIS)
    await transfers.expire()
    assert is_here(services)


async def test_nothing_goes_while_it_cannot_be_told_what_is_named(
    later: Services, transfers: Transfers
) -> None:
    (later.memories.root.parent / "models.json").write_bytes(b"{")
    await transfers.expire()
    assert is_here(later)


def test_nothing_goes_while_a_head_cannot_be_read(later: Services) -> None:
    record = later.memories.put(COMPACT, making(), later.key)
    (later.memories.root / record.id / HEAD_FILE).write_bytes(b"AWKG")
    memories = MemoryStore(later.memories.root)
    assert drop_unused_bases(later.bases, memories, later.models, later.spool) == 0
    assert is_here(later)
