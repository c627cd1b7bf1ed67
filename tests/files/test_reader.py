"""Rules 1 to 11 of FORMAT.md §7.2 on whole files, each by its error."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from kvnet.errors import (
    BadSignature,
    KvnetError,
    MalformedChunk,
    MalformedFile,
    RequestError,
    UnsupportedFormat,
)
from kvnet.files.reader import MemoryFile
from kvnet.format.attention import unpack_attention
from kvnet.format.awkg import SectionFacts, make_sections, pack_head
from kvnet.format.compress import zstd
from kvnet.identity.seal import seal_head
from kvnet.types import Compression, Kind, chunk_digest, sha256_hex
from tests.files.conftest import SmallFile
from tests.format.memory_files import (
    OTHER,
    WRITER,
    file_of,
    head_with,
    make_attention,
    make_awkg_header,
    make_finite,
    make_header_of_memory,
    make_parts,
    make_raw_memory,
    with_fields,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "memory_v3.awkg"


def read_all(path: Path) -> None:
    """Rules 1 to 11."""
    with MemoryFile.open(path) as file:
        file.verify()


def forged(small: SmallFile, index: int, wire: bytes, compression: Compression) -> Path:
    """The file with another section, everything else made to agree with it and signed."""
    facts, wires = make_parts(small.memory, Compression.SPLIT)
    wires[index] = wire
    facts[index] = SectionFacts(compression, len(wire), len(small.memory.chunks[index]), chunk_digest(wire))
    sections = make_sections(small.memory.header, facts)
    header = replace(small.header, sections=sections)
    return small.replaced(file_of(pack_head(header), wires))


# Reading


def test_every_section_reads_back(small: SmallFile) -> None:
    with MemoryFile.open(small.path) as file:
        assert file.header == small.header
        assert file.memory_id == small.memory.header.id
        assert file.head.sealed == small.sealed
        assert file.head.file_nbytes == len(small.data)
        for i, raw in enumerate(small.memory.chunks):
            assert file.read(i) == small.wires[i]
            assert bytes(file.raw(i)) == raw
    assert {section.compression for section in small.header.sections} == {Compression.NONE, Compression.SPLIT}


def test_layer_names_its_sections_in_order(small: SmallFile) -> None:
    with MemoryFile.open(str(small.path)) as file:
        assert [list(file.layer(i)) for i in range(3)] == [[0, 1, 2], [3, 4, 5], []]


def test_attention_metadata_reads_back(small: SmallFile) -> None:
    with MemoryFile.open(small.path) as file:
        memory = file.header.memory
        assert unpack_attention(file.raw(5), memory, 1) == make_attention(memory, 1)


def test_verify_tells_how_far_it_is(small: SmallFile) -> None:
    told: list[tuple[int, int]] = []
    with MemoryFile.open(small.path) as file:
        file.verify(lambda done, total: told.append((done, total)))
        total = file.header.sections_nbytes
    assert told == [(sum(map(len, small.wires[: i + 1])), total) for i in range(6)]
    assert told[-1] == (total, total)


def test_threads_share_one_file(small: SmallFile) -> None:
    meet = threading.Barrier(4)
    with MemoryFile.open(small.path) as file, ThreadPoolExecutor(4) as pool:

        def read_in(order: int) -> bool:
            meet.wait()
            indices = [(i * order) % 6 for i in range(1200)]
            return all(bytes(file.raw(i)) == small.memory.chunks[i] for i in indices)

        assert all(pool.map(read_in, (1, 5, 7, 11)))


def test_closed_file_is_not_read(small: SmallFile) -> None:
    with MemoryFile.open(small.path) as file:
        pass
    file.close()
    with pytest.raises(RequestError, match="cannot be read"):
        file.read(0)


def test_no_descriptor_is_left_open(small: SmallFile) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(5):
        read_all(small.path)
    for data in (small.data[:-1], b"AWKG"):
        with pytest.raises(KvnetError):
            MemoryFile.open(small.replaced(data))
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


# Rules 1 to 3


@pytest.mark.parametrize("data", [b"", b"AWKG", b"AWKG\x03\x00\x02\x00\x00", b"PK\x03\x04" + bytes(100)])
def test_other_files_are_malformed(small: SmallFile, data: bytes) -> None:
    with pytest.raises(MalformedFile):
        MemoryFile.open(small.replaced(data))


@pytest.mark.parametrize("version", [2, 4])
def test_other_version_is_unsupported(small: SmallFile, version: int) -> None:
    data = small.data[:4] + struct.pack("<H", version) + small.data[6:]
    with pytest.raises(UnsupportedFormat):
        MemoryFile.open(small.replaced(data))


@pytest.mark.parametrize("spare", [-1, 0, 63])
def test_header_longer_than_the_file_is_refused(small: SmallFile, spare: int) -> None:
    nbytes = len(small.data) - 10 - spare
    data = small.data[:6] + struct.pack("<I", nbytes) + small.data[10:]
    with pytest.raises(MalformedFile, match="cut short"):
        MemoryFile.open(small.replaced(data))


def test_header_that_is_no_header_is_malformed_though_it_is_signed(small: SmallFile) -> None:
    for body in (b"{}", b"\xff\xff", b'{"version":3}'):
        head = struct.pack("<4sHI", b"AWKG", 3, len(body)) + body
        with pytest.raises(MalformedFile):
            MemoryFile.open(small.replaced(file_of(head, small.wires)))


# Rule 4


def test_signature_of_another_key_is_refused(small: SmallFile) -> None:
    with pytest.raises(BadSignature):
        MemoryFile.open(small.replaced(file_of(small.sealed.body, small.wires, OTHER)))


# Rules 5 to 7, of which tests/format/test_awkg.py has each case


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(quantization="int8"),
        lambda d: d["sections"].pop(),
        lambda d: d["sections"][1].update(offset=1),
        lambda d: d["sections"][1].update(rawLength=2**40),
    ],
)
def test_head_that_contradicts_itself_is_malformed(
    small: SmallFile, change: Callable[[dict[str, object]], object]
) -> None:
    head = head_with(small.sealed.body, change)
    with pytest.raises(MalformedFile):
        MemoryFile.open(small.replaced(file_of(head, small.wires)))


# Rule 8


def test_file_cut_at_any_byte_is_refused(small: SmallFile) -> None:
    for nbytes in range(len(small.data)):
        with pytest.raises((MalformedFile, BadSignature)):
            MemoryFile.open(small.replaced(small.data[:nbytes]))


@pytest.mark.parametrize("change", [lambda wires: wires[:-1], lambda wires: (*wires, b"\0"), lambda _: ()])
def test_section_missing_or_trailing_is_malformed(
    small: SmallFile, change: Callable[[tuple[bytes, ...]], tuple[bytes, ...]]
) -> None:
    data = file_of(small.sealed.body, change(small.wires))
    with pytest.raises(MalformedFile, match="its head says"):
        MemoryFile.open(small.replaced(data))


def test_bytes_behind_the_signature_are_refused(small: SmallFile) -> None:
    for tail in (b"\0", small.data[-64:]):
        with pytest.raises((MalformedFile, BadSignature)):
            MemoryFile.open(small.replaced(small.data + tail))


# Rule 9


def test_flipped_byte_anywhere_is_refused(small: SmallFile) -> None:
    for at in range(len(small.data)):
        data = bytearray(small.data)
        data[at] ^= 0x10
        with pytest.raises((MalformedFile, BadSignature, UnsupportedFormat)):
            read_all(small.replaced(bytes(data)))


def test_flipped_byte_spoils_its_own_section_alone(small: SmallFile) -> None:
    data = bytearray(small.data)
    data[len(small.sealed.body) + small.header.sections[1].offset] ^= 1
    with MemoryFile.open(small.replaced(bytes(data))) as file:
        for i in range(6):
            if i == 1:
                with pytest.raises(BadSignature, match="section 1 is not what was signed"):
                    file.raw(i)
            else:
                assert bytes(file.raw(i)) == small.memory.chunks[i]


def test_file_that_shrinks_while_it_is_open_is_refused(small: SmallFile) -> None:
    with MemoryFile.open(small.path) as file:
        os.truncate(small.path, len(small.sealed.body) + 10)
        with pytest.raises(BadSignature):
            file.read(0)


# Rule 10


@pytest.mark.parametrize(
    ("wire", "used"),
    [
        (b"no lz4", Compression.LZ4),
        (b"no zstd", Compression.ZSTD),
        (b"no planes", Compression.SPLIT),
        (zstd.compress(bytes(79)), Compression.ZSTD),
        (zstd.compress(bytes(81)), Compression.ZSTD),
        (zstd.compress(bytes(64 << 10)), Compression.ZSTD),
        (zstd.compress(bytes(80)) + b"\0", Compression.ZSTD),
    ],
)
def test_section_that_does_not_decompress_is_a_malformed_chunk(
    small: SmallFile, wire: bytes, used: Compression
) -> None:
    path = forged(small, 1, wire, used)
    with MemoryFile.open(path) as file:
        assert file.read(1) == wire
        with pytest.raises(MalformedChunk, match="section 1"):
            file.raw(1)
        with pytest.raises(MalformedChunk, match="section 1"):
            file.verify()


# Rule 11


def test_content_digest_of_other_contents_is_refused(small: SmallFile) -> None:
    memory = replace(small.memory.header, content_digest=sha256_hex(b"other"))
    sealed = seal_head(WRITER, replace(small.header, memory=memory))
    with pytest.raises(BadSignature, match="contentDigest"):
        read_all(small.replaced(file_of(sealed.body, small.wires)))


# What is no file


def test_folder_fifo_socket_and_device_are_malformed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo, link = tmp_path / "fifo", tmp_path / "link"
    os.mkfifo(fifo)
    link.symlink_to("/dev/zero")
    bound = socket.socket(socket.AF_UNIX)
    with bound:
        monkeypatch.chdir(tmp_path)  # names of sockets are short
        bound.bind("socket")
        for path in (tmp_path, fifo, link, Path("/dev/null"), tmp_path / "socket"):
            with pytest.raises(MalformedFile, match="not a regular file"):
                MemoryFile.open(path)


def test_symlink_to_a_file_is_followed(small: SmallFile) -> None:
    link = small.path.with_name("link.awkg")
    link.symlink_to(small.path)
    read_all(link)


def test_missing_file_is_the_callers_to_mend(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="No such file"):
        MemoryFile.open(tmp_path / "missing.awkg")
    with pytest.raises(RequestError, match="cannot be read"):
        MemoryFile.open(tmp_path / ("x" * 300))


# The file that never changes


def test_golden_file_is_read_as_it_was_made() -> None:
    """Made once by `write_memory_file` from exactly what is built here; compressed by zstd 1.5.7."""
    memory = make_finite(make_raw_memory(make_header_of_memory(seq_len=40, start_pos=3), seed=2))
    with MemoryFile.open(GOLDEN) as file:
        file.verify()
        header = file.header
        assert header.memory == memory.header
        assert [bytes(file.raw(i)) for i in range(len(header.sections))] == list(memory.chunks)
        used = {(section.key.kind, section.compression) for section in header.sections}
    assert used == {
        (Kind.KEY, Compression.NONE),
        (Kind.VALUE, Compression.SPLIT),
        (Kind.ATTENTION, Compression.ZSTD),
    }
    built, _ = make_awkg_header(memory, Compression.SPLIT)
    assert with_fields(header, sections=()) == with_fields(built, sections=())
