"""The second, independent reader of memory packages. Source: FORMAT.md §9 and the schemas it names.

Imports nothing of kvnet.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.second_reader import awkg_reader
from tests.second_reader.archives import BASIS, REQUIRED, SIGNATURE, Entry, open_entries
from tests.second_reader.schema import breach, load_schema
from tests.second_reader.strict import (
    MAX_DOCUMENT_NBYTES,
    Refused,
    base32,
    canonical,
    check_signature,
    key_of,
    parse_strict,
    sha256_text,
)

SIGNATURE_TYPE = "kvnet/package/v1"
_DOCUMENTS = ("manifest.json", "preview.json", "provenance.json", "quality-report.json")


@dataclass(frozen=True, slots=True)
class Package:
    """A whole package: its documents by file name, and its memory."""

    documents: dict[str, Any]
    memory: awkg_reader.Memory


def read(path: str | Path) -> Package:
    """Read a folder or a zip by every rule of §9, then its memory by §7. Raises Refused."""
    entries = open_entries(Path(path))
    missing = [name for name in (*REQUIRED, SIGNATURE) if name not in entries]
    if missing:
        raise Refused("malformed_package", f"{missing[0]} is missing")
    listed = _listed(entries)
    documents = {name: _document(entries, listed, name) for name in _DOCUMENTS}
    contents = {name: _checked(entries, listed, name) for name in listed if name not in _DOCUMENTS}
    _check_documents(documents, contents)
    return Package(documents, _memory(contents, documents))


def _bounded(entry: Entry, name: str) -> None:
    if entry.size > MAX_DOCUMENT_NBYTES:
        raise Refused("malformed_package", f"{name} says it has {entry.size} bytes")


def _listed(entries: dict[str, Entry]) -> dict[str, dict[str, Any]]:
    """The signed list, which must name every file but itself, once and in order."""
    _bounded(entries[SIGNATURE], SIGNATURE)
    raw = entries[SIGNATURE].read(entries[SIGNATURE].size)
    document = parse_strict(raw, "malformed_package", SIGNATURE)
    if why := breach(load_schema("signature.json"), document, SIGNATURE):
        raise Refused("malformed_package", why)
    public = key_of(document["signedBy"], "malformed_package")
    signature = base64.b64decode(document["signature"])
    if base64.b64encode(signature).decode() != document["signature"]:
        raise Refused("malformed_package", "the signature is not canonical base64")
    check_signature(public, SIGNATURE_TYPE, canonical(document["files"]), signature)
    paths = [entry["path"] for entry in document["files"]]
    if paths != sorted(set(paths)) or set(paths) != set(entries) - {SIGNATURE}:
        raise Refused("malformed_package", "the list is not in order, or not that of the files")
    return {entry["path"]: entry for entry in document["files"]}


def _checked(entries: dict[str, Entry], listed: dict[str, dict[str, Any]], name: str) -> bytes:
    if entries[name].size != listed[name]["size"]:
        raise Refused("bad_signature", f"{name} has another size than the list")
    data = entries[name].read(listed[name]["size"])
    if hashlib.sha256(data).hexdigest() != listed[name]["sha256"]:
        raise Refused("bad_signature", f"{name} has another digest than the list")
    return data


def _document(entries: dict[str, Entry], listed: dict[str, dict[str, Any]], name: str) -> Any:
    _bounded(entries[name], name)
    document = parse_strict(_checked(entries, listed, name), "malformed_package", name)
    if why := breach(load_schema(name), document, name):
        raise Refused("malformed_package", why)
    return document


def _check_documents(documents: dict[str, Any], contents: dict[str, bytes]) -> None:
    """What the documents repeat of each other and of the files."""
    wanted = "pkg_" + base32(hashlib.sha256(contents["kv-cache.awkg"]).digest())[:26]
    if any(document["packageId"] != wanted for document in documents.values()):
        raise Refused("malformed_package", "a packageId is not that of kv-cache.awkg")
    if set(documents["manifest.json"]["alignments"].values()) - set(contents):
        raise Refused("malformed_package", "the manifest names an alignment that is not there")


def _check_repeats(documents: dict[str, Any], header: dict[str, Any], awkg_nbytes: int) -> None:
    """What the documents say of the memory."""
    geometry = {key: header[key] for key in ("numLayers", "numKvHeads", "headDim", "dtype")}
    shared = {"sourceModel": header["sourceModel"], "tokenCount": header["sequenceLength"]}
    facts = {"geometry": geometry, "fileNbytes": awkg_nbytes, "quantization": header["quantization"]}
    stated = {
        "manifest.json": shared,
        "preview.json": shared | facts,
        "provenance.json": {"integrityHash": header["checksum"]},
    }
    for name, wanted in stated.items():
        if {key: documents[name][key] for key in wanted} != wanted:
            raise Refused("malformed_package", f"{name} tells of another memory")


def _memory(contents: dict[str, bytes], documents: dict[str, Any]) -> awkg_reader.Memory:
    data, basis = contents["kv-cache.awkg"], contents.get(BASIS)
    header, _ = awkg_reader.read_head(data)
    coding = header["coding"]
    _check_repeats(documents, header, len(data))
    named = (coding["basisNbytes"], coding["basis"]) if coding["scheme"] == "transform" else None
    if named != (None if basis is None else (len(basis), sha256_text(basis))):
        raise Refused("malformed_package", "the basis is missing, not needed, or not the memory's")
    return awkg_reader.read(data, basis)
