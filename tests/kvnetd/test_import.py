"""Files that callers send: refused as early as can be, verified whole, durable before they are memories."""

from __future__ import annotations

import asyncio
import collections
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from kvnetd.actions import files, memories
from kvnetd.services import Services
from kvnetd.store.memories import MemoryStore
from kvnetd.store.records import SECTIONS_FILE
from kvnetd.store.upload import Upload

from kvnet.errors import BadSignature, KvnetError, MalformedFile, StoreFull, UnsupportedFormat
from kvnet.format.awkg import pack_head
from kvnet.identity.seal import SEAL_TYPE
from kvnet.identity.signing import sign_message
from tests.builders import (
    MAP_ID,
    RECEIVER,
    SENDER,
    make_basis,
    make_head,
    make_memory,
    make_port,
    wire_chunks,
)
from tests.kvnetd.nodes import making

MEMORY = make_memory()
CODING, BASIS = make_basis()
COMPACT = make_memory(coding=CODING)


def file_of(memory: object = MEMORY) -> bytes:
    """The `.awkg` file of a memory, as SENDER writes it."""
    sealed = make_head(memory).sealed  # type: ignore[arg-type]
    return sealed.body + b"".join(wire_chunks(memory)[1]) + sealed.signature  # type: ignore[arg-type]


async def sent(*pieces: tuple[str, bytes]) -> AsyncIterator[tuple[str, bytes]]:
    for piece in pieces:
        yield piece


class Endless:
    """A stream that never ends by itself; counts what was taken of it."""

    def __init__(self, start: bytes, block: bytes = bytes(1 << 16)) -> None:
        self.pieces, self._start, self._block = 0, start, block

    async def __aiter__(self) -> AsyncIterator[tuple[str, bytes]]:
        yield "memory", self._start
        while True:
            self.pieces += 1
            assert self.pieces < 1000
            yield "memory", self._block


def nothing_is_left(services: Services) -> bool:
    return not list(services.memories.root.iterdir()) and not list(services.bases.root.iterdir())


@pytest.mark.parametrize(
    ("start", "why"),
    [(b"", "wanted b'AWKG'"), (b"AWKG\3\0\xff\xff\xff\xff", "a header of 4294967295"), (b"PK\3\4", "AWKG")],
)
async def test_stream_that_is_no_memory_file_is_refused_at_its_first_bytes(
    services: Services, start: bytes, why: str
) -> None:
    stream = Endless(start)
    with pytest.raises(MalformedFile, match=why):
        await files.import_(services, stream.__aiter__())
    assert stream.pieces <= 1
    assert nothing_is_left(services)


async def test_file_of_another_version_is_refused_at_its_first_bytes(services: Services) -> None:
    stream = Endless(b"AWKG\4\0\2\0\0\0")
    with pytest.raises(UnsupportedFormat):
        await files.import_(services, stream.__aiter__())
    assert stream.pieces == 0


async def test_head_that_is_no_head_is_refused_before_its_sections_come(services: Services) -> None:
    stream = Endless(b"AWKG\3\0\2\0\0\0{}")
    with pytest.raises(MalformedFile, match="missing"):
        await files.import_(services, stream.__aiter__())
    assert stream.pieces == 0


async def test_file_that_never_ends_is_refused_where_its_head_says_it_ends(services: Services) -> None:
    stream = Endless(file_of())
    with pytest.raises(MalformedFile, match="goes on behind what its head says"):
        await files.import_(services, stream.__aiter__())
    assert stream.pieces == 1
    assert nothing_is_left(services)


def test_claim_of_sections_beyond_any_is_not_believed(memories: MemoryStore) -> None:
    """Its lengths would fill a disk; nothing that this head could tell of is longer than a section may be."""
    header = make_head(MEMORY).header
    length = f'"wireLength":{header.sections[-1].wire_nbytes}'.encode()
    sealed = make_head(MEMORY).sealed.body
    at = sealed.rindex(length)
    head = sealed[10:at] + b'"wireLength":' + b"9" * 15 + sealed[at + len(length) :]
    upload = Upload(memories)
    upload.write(sealed[:6] + len(head).to_bytes(4, "little") + head)
    most = [bytes(1 << 20)] * 20
    with pytest.raises(MalformedFile, match="goes on"):
        collections.deque(map(upload.write, most))
    assert (upload.folder / SECTIONS_FILE).stat().st_size <= len(MEMORY.chunks) << 20
    upload.discard()


@pytest.mark.parametrize("nbytes", [0, 5, 9, 10, 500, -65, -64, -1])
async def test_file_cut_short_is_refused_and_names_no_path_of_this_node(
    services: Services, nbytes: int
) -> None:
    with pytest.raises(KvnetError) as refused:
        await files.import_(services, sent(("memory", file_of()[:nbytes])))
    assert refused.value.code in ("malformed_file", "bad_signature")
    assert refused.value.message.startswith("memory file: ")
    assert str(services.memories.root) not in refused.value.message
    assert nothing_is_left(services)


async def test_altered_section_is_refused_and_names_no_path_of_this_node(services: Services) -> None:
    data = bytearray(file_of())
    data[-65] ^= 1
    with pytest.raises(BadSignature, match=r"^memory file: section 5 is not what was signed"):
        await files.import_(services, sent(("memory", bytes(data))))
    assert nothing_is_left(services)


