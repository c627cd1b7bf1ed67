"""Small packages for the tests: memory files, their documents, and packages as files by name."""

from __future__ import annotations

import base64
import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvnet.files.documents import Measurement, ProcessingStep, SourceInput
from kvnet.files.package import PACKAGE_TYPE, About, PackageParts, compose_documents, write_package
from kvnet.files.writer import write_memory_file
from kvnet.identity.keys import NodeKey
from kvnet.identity.signing import SignedMessage, sign_message
from kvnet.types import MemoryId, RawMemory, canonical_json, sha256_hex
from tests.builders import make_head, make_memory, wire_chunks

PACKER = NodeKey(b"\x04" * 32)
WHEN = "2027-01-15T08:00:00Z"
MEASURED = Measurement(0.002, 0.99, 512, MemoryId("mem_" + "a" * 52), sha256_hex(b"probe"), WHEN, "bob")
READ = ProcessingStep("prefill", WHEN, "tiny", sha256_hex(b"model"), 1.5, {"layerRange": [0, 2]})
TEXT = SourceInput("text", "minutes of a meeting", sha256_hex(b"text"), 5)
DOCUMENTS = ("manifest.json", "provenance.json", "quality-report.json", "preview.json")

Files = dict[str, bytes]


def sign(body: bytes) -> SignedMessage:
    """PACKER's signature under a list of files."""
    return sign_message(PACKER, PACKAGE_TYPE, body)


def write_memory(path: Path, memory: RawMemory | None = None) -> Path:
    """A memory file signed by SENDER."""
    memory = memory or make_memory()
    write_memory_file(path, make_head(memory).sealed, wire_chunks(memory)[1])
    return path


def make_parts(
    memory_file: Path, *, about: About | None = None, alignments: Mapping[str, Path] | None = None
) -> PackageParts:
    """What PACKER packs: a measured memory of a text, and alignments named by their files."""
    paths = {f"alignments/{name}.bin": source for name, source in (alignments or {}).items()}
    documents = compose_documents(
        memory_file,
        about or About("notes", "what was said", "meetings", ("a", "b"), "CC0-1.0", {"credits": 50}),
        created_at=WHEN,
        created_by="packer",
        creation_method="direct-extraction",
        source_inputs=[TEXT],
        processing_steps=[READ],
        measurements=[MEASURED],
        alignments={path.removeprefix("alignments/"): path for path in paths},
    )
    return PackageParts(memory_file, documents, paths)


@dataclass(frozen=True, slots=True)
class Packed:
    """One package in both of its forms, and its files by name."""

    folder: Path
    zip: Path
    files: Files


def make_package(place: Path) -> Packed:
    """The package of `make_parts` with one alignment."""
    memory_file, alignment = write_memory(place / "m.awkg"), place / "w.bin"
    alignment.write_bytes(b"W" * 1000)
    parts = make_parts(memory_file, alignments={"to-other": alignment})
    for target in ("p", "p.zip"):
        write_package(place / target, parts, sign)
    return Packed(place / "p", place / "p.zip", read_folder(place / "p"))


def read_folder(folder: Path) -> Files:
    """Every file under a folder by its relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def write_folder(files: Mapping[str, bytes], folder: Path) -> Path:
    """Inverse of `read_folder`."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def write_zip(files: Mapping[str, bytes], path: Path, *, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """The files as a zip, in the order they are given."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            archive.writestr(info, content)
    return path


def sign_files(files: Mapping[str, bytes], key: NodeKey = PACKER) -> Files:
    """The files with a list of them that is true."""
    unsigned = {path: content for path, content in files.items() if path != "signature.sig"}
    listed = [
        {"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for path, content in sorted(unsigned.items())
    ]
    return {**unsigned, "signature.sig": json.dumps(sign_list(listed, key)).encode()}


def sign_list(listed: list[dict[str, Any]], key: NodeKey = PACKER) -> dict[str, Any]:
    """signature.sig over any list."""
    signed = sign_message(key, PACKAGE_TYPE, canonical_json(listed))
    signature = base64.b64encode(signed.signature).decode()
    return {"files": listed, "signedBy": key.node_id, "signature": signature, "version": 1}


def change_document(files: Files, path: str, **changes: Any) -> Files:
    """The package with other values in one document, truly listed and signed."""
    document = json.loads(files[path]) | changes
    return sign_files(files | {path: json.dumps(document).encode()})
