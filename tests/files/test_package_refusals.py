"""What is no package: each rule of FORMAT.md §9, in a folder and in a zip, with everything else in order."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from kvnet.errors import BadSignature, MalformedFile, MalformedPackage
from kvnet.files.documents import package_id_of
from kvnet.files.package import Package
from tests.builders import STRANGER, make_memory
from tests.files.packages import (
    Files,
    change_document,
    make_package,
    sign_files,
    sign_list,
    write_folder,
    write_memory,
    write_zip,
)

ALLOWANCE_NBYTES = 16 << 20
NOT_SIGNED = "not what was signed"
Change = Callable[[Files], Files]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_package(tmp_path_factory.mktemp("good")).files


def check(path: Path) -> None:
    """Every byte."""
    with Package.open(path) as package:
        package.verify()


def without(path: str) -> Change:
    return lambda files: {name: content for name, content in files.items() if name != path}


def with_file(path: str, content: bytes = b"") -> Change:
    return lambda files: files | {path: content}


def signed(change: Change) -> Change:
    return lambda files: sign_files(change(files))


def document(path: str, **changes: Any) -> Change:
    return lambda files: change_document(files, path, **changes)


def listing(change: Callable[[list[dict[str, Any]]], None]) -> Change:
    """A list that was changed before it was signed."""

    def changed(files: Files) -> Files:
        listed = json.loads(files["signature.sig"])["files"]
        change(listed)
        return files | {"signature.sig": json.dumps(sign_list(listed)).encode()}

    return changed


def signature(**changes: Any) -> Change:
    return lambda files: (
        files | {"signature.sig": json.dumps(json.loads(files["signature.sig"]) | changes).encode()}
    )


def flipped(path: str) -> Change:
    return lambda files: files | {path: bytes([files[path][0] ^ 1]) + files[path][1:]}


def other_memory(files: Files) -> Files:
    """A memory that the documents do not tell of, truly listed."""
    with tempfile.TemporaryDirectory() as made:
        other = write_memory(Path(made) / "m.awkg", make_memory(1)).read_bytes()
    return sign_files(files | {"kv-cache.awkg": other})


def broken_memory(files: Files) -> Files:
    """A memory file that is none, in a package that is otherwise right about it."""
    broken = b"AWKX" + files["kv-cache.awkg"][4:]
    return rename_to(files | {"kv-cache.awkg": broken})


def rename_to(files: Files) -> Files:
    """The documents of this memory file, as far as its bytes go."""
    package_id = package_id_of(sha256(files["kv-cache.awkg"]).digest())
    for path in ("manifest.json", "provenance.json", "quality-report.json", "preview.json"):
        files = change_document(files, path, packageId=package_id)
    return change_document(files, "preview.json", fileNbytes=len(files["kv-cache.awkg"]))


def swap(listed: list[dict[str, Any]]) -> None:
    listed[0], listed[1] = listed[1], listed[0]


REFUSALS: dict[str, tuple[Change, type[Exception], str]] = {
    "no signature": (without("signature.sig"), MalformedPackage, "signature.sig is missing"),
    "a missing file": (without("preview.json"), MalformedPackage, "preview.json is listed, but not there"),
    "a missing alignment": (
        without("alignments/to-other.bin"), MalformedPackage, "to-other.bin is listed, but not there"
    ),
    "an unlisted file": (with_file("alignments/x.bin"), MalformedPackage, "x.bin is there, but not listed"),
    "an unlisted document": (signed(without("manifest.json")), MalformedPackage, "manifest.json is not in"),
    "a file of another name": (with_file("readme.txt"), MalformedPackage, "no file of a package"),
    "a listed file of another name": (signed(with_file("readme.txt")), MalformedPackage, "no file of"),
    "an alignment in a folder": (signed(with_file("alignments/a/b.bin")), MalformedPackage, "alignments/a"),
    "a hidden alignment": (signed(with_file("alignments/.b.bin")), MalformedPackage, "no file of a package"),
    "two names for one place": (
        signed(with_file("alignments/TO-other.bin")), MalformedPackage, "there twice"
    ),
    "a list out of order": (listing(swap), MalformedPackage, "code-point order"),
    "a path listed twice": (listing(lambda listed: listed.append(listed[-1])), MalformedPackage, "twice"),
    "a traversal in the list": (
        listing(lambda listed: listed[0].update(path="alignments/../../x.bin")), MalformedPackage, "no file"
    ),
    "the signature in its own list": (
        listing(lambda listed: listed.append({"path": "signature.sig", "size": 1, "sha256": "0" * 64})),
        MalformedPackage,
        "signature.sig is in the list",
    ),
    "another size in the list": (
        listing(lambda listed: listed[0].update(size=999)), BadSignature, "999 were signed"
    ),
    "another digest in the list": (
        listing(lambda listed: listed[0].update(sha256="0" * 64)), BadSignature, NOT_SIGNED
    ),
    "a digest with a prefix": (
        listing(lambda listed: listed[0].update(sha256="sha256:" + "0" * 64)), MalformedPackage, "sha256"
    ),
    "a negative size": (listing(lambda listed: listed[0].update(size=-1)), MalformedPackage, "negative"),
    "a list that was changed after": (
        lambda files: files | {"signature.sig": files["signature.sig"].replace(b":1000}", b":1001}")},
        BadSignature,
        "signature does not match",
    ),
    "another signer's name": (signature(signedBy=STRANGER.node_id), BadSignature, "does not match"),
    "a signer in capitals": (
        lambda files: signature(signedBy=json.loads(files["signature.sig"])["signedBy"].upper())(files),
        MalformedPackage,
        "signedBy",
    ),
    "a signature of zeros": (signature(signature="A" * 86 + "=="), BadSignature, "does not match"),
    "a signature that is spelled in another way": (
        signature(signature="A" * 85 + "B=="), MalformedPackage, "canonical base64"
    ),
    "another version": (signature(version=2), MalformedPackage, "version"),
    "an unknown key beside the list": (signature(comment=""), MalformedPackage, "comment"),
    "a signature that is no JSON": (with_file("signature.sig", b"\0"), MalformedPackage, "strict JSON"),
    "a signature without an end": (
        with_file("signature.sig", b" " * (1 << 20) + b"{}"), MalformedPackage, "at most"
    ),
    "a document without an end": (
        signed(with_file("preview.json", b" " * (1 << 20) + b"{}")), MalformedPackage, "at most"
    ),
    "a flipped bit in a document": (flipped("manifest.json"), BadSignature, NOT_SIGNED),
    "a flipped bit in an alignment": (flipped("alignments/to-other.bin"), BadSignature, NOT_SIGNED),
    "a flipped bit in the memory": (flipped("kv-cache.awkg"), BadSignature, NOT_SIGNED),
    "a document that breaks its schema": (document("manifest.json", x=1), MalformedPackage, "'x'"),
    "a manifest of another package": (
        document("manifest.json", packageId="pkg_" + "a" * 26), MalformedPackage, "manifest.json: packageId"
    ),
    "a provenance of another package": (
        document("provenance.json", packageId="pkg_" + "a" * 26), MalformedPackage, "provenance.json: pac"
    ),
    "a report on another package": (
        document("quality-report.json", packageId="pkg_" + "a" * 26), MalformedPackage, "report.json: pac"
    ),
    "a preview of another package": (
        document("preview.json", packageId="pkg_" + "a" * 26), MalformedPackage, "preview.json: packageId"
    ),
    "an alignment that is not there": (
        document("manifest.json", alignments={"x": "alignments/x.bin"}), MalformedPackage, "not there"
    ),
    "documents of another memory": (other_memory, MalformedPackage, "packageId"),
    "another checksum": (
        document("provenance.json", integrityHash="sha256:" + "0" * 64), MalformedPackage, "integrityHash"
    ),
    "more tokens than there are": (document("manifest.json", tokenCount=6), MalformedPackage, "tokenCount"),
    "another model": (document("preview.json", sourceModel="large"), MalformedPackage, "sourceModel"),
    "another file size": (document("preview.json", fileNbytes=1), MalformedPackage, "fileNbytes"),
    "another quantization": (document("preview.json", quantization="int4"), MalformedPackage, "quantization"),
    "another geometry": (
        document("preview.json", geometry=dict(numLayers=4, numKvHeads=2, headDim=4, dtype="float32")),
        MalformedPackage,
        "geometry",
    ),
    "a basis that the memory does not need": (
        signed(with_file("codec/basis.safetensors", b"basis")), MalformedPackage, "coded with"
    ),
    "a memory file that is none": (broken_memory, MalformedFile, "no .awkg file"),
}  # fmt: skip


@pytest.mark.parametrize("form", ["folder", "stored zip", "deflated zip"])
@pytest.mark.parametrize("name", REFUSALS)
def test_what_breaks_a_rule_is_refused(good: Files, tmp_path: Path, name: str, form: str) -> None:
    change, error, why = REFUSALS[name]
    files = change(good)
    if form == "folder":
        path = write_folder(files, tmp_path / "p")
    else:
        method = zipfile.ZIP_STORED if form == "stored zip" else zipfile.ZIP_DEFLATED
        path = write_zip(files, tmp_path / "p.zip", method=method)
    with pytest.raises(error, match=why) as raised:
        check(path)
    assert type(raised.value) is error


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_each_flipped_byte_is_refused(good: Files, tmp_path: Path, form: str) -> None:
    path = write_folder(good, tmp_path / "p") if form == "folder" else write_zip(good, tmp_path / "p")
    check(path)
    for name, content in good.items():
        places = range(0, len(content), max(1, len(content) // 40))
        for i in places:
            altered = good | {name: content[:i] + bytes([content[i] ^ 0x10]) + content[i + 1 :]}
            write_folder(altered, path) if form == "folder" else write_zip(altered, path)
            with pytest.raises((BadSignature, MalformedPackage)):
                check(path)
        if form == "folder":
            write_folder(good, path)


@pytest.mark.parametrize("name", ["manifest.json", "kv-cache.awkg", "alignments/to-other.bin"])
def test_a_link_is_not_followed(good: Files, tmp_path: Path, name: str) -> None:
    folder = write_folder(good, tmp_path / "p")
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MalformedPackage, match="no regular file"):
        check(folder)


def test_a_linked_subfolder_is_not_followed(good: Files, tmp_path: Path) -> None:
    folder = write_folder(good, tmp_path / "p")
    (folder / "alignments").rename(tmp_path / "elsewhere")
    (folder / "alignments").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MalformedPackage, match="no regular file"):
        check(folder)


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_a_link_to_a_package_is_not_followed(good: Files, tmp_path: Path, form: str) -> None:
    path = write_folder(good, tmp_path / "p") if form == "folder" else write_zip(good, tmp_path / "p")
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(MalformedPackage, match="is a link"):
        check(tmp_path / "link")


def test_a_file_that_becomes_a_link_or_a_pipe_after_opening_is_not_read(good: Files, tmp_path: Path) -> None:
    folder = write_folder(good, tmp_path / "p")
    place = folder / "alignments" / "to-other.bin"
    with Package.open(folder) as package:
        place.rename(tmp_path / "elsewhere")
        place.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(MalformedPackage, match="to-other"):
            package.verify()
        place.unlink()
        os.mkfifo(place)
        with pytest.raises(MalformedPackage, match="to-other"):
            package.verify()


@pytest.mark.parametrize("name", ["extra", "alignments/extra"])
def test_another_folder_is_refused(good: Files, tmp_path: Path, name: str) -> None:
    folder = write_folder(good, tmp_path / "p")
    (folder / name).mkdir()
    with pytest.raises(MalformedPackage, match="extra"):
        check(folder)


def test_a_pipe_or_a_device_is_no_package(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(MalformedPackage, match="neither a folder nor a regular file"):
            check(path)
