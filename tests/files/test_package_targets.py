"""Where packages are written: new or empty places only, and nothing stays of what did not come to its end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvnet.errors import MalformedFile, MalformedPackage, RequestError
from kvnet.files.package import Package, write_package
from kvnet.files.writer import MemoryFileWriter
from kvnet.format.awkg import Metadata
from kvnet.identity.signing import SignedMessage, sign_message
from kvnet.plan import plan_memory
from kvnet.types import Coding, Compression, Scheme, sha256_hex
from tests.builders import MAP_ID, SENDER, make_memory, make_port
from tests.files.packages import (
    PACKER,
    WHEN,
    Packed,
    make_package,
    make_parts,
    read_folder,
    sign,
    write_memory,
)


@pytest.fixture
def packed(tmp_path: Path) -> Packed:
    return make_package(tmp_path)


def test_an_empty_folder_is_filled_and_keeps_its_own_mode(packed: Packed, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.mkdir(mode=0o755)
    before = target.stat()
    with Package.open(packed.zip) as package:
        package.unpack(target)
    assert read_folder(target) == packed.files
    assert (target.stat().st_ino, target.stat().st_mode) == (before.st_ino, before.st_mode)


def test_unpacking_here_is_unpacking_into_the_working_directory(
    packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with Package.open("../p.zip") as package:
        package.unpack(".")
    assert read_folder(tmp_path / "here") == packed.files


@pytest.mark.parametrize("target", ["full", "file", "taken.zip", "link", "missing/p"])
def test_a_target_that_cannot_be_written_is_refused_and_left_as_it_was(tmp_path: Path, target: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep", encoding="utf-8")
    (tmp_path / "file").write_text("keep", encoding="utf-8")
    (tmp_path / "taken.zip").write_text("keep", encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    parts = make_parts(write_memory(tmp_path / "m.awkg"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RequestError, match=target):
        write_package(tmp_path / target, parts, sign)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("target", ["p", "p.zip"])
def test_nothing_is_left_when_the_key_does_not_sign(tmp_path: Path, target: str) -> None:
    def refuse(body: bytes) -> SignedMessage:
        raise RequestError("no key here")

    parts = make_parts(write_memory(tmp_path / "m.awkg"))
    with pytest.raises(RequestError, match="no key"):
        write_package(tmp_path / target, parts, refuse)
    assert [path.name for path in tmp_path.iterdir()] == ["m.awkg"]


def test_a_signature_over_something_else_is_a_bug_of_ours(tmp_path: Path) -> None:
    parts = make_parts(write_memory(tmp_path / "m.awkg"))
    with pytest.raises(ValueError, match="another body"):
        write_package(tmp_path / "p", parts, lambda body: sign_message(PACKER, "kvnet/offer/v1", body))
    assert [path.name for path in tmp_path.iterdir()] == ["m.awkg"]


def test_parts_of_two_memories_make_no_package(tmp_path: Path) -> None:
    parts = make_parts(write_memory(tmp_path / "m.awkg"))
    other = write_memory(tmp_path / "other.awkg", make_memory(1))
    with pytest.raises(MalformedPackage, match="packageId"):
        write_package(tmp_path / "p", replace(parts, memory_file=other), sign)
    assert not (tmp_path / "p").exists()


def test_what_is_no_memory_file_is_not_packed(tmp_path: Path) -> None:
    parts = make_parts(write_memory(tmp_path / "m.awkg"))
    (tmp_path / "m.awkg").write_bytes(b"AWKG")
    with pytest.raises(MalformedFile):
        write_package(tmp_path / "p", parts, sign)


def test_a_basis_goes_with_a_transform_coded_memory_only(tmp_path: Path) -> None:
    (tmp_path / "basis").write_bytes(b"basis")
    parts = replace(make_parts(write_memory(tmp_path / "m.awkg")), basis=tmp_path / "basis")
    with pytest.raises(MalformedPackage, match="basis"):
        write_package(tmp_path / "p", parts, sign)


def test_coordinates_are_packed_with_their_port_and_no_other(tmp_path: Path) -> None:
    coding, port = make_port()
    parts = make_parts(write_memory(tmp_path / "m.awkg", make_memory(coding=coding)))
    (tmp_path / "port").write_bytes(port)
    (tmp_path / "other").write_bytes(make_port(301)[1])
    for wrong in (None, tmp_path / "other"):
        with pytest.raises(MalformedPackage, match="basis"):
            write_package(tmp_path / "p", replace(parts, basis=wrong), sign)
    write_package(tmp_path / "p", replace(parts, basis=tmp_path / "port"), sign)
    with Package.open(tmp_path / "p") as package:
        package.verify()
        assert b"".join(package.read("codec/basis.safetensors")) == port
        with package.open_memory() as file:
            assert file.header.w_matrix_reference == MAP_ID


def test_a_transform_coded_memory_is_packed_with_its_basis_and_no_other(tmp_path: Path) -> None:
    coding = Coding(Scheme.TRANSFORM, basis=sha256_hex(b"basis"), basis_nbytes=5)
    header = replace(make_memory().header, coding=coding, content_digest="")
    with MemoryFileWriter(tmp_path / "m.awkg", header, Compression.NONE) as writer:
        for _ in plan_memory(header):
            writer.add(bytes(4))  # no exact tokens, no codes
        metadata = Metadata("", "", "", None, header.seq_len)
        writer.finish(SENDER, created_at=WHEN, created_by="alice", metadata=metadata)
    parts = make_parts(tmp_path / "m.awkg")
    for wrong in (None, b"basic", b"basis\0"):
        if wrong:
            (tmp_path / "basis").write_bytes(wrong)
        with pytest.raises(MalformedPackage, match="basis"):
            write_package(tmp_path / "p", replace(parts, basis=tmp_path / "basis" if wrong else None), sign)
    (tmp_path / "basis").write_bytes(b"basis")
    write_package(tmp_path / "p", replace(parts, basis=tmp_path / "basis"), sign)
    with Package.open(tmp_path / "p") as package:
        package.verify()
        assert b"".join(package.read("codec/basis.safetensors")) == b"basis"
