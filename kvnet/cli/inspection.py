"""What a memory file or a package is and cost: the fields of `inspect --json`, and lines for people."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from kvnet.cli.output import nbytes_text, printable
from kvnet.cli.picture import Glyphs, bar, sparkline
from kvnet.files.document_coding import to_plain_document
from kvnet.files.package import Package, PackageFile
from kvnet.files.reader import MemoryFile
from kvnet.format.attention import unpack_attention
from kvnet.identity.keys import grouped
from kvnet.types import Kind, Scheme

_BAR_WIDTH: Final = 14
_SPARK_WIDTH: Final = 32
_LABEL_WIDTH: Final = 11


@dataclass(frozen=True, slots=True)
class LayerCost:
    """The wire bytes of one layer, and how its heads attended to the text if the file tells."""

    layer_idx: int
    key_nbytes: int
    value_nbytes: int
    attention_nbytes: int
    entropy_per_head: tuple[float, ...]  # nats; empty without attention metadata
    average_attention_score: float | None


@dataclass(frozen=True, slots=True)
class PackageFacts:
    """What surrounds a memory in a package: the documents by their JSON names, and the signed list."""

    package_id: str
    signed_by: str
    files: tuple[PackageFile, ...]
    manifest: dict[str, Any]
    provenance: dict[str, Any]
    quality: dict[str, Any]
    preview: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Inspection:
    """A memory file; `raw_nbytes` is what its keys and values take decoded, `wire_nbytes` in the file."""

    path: str
    verified: bool  # False: only who signed it, and what it says of itself
    memory: str
    model: str
    model_hash: str
    tokens: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    key_space: str
    quantization: str
    coding: dict[str, Any]
    compression: str
    compression_level: int
    raw_nbytes: int
    wire_nbytes: int
    ratio: float
    file_nbytes: int
    signed_by: str
    created_at: str
    created_by: str
    metadata: dict[str, Any]
    attention_heads: int
    derived_from: str
    map: str  # id of the map that made the coordinates of a port; "" for keys and values
    layers: tuple[LayerCost, ...]  # none for coordinates, which are not by layer
    package: PackageFacts | None


def inspect_memory(file: MemoryFile, path: Path, package: Package | None = None) -> Inspection:
    """Look at an open file. Of its sections only attention metadata is read, and verified."""
    header, memory, geometry = file.header, file.header.memory, file.header.memory.geometry
    is_mapped = memory.coding.scheme is Scheme.PORT  # its coordinates are those of all layers together
    layers = () if is_mapped else tuple(_layer_cost(file, i) for i in range(geometry.num_layers))
    told = (section for section in header.sections if section.key.kind is not Kind.ATTENTION)
    wire_nbytes = sum(section.wire_nbytes for section in told)
    return Inspection(
        path=str(path),
        verified=False,
        memory=file.memory_id,
        model=memory.fingerprint.model,
        model_hash=header.source_model_hash,
        tokens=memory.seq_len,
        num_layers=geometry.num_layers,
        num_kv_heads=geometry.num_kv_heads,
        head_dim=geometry.head_dim,
        dtype=geometry.dtype,
        key_space=memory.key_space,
        quantization=header.quantization,
        coding=asdict(memory.coding),
        compression=header.compression.name.lower(),
        compression_level=header.compression_level,
        raw_nbytes=memory.raw_nbytes,
        wire_nbytes=wire_nbytes,
        ratio=memory.raw_nbytes / wire_nbytes,
        file_nbytes=file.head.file_nbytes,
        signed_by=header.signed_by,
        created_at=header.created_at,
        created_by=header.created_by,
        metadata=asdict(header.metadata),
        attention_heads=memory.attention_heads,
        derived_from=memory.derived_from,
        map=header.w_matrix_reference if is_mapped else "",
        layers=layers,
        package=_package_facts(package) if package else None,
    )


def _layer_cost(file: MemoryFile, layer_idx: int) -> LayerCost:
    nbytes = dict.fromkeys(Kind, 0)
    attention = None
    for index in file.layer(layer_idx):
        section = file.header.sections[index]
        nbytes[section.key.kind] += section.wire_nbytes
        if section.key.kind is Kind.ATTENTION:
            attention = unpack_attention(file.raw(index), file.header.memory, layer_idx)
    return LayerCost(
        layer_idx,
        nbytes[Kind.KEY],
        nbytes[Kind.VALUE],
        nbytes[Kind.ATTENTION],
        attention.entropy_per_head if attention else (),
        attention.average_attention_score if attention else None,
    )


def _package_facts(package: Package) -> PackageFacts:
    documents = (package.manifest, package.provenance, package.quality, package.preview)
    plain = [to_plain_document(document) for document in documents]
    return PackageFacts(package.manifest.package_id, package.signed_by, package.files, *plain)


def inspection_lines(found: Inspection, made_of: Glyphs) -> Iterator[str]:
    """The inspection for people, line by line."""
    if found.package:
        yield from _package_lines(found.package)
    shape = f"[1, {found.num_kv_heads}, {found.tokens}, {found.head_dim}] {found.dtype}"
    cost = f"{nbytes_text(found.raw_nbytes)} of keys and values in {nbytes_text(found.wire_nbytes)}"
    packed = found.compression + (f" {found.compression_level}" if found.compression_level else "")
    yield _fact("memory", found.memory)
    yield _fact("read by", f"{found.model} ({found.model_hash[:19]}...)")
    yield _fact("geometry", f"{found.num_layers} layers of {shape}, keys {found.key_space}")
    yield _fact("coding", f"{found.quantization}, compressed by {packed}")
    yield _fact("cost", f"{cost}: {found.ratio:.2f}x; the file has {nbytes_text(found.file_nbytes)}")
    yield _fact("signed by", grouped(found.signed_by))
    yield _fact("made", f"{found.created_at} by {found.created_by or 'nobody named'}")
    if found.derived_from:
        yield _fact("from", f"{found.derived_from}, which was encoded again")
    for key in ("domain", "topic", "language_hint"):
        if found.metadata[key]:
            yield _fact(key.partition("_")[0], found.metadata[key])
    if found.map:
        yield _fact("map", f"{found.map}, into the port {found.coding['basis'][:19]}...")
    yield ""
    if found.layers:
        yield from _layer_lines(found, made_of)
        yield ""
    yield f"contents not checked; `kvnet verify {printable(shlex.quote(found.path))}` reads every byte"


def _layer_lines(found: Inspection, made_of: Glyphs) -> Iterator[str]:
    """One line a layer: how many bytes keys and values took, and how spread each head's attention was."""
    widest = max(max(layer.key_nbytes, layer.value_nbytes) for layer in found.layers)
    spread = "entropy of each head, 0 to ln n" if found.attention_heads else ""
    yield f"layer  {'keys':<{_BAR_WIDTH + 11}}{'values':<{_BAR_WIDTH + 11}}{spread}".rstrip()
    for layer in found.layers:
        bars = "".join(
            f"{bar(nbytes, widest, width=_BAR_WIDTH, made_of=made_of)} {nbytes_text(nbytes):<10}"
            for nbytes in (layer.key_nbytes, layer.value_nbytes)
        )
        entropy = sparkline(
            layer.entropy_per_head, math.log(found.tokens), max_width=_SPARK_WIDTH, made_of=made_of
        )
        yield f"{layer.layer_idx:>5}  {bars}{entropy}".rstrip()


