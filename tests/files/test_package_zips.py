"""What a zip may say of itself: two stories about one file, lies about sizes, and other ways to smuggle."""

from __future__ import annotations

import stat
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from kvnet.errors import MalformedPackage
from kvnet.files.package import Package
from tests.files.packages import Files, make_package, sign_files, write_zip

ALLOWANCE_NBYTES = 16 << 20
LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_package(tmp_path_factory.mktemp("good")).files


def check(path: Path) -> None:
    """Every byte."""
    with Package.open(path) as package:
        package.verify()


def patched(zipped: bytes, mark: bytes, offset: int, layout: str, value: int) -> bytes:
    """The zip with another number in the first record that starts with `mark`."""
    at = zipped.index(mark) + offset
    size = struct.calcsize(layout)
    return zipped[:at] + struct.pack(layout, value) + zipped[at + size :]


def in_both(central: int, local: int, layout: str, value: int) -> Callable[[bytes], bytes]:
    """A number changed in the directory and before the bytes alike, so that the two agree."""
    return lambda zipped: patched(
        patched(zipped, CENTRAL, central, layout, value), LOCAL, local, layout, value
    )


def in_one(mark: bytes, offset: int, layout: str, value: int) -> Callable[[bytes], bytes]:
    return lambda zipped: patched(zipped, mark, offset, layout, value)


LIES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "bytes before it": (lambda zipped: b"#!/bin/sh\n" + zipped, "precedes or follows"),
    "bytes behind it": (lambda zipped: zipped + b"\0", "does not end with its directory"),
    "a comment": (lambda zipped: zipped[:-2] + b"\1\0x", "does not end with its directory"),
    "cut at the end": (lambda zipped: zipped[:-1], "does not end with its directory"),
    "cut to nothing": (lambda zipped: b"", "shorter than its own directory"),
    "an end alone": (lambda zipped: zipped[-22:], "precedes or follows"),
    "an encrypted file": (in_both(8, 6, "<H", 1), "encrypted"),
    "unknown flags": (in_both(8, 6, "<H", 0x10), "unknown flags"),
    "another method": (in_both(10, 8, "<H", 12), "method 12"),
    "another method in one place": (in_one(LOCAL, 8, "<H", 0), "two different ways"),
    "another CRC in one place": (in_one(LOCAL, 14, "<L", 7), "two different ways"),
    "another size in one place": (in_one(LOCAL, 22, "<L", 7), "two different ways"),
    "another name in one place": (lambda zipped: zipped.replace(b"signature", b"signatura", 1), "two"),
    "more than deflate can": (in_both(24, 22, "<L", 0xFFFFFF00), "cannot be"),
    "a file count that is wrong": (in_one(END, 10, "<H", 3), "which says 3"),
    "a directory elsewhere": (in_one(END, 16, "<L", 5), "precedes or follows"),
    "a large directory": (in_one(END, 12, "<L", 1 << 30), "a directory of"),
    "a later zip version": (in_one(CENTRAL, 6, "<H", 99), "cannot be read"),
    "a broken directory": (lambda zipped: zipped.replace(CENTRAL, b"PK\1\3", 1), "cannot be read"),
    "a first file elsewhere": (in_one(CENTRAL, 42, "<L", 1), "gap or an overlap"),
    "two files in one place": (
        lambda zipped: patched(zipped, CENTRAL, 42, "<L", zipped.index(LOCAL, 4)), "gap or an overlap"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_zip_that_contradicts_itself_is_refused(good: Files, tmp_path: Path, name: str) -> None:
    lie, why = LIES[name]
    path = write_zip(good, tmp_path / "p.zip")
    check(path)
    path.write_bytes(lie(path.read_bytes()))
    with pytest.raises(MalformedPackage, match=why):
        check(path)


def test_a_gap_between_two_files_is_refused(good: Files, tmp_path: Path) -> None:
    path = tmp_path / "p.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in good.items():
            archive.writestr(zipfile.ZipInfo(name), content)
            archive.fp.write(b"between")  # type: ignore[union-attr]
            archive.start_dir += len(b"between")  # type: ignore[attr-defined]
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None  # others take it
    with pytest.raises(MalformedPackage, match="gap or an overlap"):
        check(path)


@pytest.mark.parametrize(
    "name",
    [
        "../manifest.json",
        "/etc/passwd",
        "alignments/../../x.bin",
        "alignments\\x.bin",
        "C:x.bin",
        "alignments/",
        "alignments/x.bin/",
        "./manifest.json",
        "Manifest.json",
        "alignments/é.bin",
        "alignments/x.bin\0.txt",
        "",
    ],
)
def test_a_name_that_is_none_of_a_package_is_refused(good: Files, tmp_path: Path, name: str) -> None:
    path = write_zip(good, tmp_path / "p.zip")
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("x")
        info.filename = name  # ZipInfo would mend it
        archive.writestr(info, b"x")
    with pytest.raises(MalformedPackage):
        check(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["manifest.json", "alignments/TO-OTHER.bin"])
def test_a_path_stored_twice_is_refused(good: Files, tmp_path: Path, name: str) -> None:
    path = write_zip(good, tmp_path / "p.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(MalformedPackage, match="there twice"):
        check(path)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFDIR, stat.S_IFCHR])
