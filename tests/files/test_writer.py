"""A file is there whole or not at all, and is what it was made from."""

from __future__ import annotations

import os
import re
import resource
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from kvnet.errors import BadSignature, RequestError, StoreFull
from kvnet.files.reader import MemoryFile
from kvnet.files.writer import MemoryFileWriter, replacing, write_memory_file
from kvnet.format.awkg import AwkgHeader, Metadata
from kvnet.identity.seal import VerifiedHead, seal_head
from kvnet.plan import plan_memory, raw_nbytes_range
from kvnet.types import Compression, DType, Geometry, MemoryHeader, RawMemory, Rope
from tests.builders import MAP_ID, make_memory, make_port
from tests.files.conftest import SmallFile
from tests.files.test_reader import GOLDEN
from tests.format.memory_files import (
    CREATED_AT,
    OTHER,
    WRITER,
    make_header_of_memory,
    make_raw_memory,
    memory_files,
    seal_anything,
)

MEMORY = make_raw_memory(make_header_of_memory())


def finished(writer: MemoryFileWriter, seq_len: int, **changes: Any) -> VerifiedHead:
    """`finish` with what the tests do not care about."""
    plain = {"created_by": "tests", "metadata": Metadata("", "", "", None, seq_len)}
    return writer.finish(WRITER, created_at=CREATED_AT, **{**plain, **changes})


def written(path: Path, memory: RawMemory, compression: Compression, **options: Any) -> VerifiedHead:
    """A memory written chunk by chunk."""
    with MemoryFileWriter(path, memory.header, compression, **options) as writer:
        for raw in memory.chunks:
            writer.add(raw)
        return finished(writer, memory.header.seq_len)


# From raw chunks


def test_coordinates_of_a_port_are_written_under_the_id_of_their_map_and_under_no_other(
    tmp_path: Path,
) -> None:
    memory, path = make_memory(coding=make_port()[0]), tmp_path / "m.awkg"
    for reference in ("", "to-b", MAP_ID):
        with MemoryFileWriter(path, memory.header, Compression.ZSTD) as writer:
            for raw in memory.chunks:
                writer.add(raw)
            if reference == MAP_ID:
                finished(writer, memory.header.seq_len, w_matrix_reference=reference)
            else:
                with pytest.raises(ValueError, match="wanted the id of the map"):
                    finished(writer, memory.header.seq_len, w_matrix_reference=reference)
        assert path.exists() == (reference == MAP_ID)
    with MemoryFile.open(path) as file:
        file.verify()
        assert (file.header.memory, file.header.w_matrix_reference) == (memory.header, MAP_ID)
        assert [bytes(file.raw(i)) for i in file.layer(0)] == list(memory.chunks)


# From wire bytes


