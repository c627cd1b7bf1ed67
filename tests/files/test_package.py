"""Packages as folders and zips: written whole or not at all, read back, unpacked, the same in both forms."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tempfile
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnet.errors import BadSignature, MalformedPackage, RequestError, StoreFull
from kvnet.files.package import About, Package, check_listing, is_package, reader, write_package
from kvnet.identity.signing import SignedMessage
from kvnet.types import canonical_json
from tests.builders import SENDER, make_memory
from tests.files.packages import (
    MEASURED,
    PACKER,
    READ,
    TEXT,
    Packed,
    make_package,
    make_parts,
    read_folder,
    sign,
    write_folder,
    write_memory,
    write_zip,
)

ALLOWANCE_NBYTES = 16 << 20
BOTH = pytest.mark.parametrize("form", ["folder", "zip"])


@pytest.fixture
def packed(tmp_path: Path) -> Packed:
    return make_package(tmp_path)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies of zipped memories go meanwhile."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@BOTH
def test_a_package_is_what_was_packed(packed: Packed, form: str) -> None:
    memory = make_memory()
    with Package.open(getattr(packed, form)) as package:
        package.verify()
        awkg = packed.files["kv-cache.awkg"]
        manifest = package.manifest
        assert manifest.package_id[:4] == "pkg_"
        assert (manifest.name, manifest.license, manifest.pricing) == ("notes", "CC0-1.0", {"credits": 50})
        assert (manifest.source_model, manifest.token_count) == ("tiny", 5)
        assert manifest.alignments == {"to-other.bin": "alignments/to-other.bin"}
        assert manifest.quality == package.quality.summary
        assert package.quality.measurements == (MEASURED,)
        assert package.provenance.source_inputs == (TEXT,)
        assert package.provenance.processing_steps == (READ,)
        assert package.preview.file_nbytes == len(awkg)
        assert package.preview.geometry.num_layers == memory.header.geometry.num_layers
        assert [file.path for file in package.files] == sorted(set(packed.files) - {"signature.sig"})
        with package.open_memory() as opened:
            assert opened.memory_id == memory.header.id
            assert opened.header.checksum == package.provenance.integrity_hash
            assert [bytes(opened.raw(i)) for i in range(len(memory.chunks))] == list(memory.chunks)


@BOTH
def test_the_package_has_one_signer_and_the_memory_in_it_another(packed: Packed, form: str) -> None:
    with Package.open(getattr(packed, form)) as package:
        package.verify()
        assert package.signed_by == PACKER.node_id
        with package.open_memory() as memory:
            assert memory.header.signed_by == SENDER.node_id


def test_nothing_but_the_documents_tells_of_the_text(packed: Packed) -> None:
    preview = packed.files["preview.json"]
    assert TEXT.hash.encode() not in preview
    assert TEXT.description.encode() not in preview


@BOTH
def test_files_of_a_package_are_private(packed: Packed, form: str) -> None:
    place = getattr(packed, form)
    for path in (place, *place.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_the_same_package_makes_the_same_zip(packed: Packed, tmp_path: Path) -> None:
    alignments = {"to-other": tmp_path / "w.bin"}
    parts = make_parts(tmp_path / "m.awkg", alignments=alignments)
    write_package(tmp_path / "again.zip", parts, sign)
    assert (tmp_path / "again.zip").read_bytes() == packed.zip.read_bytes()


names = st.from_regex(r"[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,8}", fullmatch=True)


@settings(max_examples=25)
@given(
    alignments=st.dictionaries(names, st.binary(max_size=300), max_size=4),
    name=st.text(min_size=1, max_size=20),
    seq_len=st.integers(1, 40),
)
def test_a_folder_and_an_unpacked_zip_hold_the_same_files(
    alignments: dict[str, bytes], name: str, seq_len: int
) -> None:
    folded = {key.casefold() for key in alignments}
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        memory_file = write_memory(place / "m.awkg", make_memory(seq_len=seq_len))
        sources = {}
        for i, (key, content) in enumerate(alignments.items()):
            sources[key] = place / str(i)
            sources[key].write_bytes(content)
        parts = make_parts(memory_file, about=About(name), alignments=sources)
        if len(folded) < len(alignments):
            with pytest.raises(MalformedPackage, match="twice"):
                write_package(place / "one", parts, sign)
            return
        write_package(place / "one", parts, sign)
        write_package(place / "two.zip", parts, sign)
        with Package.open(place / "two.zip") as package:
            package.verify()
            package.unpack(place / "three")
        with Package.open(place / "three") as package:
            package.unpack(place / "four")
        assert read_folder(place / "four") == read_folder(place / "three") == read_folder(place / "one")


@BOTH
def test_verifying_tells_of_every_byte_once_to_the_end(packed: Packed, form: str) -> None:
    told: list[tuple[int, int]] = []
    with Package.open(getattr(packed, form)) as package:
        package.verify(lambda done, total: told.append((done, total)))
    done = [step[0] for step in told]
    assert done == sorted(done)
    assert {step[1] for step in told} == {done[-1]}


def test_what_is_written_is_told(tmp_path: Path) -> None:
    parts = make_parts(write_memory(tmp_path / "m.awkg"))
    written = write_package(tmp_path / "p", parts, sign)
    assert written.package_id == parts.documents.manifest.package_id
    assert written.signed_by == PACKER.node_id
    assert written.nbytes == sum(map(len, read_folder(tmp_path / "p").values()))


def test_a_package_without_measurements_has_no_quality(tmp_path: Path) -> None:
    parts = make_parts(write_memory(tmp_path / "m.awkg"))
    documents = replace(
        parts.documents,
        manifest=replace(parts.documents.manifest, quality=None),
        quality=replace(parts.documents.quality, measurements=()),
    )
    write_package(tmp_path / "p", replace(parts, documents=documents), sign)
    with Package.open(tmp_path / "p") as package:
        assert package.quality.measurements == ()
        assert package.quality.summary is package.manifest.quality is None


@BOTH
def test_an_altered_package_is_not_unpacked(packed: Packed, tmp_path: Path, form: str) -> None:
    files = packed.files | {"alignments/to-other.bin": b"V" * 1000}
    place = tmp_path / "altered"
    write_folder(files, place) if form == "folder" else write_zip(files, place)
    with Package.open(place) as package, pytest.raises(BadSignature, match="to-other"):
        package.unpack(tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_a_folder_is_not_named_like_a_zip(packed: Packed, tmp_path: Path) -> None:
    with Package.open(packed.zip) as package, pytest.raises(RequestError, match=r"ends in \.zip"):
        package.unpack(tmp_path / "x.zip")


def test_the_copy_of_a_zipped_memory_is_private_and_gone_afterwards(packed: Packed, temporary: Path) -> None:
    with Package.open(packed.zip) as package:
        with package.open_memory():
            (copy,) = temporary.rglob("*.awkg")
            assert stat.S_IMODE(copy.stat().st_mode) == 0o600
            assert stat.S_IMODE(copy.parent.stat().st_mode) == 0o700
        package.verify()
        assert list(temporary.rglob("*.awkg")) == [copy]
    assert list(temporary.iterdir()) == []


def test_a_zipped_memory_that_was_altered_is_never_opened(
    packed: Packed, tmp_path: Path, temporary: Path
) -> None:
    awkg = packed.files["kv-cache.awkg"]
    path = write_zip(packed.files | {"kv-cache.awkg": awkg[:-1] + b"?"}, tmp_path / "altered.zip")
    with Package.open(path) as package:
        for _ in range(2):
            with pytest.raises(BadSignature, match=r"kv-cache\.awkg"):
                package.open_memory()
    assert list(temporary.iterdir()) == []


def test_without_any_folder_for_a_copy_the_caller_is_told_what_to_set(
    packed: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(packed.folder / "missing"))
    with Package.open(packed.zip) as package, pytest.raises(RequestError, match="TMPDIR"):
        package.open_memory()


def test_only_the_body_of_a_list_is_one(packed: Packed) -> None:
    bodies: list[bytes] = []

    def keep(body: bytes) -> SignedMessage:
        bodies.append(body)
        return sign(body)

    write_package(packed.folder.with_name("again"), make_parts(packed.folder / "kv-cache.awkg"), keep)
    (body,) = bodies
    check_listing(body)
    listed = json.loads(body)
    unsorted, short, strange = listed[::-1], listed[1:], [*listed, {**listed[0], "path": "../x"}]
    others = [b"", b"[]", b"hello", b"{}", b"null", b" " + body, body + b" ", body + b',"more":1', body[:-1]]
    for other in (*others, *map(canonical_json, (unsorted, short, strange, [*listed, listed[0]]))):
        with pytest.raises(MalformedPackage):
            check_listing(other)


def test_without_room_for_a_copy_the_disk_is_named(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_SPARE_DISK_NBYTES", 1 << 62)
    with Package.open(packed.zip) as package, pytest.raises(StoreFull, match="TMPDIR"):
        package.open_memory()


class _Pipe(io.RawIOBase):
    """Takes bytes and cannot go back: a zip written to it has its sizes behind the bytes."""

    def __init__(self) -> None:
        self.written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, block: bytes) -> int:  # type: ignore[override]
        self.written += block
        return len(block)


@pytest.mark.parametrize("wide", [False, True])
def test_a_zip_that_was_written_to_a_pipe_or_with_wide_sizes_is_read(
    packed: Packed, tmp_path: Path, wide: bool
) -> None:
    pipe, path = _Pipe(), tmp_path / "other.zip"
    for target in (pipe, path):
        with zipfile.ZipFile(target, "w") as archive:  # type: ignore[call-overload]
            for name, content in packed.files.items():
                with archive.open(zipfile.ZipInfo(name), "w", force_zip64=wide) as out:
                    out.write(content)
        if target is pipe:
            (tmp_path / "pipe.zip").write_bytes(pipe.written)
    for found in (path, tmp_path / "pipe.zip"):
        with Package.open(found) as package:
            package.verify()


@BOTH
def test_a_large_package_is_verified_and_unpacked_in_constant_memory(tmp_path: Path, form: str) -> None:
    large = tmp_path / "large.bin"
    with large.open("wb") as out:
        out.truncate(96 << 20)
    parts = make_parts(write_memory(tmp_path / "m.awkg"), alignments={"zeros": large})
    target = tmp_path / ("p.zip" if form == "zip" else "p")
    tracemalloc.start()
    try:
        write_package(target, parts, sign)
        with Package.open(target) as package:
            package.unpack(tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < ALLOWANCE_NBYTES
    finally:
        tracemalloc.stop()


def test_a_file_is_a_package_by_its_first_bytes(packed: Packed, tmp_path: Path) -> None:
    assert is_package(packed.folder)
    assert is_package(packed.zip)
    assert not is_package(tmp_path / "m.awkg")
    os.mkfifo(tmp_path / "fifo")
    assert not is_package(tmp_path / "fifo")
    with pytest.raises(RequestError, match="missing"):
        is_package(tmp_path / "missing")


def test_what_is_not_there_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="missing"):
        Package.open(tmp_path / "missing")


def test_reading_a_file_of_a_package_gives_its_bytes(packed: Packed) -> None:
    with Package.open(packed.zip) as package:
        assert b"".join(package.read("alignments/to-other.bin")) == b"W" * 1000


def test_the_signed_digest_is_that_of_the_bytes(packed: Packed) -> None:
    with Package.open(packed.folder) as package:
        for file in package.files:
            assert hashlib.sha256(packed.files[file.path]).hexdigest() == file.sha256
