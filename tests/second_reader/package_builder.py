"""An independent writer of memory packages, as files by name, folders and zips. Source: FORMAT.md §9.

Imports nothing of kvnet. Like the drafts of `awkg_builder`, the files may be changed before they are listed
and signed, and the list before it is signed.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import nacl.signing

from tests.second_reader.awkg_builder import KEY, node_id, random_draft
from tests.second_reader.strict import base32, canonical, signed_bytes

SIGNATURE_TYPE = "kvnet/package/v1"
Files = dict[str, bytes]


def package_id(awkg: bytes) -> str:
    """The id of a package with this memory."""
    return "pkg_" + base32(hashlib.sha256(awkg).digest())[:26]


def make_documents(awkg: bytes, header: dict[str, Any], alignments: tuple[str, ...] = ()) -> dict[str, Any]:
    """The four JSON documents by file name."""
    shared = {"packageId": package_id(awkg)}
    about = {"name": "a memory", "description": "", "domain": "", "tags": ["test"]}
    about |= {"sourceModel": header["sourceModel"], "tokenCount": header["sequenceLength"]}
    paths = {name: f"alignments/{name}.bin" for name in alignments}
    stamps = {"createdAt": "2026-02-16T10:00:00Z", "createdBy": "builder"}
    geometry = {key: header[key] for key in ("numLayers", "numKvHeads", "headDim", "dtype")}
    facts = {"geometry": geometry, "fileNbytes": len(awkg), "quantization": header["quantization"]}
    step = {"step": "prefill", "timestamp": "2026-02-16T09:45:00Z", "model": "tiny"}
    return {
        "manifest.json": shared
        | about
        | stamps
        | {"version": "1.0.0", "kvCacheFile": "kv-cache.awkg", "alignments": paths},
        "preview.json": shared | about | facts,
        "provenance.json": shared
        | {"creationMethod": "direct-extraction", "sourceInputs": [], "processingSteps": [step]}
        | {"integrityHash": header["checksum"]},
        "quality-report.json": shared | {"measurements": []},
    }


def random_package(seed: int) -> Files:
    """A valid package by file name, the signed list included; the same for the same seed."""
    rng = random.Random(seed)
    draft = random_draft(seed)
    awkg = draft.sign()
    alignments = tuple(rng.sample(["to-b", "to_c", "A.1"], rng.randint(0, 3)))
    files: Files = {"kv-cache.awkg": awkg}
    files |= dump(make_documents(awkg, draft.header, alignments))
    files |= {f"alignments/{name}.bin": rng.randbytes(rng.randint(0, 50)) for name in alignments}
    if draft.basis is not None:
        files["codec/basis.safetensors"] = draft.basis
    return sign_package(files)


def dump(documents: dict[str, Any]) -> Files:
    """Documents as the bytes of their files."""
    return {
        name: json.dumps(document, separators=(",", ":")).encode() for name, document in documents.items()
    }


def list_files(files: Files) -> list[dict[str, Any]]:
    """Path, size and SHA-256 of each file, in code-point order."""
    return [
        {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for path, data in sorted(files.items())
    ]


def sign_list(
    listed: list[dict[str, Any]], *, key: nacl.signing.SigningKey = KEY, kind: str = SIGNATURE_TYPE
) -> dict[str, Any]:
    """The content of signature.sig for this list, whatever is in it."""
    signature = key.sign(signed_bytes(kind, canonical(listed))).signature
    return {
        "files": listed,
        "signedBy": node_id(),
        "signature": base64.b64encode(signature).decode(),
        "version": 1,
    }


def sign_package(files: Files) -> Files:
    """These files and the signed list of them."""
    return files | {"signature.sig": json.dumps(sign_list(list_files(files)), separators=(",", ":")).encode()}


def write_folder(files: Files, root: Path) -> None:
    """The package as a folder."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def zip_bytes(files: Files, *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """The package as a zip, the same bytes on every run."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(entry_info(name, method), data)
    return packed.getvalue()


def entry_info(name: str, method: int = zipfile.ZIP_DEFLATED) -> zipfile.ZipInfo:
    """A zip entry of a regular file from a fixed time."""
    info = zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))
    info.compress_type = method
    info.external_attr = 0o100644 << 16
    return info