@given(made=memory_files())
def test_written_file_reads_back(
    made: tuple[RawMemory, AwkgHeader, list[bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    memory, header, wires = made
    path = tmp_path_factory.mktemp("written") / "memory.awkg"
    sealed = seal_head(WRITER, header)
    head = write_memory_file(path, sealed, wires)
    with MemoryFile.open(path) as file:
        file.verify()
        assert (file.head, file.header) == (head, header)
        assert tuple(bytes(file.raw(i)) for i in range(len(wires))) == memory.chunks
    assert path.read_bytes() == sealed.body + b"".join(wires) + sealed.signature


def test_golden_file_is_byte_identical_when_rewritten(tmp_path: Path) -> None:
    with MemoryFile.open(GOLDEN) as file:
        wires = [file.read(i) for i in range(len(file.header.sections))]
        sealed = seal_head(WRITER, file.header)
    write_memory_file(tmp_path / "again.awkg", sealed, wires)
    assert (tmp_path / "again.awkg").read_bytes() == GOLDEN.read_bytes()


def test_file_in_place_is_replaced_and_private(small: SmallFile) -> None:
    small.path.write_bytes(b"something else")
    small.path.chmod(0o644)
    write_memory_file(str(small.path), small.sealed, map(memoryview, small.wires))
    assert small.path.read_bytes() == small.data
    assert stat.S_IMODE(small.path.stat().st_mode) == 0o600


def test_chunks_that_are_not_those_of_the_table_are_refused(small: SmallFile) -> None:
    first, *rest = small.wires
    for wires in ([], rest, [*small.wires, b"x"], [first[:-1], *rest], [bytes(len(first)), *rest]):
        small.path.write_bytes(b"before")
        with pytest.raises(ValueError):  # noqa: PT011 -- the message is zip's for a missing one
            write_memory_file(small.path, small.sealed, wires)
        assert small.path.read_bytes() == b"before"
        assert os.listdir(small.path.parent) == ["small.awkg"]  # noqa: PTH208


def test_nothing_is_written_under_a_bad_signature(small: SmallFile, tmp_path: Path) -> None:
    forged = replace(small.sealed, signature=seal_anything(small.sealed.body, OTHER).signature)
    with pytest.raises(BadSignature):
        write_memory_file(tmp_path / "new.awkg", forged, small.wires)
    assert not (tmp_path / "new.awkg").exists()


def test_trouble_of_whoever_gives_the_chunks_stays_theirs(small: SmallFile, tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield small.wires[0]
        raise ConnectionError("peer went away")

    with pytest.raises(ConnectionError):
        write_memory_file(tmp_path / "new.awkg", small.sealed, broken())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.awkg"]


def test_folder_that_cannot_be_written_is_the_callers_to_mend(small: SmallFile, tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "new.awkg", small.path / "new.awkg", tmp_path):
        with pytest.raises(RequestError, match="cannot be written"):
            write_memory_file(path, small.sealed, small.wires)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.awkg"]


def test_only_a_regular_file_is_ever_replaced(small: SmallFile, tmp_path: Path) -> None:
    other = tmp_path / "other.awkg"
    other.write_bytes(b"before")
    (tmp_path / "link").symlink_to(other)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("link", "dangling", "pipe", "folder"):
        before = (tmp_path / name).lstat()
        with pytest.raises(RequestError, match=f"{name}: cannot be written, it is no regular file"):
            write_memory_file(tmp_path / name, small.sealed, small.wires)
        assert (tmp_path / name).lstat() == before
    assert other.read_bytes() == b"before"
    assert not list(tmp_path.glob(".kvnet-*"))


def test_file_that_is_to_be_new_is_not_written_over_one_that_is_there_or_came_meanwhile(
    small: SmallFile, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="exists already"), replacing(small.path, only_new=True):
        raise AssertionError("begun")
    with (  # noqa: PT012
        pytest.raises(RequestError, match="exists already"),
        replacing(tmp_path / "new", only_new=True) as write,
    ):
        write(b"mine")
        (tmp_path / "new").write_bytes(b"theirs")
    assert (small.path.read_bytes(), (tmp_path / "new").read_bytes()) == (small.data, b"theirs")
    assert not list(tmp_path.glob(".kvnet-*"))


def test_disk_without_room_is_a_matter_of_capacity_and_leaves_nothing(
    small: SmallFile, tmp_path: Path
) -> None:
    big = make_raw_memory(make_header_of_memory(geometry=replace(MEMORY.header.geometry, num_layers=200)))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for compression in (Compression.NONE, Compression.SPLIT):
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, limits[1]))  # python ignores SIGXFSZ
        try:
            with pytest.raises(StoreFull, match="no room"):
                written(tmp_path / "new.awkg", big, compression)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.awkg"]


# From raw chunks


@pytest.mark.parametrize("compression", Compression)
def test_writer_makes_a_file_from_raw_chunks(tmp_path: Path, compression: Compression) -> None:
    path = tmp_path / "memory.awkg"
    head = written(path, MEMORY, compression)
    assert [entry.name for entry in tmp_path.iterdir()] == ["memory.awkg"]
    with MemoryFile.open(path) as file:
        file.verify()
        assert file.head == head
        assert file.header.memory == MEMORY.header
        assert file.header.compression is compression
        assert tuple(bytes(file.raw(i)) for i in range(6)) == MEMORY.chunks
        used = [section.compression for section in file.header.sections]
    assert used[:2] == used[3:5] == [Compression.NONE, compression]  # noise and zeros


def test_writer_fills_in_the_content_digest(tmp_path: Path) -> None:
    unknown = RawMemory(replace(MEMORY.header, content_digest=""), MEMORY.chunks)
    head = written(tmp_path / "memory.awkg", unknown, Compression.ZSTD)
    assert head.header.memory == MEMORY.header


def test_writer_states_the_level_it_used(tmp_path: Path) -> None:
    for level, stated in ((0, [0, 0, 3, 1]), (5, [0, 0, 5, 5])):
        heads = [written(tmp_path / "a", MEMORY, compression, level=level) for compression in Compression]
        assert [head.header.compression_level for head in heads] == stated


def test_writer_keeps_what_it_is_told(tmp_path: Path) -> None:
    with MemoryFileWriter(tmp_path / "a", MEMORY.header, Compression.NONE) as writer:
        for raw in MEMORY.chunks:
            writer.add(memoryview(raw))
        metadata = Metadata("law", "leases", "en", 0.25, 5)
        alignment = {"λ": {"snake_case": 0.1}}
        told = {"w_matrix_reference": "to-b", "alignment": alignment, "created_by": "me"}
        finished(writer, 5, metadata=metadata, **told)
    with MemoryFile.open(tmp_path / "a") as file:
        header = file.header
    assert (header.metadata, header.w_matrix_reference, header.created_by) == (metadata, "to-b", "me")
    assert (header.alignment, header.created_at) == (alignment, CREATED_AT)
    assert header.signed_by == WRITER.node_id


def test_writer_refuses_what_is_not_the_plan(tmp_path: Path) -> None:
    with MemoryFileWriter(tmp_path / "a", MEMORY.header, Compression.NONE) as writer:
        with pytest.raises(ValueError, match="0 of 6 chunks"):
            finished(writer, 5)
        with pytest.raises(ValueError, match="chunk 0 has 79 bytes"):
            writer.add(bytes(79))
        for raw in MEMORY.chunks:
            writer.add(raw)
        with pytest.raises(ValueError, match="all 6 chunks"):
            writer.add(MEMORY.chunks[0])
        with pytest.raises(ValueError, match="tokenCount is 4"):
            finished(writer, 4)
    assert list(tmp_path.iterdir()) == []


def test_writer_refuses_other_contents_than_the_digest_says(tmp_path: Path) -> None:
    other = make_raw_memory(MEMORY.header, seed=9)
    with pytest.raises(ValueError, match="content digest"):
        written(tmp_path / "a", RawMemory(MEMORY.header, other.chunks), Compression.NONE)
    assert list(tmp_path.iterdir()) == []


def test_writer_left_early_leaves_nothing(tmp_path: Path) -> None:
    with MemoryFileWriter(tmp_path / "a", MEMORY.header, Compression.NONE) as writer:
        writer.add(MEMORY.chunks[0])
        (spool,) = tmp_path.iterdir()
        assert re.fullmatch(r"\.kvnet-[0-9a-f]{16}\.part", spool.name)
        assert stat.S_IMODE(spool.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == []


# Size


def resident_peak_nbytes() -> int:
    """The most memory this process ever had resident since `forget_resident_peak`."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])  # type: ignore[index]


def forget_resident_peak() -> None:
    """Count the peak from here."""
    Path("/proc/self/clear_refs").write_text("5")


def quarter_gibibyte() -> MemoryHeader:
    """256 chunks of 1 MiB: 32 layers of 8 heads of 128 in float16, 2,048 tokens."""
    geometry = Geometry(32, 8, 128, DType.FLOAT16, Rope("default", 10000.0))
    return make_header_of_memory(geometry=geometry, seq_len=2048, attention_heads=0)


@pytest.mark.slow
@pytest.mark.parametrize("compression", [Compression.NONE, Compression.SPLIT])
def test_file_of_256_mib_takes_little_memory_to_write_and_verify(
    tmp_path: Path, compression: Compression
) -> None:
    memory = quarter_gibibyte()
    blocks = [os.urandom(1 << 19) + bytes(1 << 19) for _ in range(4)]
    plan = plan_memory(memory)
    assert {raw_nbytes_range(memory, key)[0] for key in plan} == {1 << 20}
    forget_resident_peak()
    before = resident_peak_nbytes()
    with MemoryFileWriter(tmp_path / "big.awkg", memory, compression) as writer:
        for key in plan:
            writer.add(blocks[key.index % 4])
        finished(writer, memory.seq_len)
    with MemoryFile.open(tmp_path / "big.awkg") as file:
        file.verify()
    assert resident_peak_nbytes() - before < 40 << 20