async def test_checksum_that_belies_the_sections_is_refused(services: Services) -> None:
    header = make_head(MEMORY).header
    belied = replace(header.repeated, checksum="sha256:" + "0" * 64)
    sealed = sign_message(SENDER, SEAL_TYPE, pack_head(replace(header, repeated=belied)))
    data = sealed.body + b"".join(wire_chunks(MEMORY)[1]) + sealed.signature
    with pytest.raises(MalformedFile, match="checksum"):
        await files.import_(services, sent(("memory", data)))
    assert nothing_is_left(services)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1 << 20])
async def test_file_in_pieces_of_any_size_becomes_the_memory(services: Services, size: int) -> None:
    data = file_of()
    pieces = [("memory", data[start : start + size]) for start in range(0, len(data), size)]
    info = await files.import_(services, sent(*pieces))
    record = services.memories.get(MEMORY.header.id)
    assert (info.id, record.origin) == (MEMORY.header.id, SENDER.node_id)
    assert b"".join(services.memories.export(record)) == data


def test_sections_are_synced_before_the_memory_is_in_place(
    memories: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = Upload(memories)
    upload.write(file_of())
    sections = (upload.folder / SECTIONS_FILE).stat()
    synced: list[int] = []
    fdatasync = os.fdatasync

    def count(handle: int) -> None:
        found = os.fstat(handle)
        if found.st_ino == sections.st_ino:
            synced.append(found.st_size)
        fdatasync(handle)

    monkeypatch.setattr(os, "fdatasync", count)
    head = upload.verify()
    assert synced == [head.header.sections_nbytes]
    upload.discard()


async def test_room_is_asked_for_as_soon_as_the_head_tells_how_much(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvnetd.store.disk.free_nbytes", lambda folder: 1)
    stream = Endless(make_head(MEMORY).sealed.body)
    with pytest.raises(StoreFull, match="forget some"):
        await files.import_(services, stream.__aiter__())
    assert stream.pieces == 0
    assert nothing_is_left(services)


async def test_store_answers_others_while_a_file_is_verified(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verification waits for a call to the store's thread: on that thread it would wait for ever."""
    loop = asyncio.get_running_loop()
    verify = Upload.verify

    def with_a_call_meanwhile(upload: Upload) -> object:
        asked = asyncio.run_coroutine_threadsafe(memories.list_memories(services), loop)
        assert asked.result(timeout=30) == ()
        return verify(upload)

    monkeypatch.setattr(Upload, "verify", with_a_call_meanwhile)
    assert (await files.import_(services, sent(("memory", file_of())))).id == MEMORY.header.id


async def test_calibration_comes_in_with_the_memory_that_needs_it(services: Services) -> None:
    await files.import_(
        services, sent(("basis", BASIS[:100]), ("basis", BASIS[100:]), ("memory", file_of(COMPACT)))
    )
    assert services.bases.get(CODING.basis) == BASIS


async def test_coordinates_are_imported_and_exported_with_their_port(services: Services) -> None:
    coding, port = make_port()
    memory = make_memory(coding=coding)
    found = await files.import_(services, sent(("basis", port), ("memory", file_of(memory))))
    assert (found.id, found.codec, found.needs_basis) == (memory.header.id, "port8", "")
    assert services.memories.get(memory.header.id).head.w_matrix_reference == MAP_ID
    pieces = {basis: files.export(services, memory.header.id, basis=basis) for basis in (True, False)}
    exported = {basis: b"".join([piece async for piece in pieces[basis]]) for basis in pieces}
    assert exported == {True: port, False: file_of(memory)}


@pytest.mark.parametrize("memory", [MEMORY, COMPACT], ids=["needs none", "needs another"])
async def test_calibration_without_a_use_is_refused_with_its_memory(
    services: Services, memory: object
) -> None:
    with pytest.raises(MalformedFile, match=r"calibration: sha256:.* but the memory needs"):
        await files.import_(services, sent(("basis", b"other"), ("memory", file_of(memory))))
    assert nothing_is_left(services)


async def test_calibration_of_a_file_that_does_not_verify_is_not_kept(services: Services) -> None:
    data = bytearray(file_of(COMPACT))
    data[-65] ^= 1
    with pytest.raises(BadSignature):
        await files.import_(services, sent(("basis", BASIS), ("memory", bytes(data))))
    assert nothing_is_left(services)


async def test_caller_that_goes_away_leaves_nothing(services: Services) -> None:
    held = asyncio.Event()

    async def stalled() -> AsyncIterator[tuple[str, bytes]]:
        yield "memory", file_of()[:-1]
        held.set()
        await asyncio.Event().wait()

    importing = asyncio.create_task(files.import_(services, stalled()))
    await held.wait()
    importing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await importing
    assert nothing_is_left(services)


def test_upload_that_was_cut_off_is_cleared_at_the_next_start(memories: MemoryStore, tmp_path: Path) -> None:
    record = memories.put(make_memory(1), making(), RECEIVER)
    upload = Upload(memories)
    upload.write(file_of())
    store = MemoryStore(memories.root)
    assert [entry.name for entry in store.root.iterdir()] == [record.id]
    upload.discard()
