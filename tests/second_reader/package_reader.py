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
from tests.second_reader.archives import BASIS, REQUIRED, SIGNATURE, Entry, allowed, open_entries
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
_DOCUMENTS = ("manifest.json", "provenance.json", "quality-report.json", "preview.json")


@dataclass(frozen=True, slots=True)
class Package:
    """A whole package: its documents by file name, and its memory."""

    documents: dict[str, Any]
    memory: awkg_reader.Memory


def read(path: str | Path) -> Package:
    """Read a folder or a zip by every rule of §9, in its order, then its memory by §7. Raises Refused."""
    path = Path(path)
    if path.is_symlink():
        raise Refused("malformed_package", "the package is a link")
    entries = open_entries(path)
    listed = _listed(entries)
    if set(listed) != set(entries) - {SIGNATURE}:
        raise Refused("malformed_package", "the list is not that of the files")
    if any(entries[name].size != entry["size"] for name, entry in listed.items()):
        raise Refused("bad_signature", "a file has another size than the list")
    documents = {name: _document(entries, listed, name) for name in _DOCUMENTS}
    _check_documents(documents, listed)
    contents = {name: _checked(entries, listed, name) for name in listed if name not in _DOCUMENTS}
    return Package(documents, _memory(contents, documents))


def _bounded(entry: Entry, name: str) -> None:
    if entry.size > MAX_DOCUMENT_NBYTES:
        raise Refused("malformed_package", f"{name} says it has {entry.size} bytes")


def _listed(entries: dict[str, Entry]) -> dict[str, dict[str, Any]]:
    """The signed list: its form, its names and their order, its signature."""
    if SIGNATURE not in entries:
        raise Refused("malformed_package", f"{SIGNATURE} is missing")
    _bounded(entries[SIGNATURE], SIGNATURE)
    raw = entries[SIGNATURE].read(entries[SIGNATURE].size)
    document = parse_strict(raw, "malformed_package", SIGNATURE)
    if why := breach(load_schema("signature.json"), document, SIGNATURE):
        raise Refused("malformed_package", why)
    paths = [entry["path"] for entry in document["files"]]
    folded = {path.lower() for path in paths}
    if not all(map(allowed, paths)) or len(folded) != len(paths) or paths != sorted(paths):
        raise Refused("malformed_package", "the list has a name that is not one, one twice, or no order")
    if set(REQUIRED) - set(paths) or SIGNATURE in paths:
        raise Refused("malformed_package", "the list lacks a file, or has itself")
    public = key_of(document["signedBy"], "malformed_package")
    signature = base64.b64decode(document["signature"])
    if base64.b64encode(signature).decode() != document["signature"]:
        raise Refused("malformed_package", "the signature is not canonical base64")
    check_signature(public, SIGNATURE_TYPE, canonical(document["files"]), signature)
    return {entry["path"]: entry for entry in document["files"]}


def _checked(entries: dict[str, Entry], listed: dict[str, dict[str, Any]], name: str) -> bytes:
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


def _check_documents(documents: dict[str, Any], listed: dict[str, dict[str, Any]]) -> None:
    """What the documents repeat of each other and of the list."""
    wanted = "pkg_" + base32(bytes.fromhex(listed["kv-cache.awkg"]["sha256"]))[:26]
    if any(document["packageId"] != wanted for document in documents.values()):
        raise Refused("malformed_package", "a packageId is not that of kv-cache.awkg")
    if set(documents["manifest.json"]["alignments"].values()) - set(listed):
        raise Refused("malformed_package", "the manifest names an alignment that is not there")
    if documents["preview.json"]["fileNbytes"] != listed["kv-cache.awkg"]["size"]:
        raise Refused("malformed_package", "fileNbytes is not the size of kv-cache.awkg")


def _check_repeats(documents: dict[str, Any], header: dict[str, Any]) -> None:
    """What the documents say of the memory."""
    geometry = {key: header[key] for key in ("numLayers", "numKvHeads", "headDim", "dtype")}
    shared = {"sourceModel": header["sourceModel"], "tokenCount": header["sequenceLength"]}
    facts = {"geometry": geometry, "quantization": header["quantization"]}
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
    _check_repeats(documents, header)
    named = (coding["basisNbytes"], coding["basis"]) if coding["scheme"] in ("transform", "port") else None
    if named != (None if basis is None else (len(basis), sha256_text(basis))):
        raise Refused("malformed_package", "the basis is missing, not needed, or not the memory's")
    return awkg_reader.read(data, basis)