def _package_lines(package: PackageFacts) -> Iterator[str]:
    manifest = package.manifest
    yield _fact("package", f"{package.package_id}, version {manifest['version']}")
    yield _fact("signed by", f"{grouped(package.signed_by)} (the package; the memory: below)")
    for key in ("name", "description", "domain", "license"):
        if manifest.get(key):
            yield _fact(key, manifest[key])
    if manifest["tags"]:
        yield _fact("tags", ", ".join(manifest["tags"]))
    if manifest.get("pricing"):
        yield _fact("pricing", json.dumps(manifest["pricing"]))
    yield _fact("created", f"{manifest['createdAt']} by {manifest['createdBy'] or 'nobody named'}")
    for source in package.provenance["sourceInputs"]:
        yield _fact("source", f"{source['type']}, {source['tokenCount']} tokens: {source['description']}")
    steps = [step["step"] for step in package.provenance["processingSteps"]]
    yield _fact("how", " > ".join([package.provenance["creationMethod"], *steps]))
    for one in package.quality["measurements"]:
        figures = f"KL {one['kl']:.2g} nats, top-1 {one['top1']:.1%} of {one['tokensChecked']} tokens"
        yield _fact("quality", f"{figures}, against {one['against'][:16]}, by {one['measuredBy']}")
    if not package.quality["measurements"]:
        yield _fact("quality", "not measured")
    for file in package.files:
        yield _fact("file", f"{file.path}, {nbytes_text(file.size)}")
    yield ""


def _fact(label: str, value: str) -> str:
    return f"{label:<{_LABEL_WIDTH}} {printable(value)}"
