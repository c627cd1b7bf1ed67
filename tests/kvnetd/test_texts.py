"""Texts beside memories: kept for this user alone, found for every coding, gone with the memory."""

from __future__ import annotations

import stat
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kvnetd.actions import memories
from kvnetd.actions.remember import Reading, remember
from kvnetd.services import Services
from kvnetd.store.memories import MemoryStore
from kvnetd.store.texts import TEXT_FILE, attach_text, attached_text, has_text

from kvnet.api import MemoryInfo
from kvnet.errors import StateCorrupt, UnknownMemory
from kvnet.types import Compression, RawMemory
from tests.builders import INT8, RECEIVER, make_memory
from tests.kvnetd.nodes import making
from tests.kvnetd.stores import put, reopened

TEXT = "Zürich\r\n has a zebrafinch gate. 😀"


def test_text_comes_back_as_it_was_after_a_restart(store: MemoryStore) -> None:
    header = put(store).header
    assert (has_text(store, header), attached_text(store, header)) == (False, None)
    attach_text(store, header, TEXT)
    for one in (store, reopened(store)):
        assert (has_text(one, header), attached_text(one, header)) == (True, TEXT)


def test_text_is_for_this_user_alone(store: MemoryStore) -> None:
    record = put(store)
    attach_text(store, record.header, TEXT)
    for path in (store.root / record.id).iterdir():
        if path.name != "sections.bin":
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_text_that_is_there_stays(store: MemoryStore) -> None:
    header = put(store).header
    attach_text(store, header, TEXT)
    attach_text(store, header, "another")
    assert attached_text(store, header) == TEXT


def test_text_of_a_memory_serves_its_codings(store: MemoryStore) -> None:
    record = put(store)
    attach_text(store, record.header, TEXT)
    coded = store.put(make_memory(coding=INT8, derived_from=record.id), making(in_passing=True), RECEIVER)
    assert attached_text(store, coded.header) == TEXT
    store.forget(record.id)
    assert attached_text(store, coded.header) is None


@pytest.mark.parametrize("named", ["../memories", "..", "/etc", "mem_x", "text.txt"])
def test_where_a_memory_says_it_comes_from_names_no_path(store: MemoryStore, named: str) -> None:
    (store.root / TEXT_FILE).write_text("outside")
    (store.root.parent / TEXT_FILE).write_text("outside")
    header = replace(make_memory().header, derived_from=named)
    assert (has_text(store, header), attached_text(store, header)) == (False, None)


def test_text_goes_with_its_memory(store: MemoryStore) -> None:
    header = put(store).header
    attach_text(store, header, TEXT)
    store.forget(header.id)
    with pytest.raises(UnknownMemory):
        attach_text(store, header, TEXT)
    put(store)
    assert not has_text(store, header)


def test_text_stays_where_its_memory_is_written_anew(store: MemoryStore) -> None:
    record = put(store)
    attach_text(store, record.header, TEXT)
    again = store.put(make_memory(), making(Compression.ZSTD), RECEIVER)
    assert again.head.compression is not record.head.compression
    assert attached_text(store, again.header) == TEXT


def test_text_that_was_damaged_is_told_as_such(store: MemoryStore) -> None:
    header = put(store).header
    (store.root / header.id / TEXT_FILE).write_bytes(b"\xff")
    with pytest.raises(StateCorrupt, match=TEXT_FILE):
        attached_text(store, header)


async def test_memory_of_another_model_is_listed_by_the_tier_of_its_text(services: Services) -> None:
    record = services.memories.put(make_memory(num_layers=4), making(), services.key)
    assert (await memories.describe(services, record)).tier == "refused"
    attach_text(services.memories, record.header, TEXT)
    assert (await memories.describe(services, record)).tier == "text"


@pytest.mark.parametrize(
    ("setting", "asked", "kept"),
    [(False, None, False), (True, None, True), (False, True, True), (True, False, False)],
)
async def test_text_is_kept_where_the_call_or_else_the_setting_says_so(
    reading_services: Services, setting: bool, asked: bool | None, kept: bool
) -> None:
    services = replace(reading_services, config=replace(reading_services.config, keep_text=setting))
    steps: AsyncGenerator[Any, None] = remember(services, Reading(TEXT, keep_text=asked))
    async with aclosing(steps):
        found = [step async for step in steps][-1]
    assert isinstance(found, MemoryInfo)
    record = services.memories.find(found.id)
    assert attached_text(services.memories, record.header) == (TEXT if kept else None)


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    return MemoryStore(tmp_path / "memories")


@pytest.fixture
def reading_services(services: Services, monkeypatch: pytest.MonkeyPatch) -> Services:
    """A node whose model reads every text into the same memory."""

    def capture(text: str, *, on_layer: Callable[[Any], None], **_: Any) -> RawMemory:
        return make_memory()

    monkeypatch.setattr(services.host, "capture", capture, raising=False)
    return services