def test_what_is_no_regular_file_is_refused(good: Files, tmp_path: Path, kind: int) -> None:
    path = tmp_path / "p.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in good.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (kind | 0o777) << 16 if name == "preview.json" else 0
            archive.writestr(info, content)
    with pytest.raises(MalformedPackage, match=r"preview\.json.*no regular file"):
        check(path)


def entry(name: str, content: bytes, packed: bytes, *, nbytes: int | None = None) -> tuple[bytes, bytes]:
    """A deflated file and its line in the directory, with a size of one's choice."""
    size = len(content) if nbytes is None else nbytes
    facts = struct.pack("<HHHHHLLLHH", 20, 0, 8, 0, 33, zlib.crc32(content), len(packed), size, len(name), 0)
    central = struct.pack("<4sH", CENTRAL, 20) + facts + struct.pack("<HHHL", 0, 0, 0, 0)
    return LOCAL + facts + name.encode() + packed, central


def zip_of(entries: list[tuple[str, tuple[bytes, bytes]]]) -> bytes:
    """A zip by hand."""
    body, directory = b"", b""
    for name, (local, central) in entries:
        directory += central + struct.pack("<L", len(body)) + name.encode()
        body += local
    end = struct.pack("<4s4H2LH", END, 0, 0, len(entries), len(entries), len(directory), len(body), 0)
    return body + directory + end


def deflate(content: bytes) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflater.compress(content) + deflater.flush()


def with_entry(files: Files, name: str, packed: bytes, *, nbytes: int | None = None) -> bytes:
    """The package as a zip in which one file is stored in another way."""
    made = {other: entry(other, content, deflate(content)) for other, content in files.items()}
    made[name] = entry(name, files[name], packed, nbytes=nbytes)
    return zip_of(list(made.items()))


def test_a_zip_by_hand_is_read(good: Files, tmp_path: Path) -> None:
    path = tmp_path / "p.zip"
    path.write_bytes(with_entry(good, "preview.json", deflate(good["preview.json"])))
    check(path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda packed: packed[:-3], "without an end"),
        (lambda packed: packed + b"more", "bytes behind"),
        (lambda packed: b"\xff" + packed, "no deflate stream"),
        (lambda packed: b"", "cannot be 1000"),
        (lambda packed: deflate(b"W" * 999), "inflates to 999"),
        (lambda packed: deflate(b"W" * 1001), "inflates to more than the 1000"),
    ],
)
def test_a_file_that_does_not_inflate_to_what_is_listed_is_refused(
    good: Files, tmp_path: Path, change: Callable[[bytes], bytes], why: str
) -> None:
    path, name = tmp_path / "p.zip", "alignments/to-other.bin"
    path.write_bytes(with_entry(good, name, change(deflate(good[name]))))
    with pytest.raises(MalformedPackage, match=why):
        check(path)


@pytest.mark.parametrize(
    "name", ["alignments/to-other.bin", "kv-cache.awkg", "manifest.json", "signature.sig"]
)
def test_a_bomb_is_stopped_at_the_size_it_states(good: Files, tmp_path: Path, name: str) -> None:
    path = tmp_path / "p.zip"
    path.write_bytes(with_entry(good, name, deflate(bytes(256 << 20))))
    tracemalloc.start()
    try:
        with pytest.raises(MalformedPackage, match="inflates to more"):
            check(path)
        assert tracemalloc.get_traced_memory()[1] < ALLOWANCE_NBYTES
    finally:
        tracemalloc.stop()


def test_a_document_that_is_a_bomb_by_its_own_list_is_refused_unread(good: Files, tmp_path: Path) -> None:
    files = sign_files(good | {"preview.json": bytes(64 << 20)})
    path = write_zip(files, tmp_path / "p.zip")
    tracemalloc.start()
    try:
        with pytest.raises(MalformedPackage, match="at most"):
            check(path)
        assert tracemalloc.get_traced_memory()[1] < ALLOWANCE_NBYTES
    finally:
        tracemalloc.stop()


def test_a_zip_of_very_many_files_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "p.zip"
    names = [f"alignments/{i}.bin" for i in range(10_001)]
    path.write_bytes(zip_of([(name, entry(name, b"", deflate(b""))) for name in names]))
    with pytest.raises(MalformedPackage, match="10001 files"):
        check(path)
