"""What kvnet itself says of a file or package: every rule of FORMAT.md §7.2 and §9, to the last number."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch

from kvnet.codec.basis import Basis
from kvnet.errors import KvnetError, UnknownAlignment
from kvnet.files.package import Package
from kvnet.files.package.names import BASIS_PATH
from kvnet.files.reader import MemoryFile
from kvnet.format.attention import unpack_attention
from kvnet.model.cache import LayerKV
from kvnet.model.coordinates import coordinates_of
from kvnet.model.memory import unpack_memory
from kvnet.types import AttentionMetadata, Coding, Kind, RawMemory, Scheme, sha256_hex


def kvnet_verdict(path: Path, basis: bytes | None = None) -> str:
    """The code that kvnet refuses this path as, or "ok"."""
    try:
        if path.suffix == ".awkg":
            read_file(path, basis)
        else:
            read_package(path)
    except KvnetError as exc:
        return exc.code
    return "ok"


def read_file(
    path: Path, basis: bytes | None = None
) -> tuple[tuple[LayerKV, ...], tuple[AttentionMetadata, ...]]:
    """Verify and decode one memory file: its layers, and what it tells of attention.

    `basis` is what the memory names: a calibration, or a port, whose coordinates have neither.
    """
    with MemoryFile.open(path) as file:
        file.verify()
        return _decode(file, basis)


def read_package(path: Path) -> tuple[tuple[LayerKV, ...], tuple[AttentionMetadata, ...]]:
    """Verify a package and decode its memory with the basis it brings."""
    with Package.open(path) as package:
        package.verify()
        listed = {file.path for file in package.files}
        basis = b"".join(package.read(BASIS_PATH)) if BASIS_PATH in listed else None
        with package.open_memory() as file:
            return _decode(file, basis)


def _decode(
    file: MemoryFile, basis: bytes | None
) -> tuple[tuple[LayerKV, ...], tuple[AttentionMetadata, ...]]:
    memory = file.header.memory
    keys = [section.key for section in file.header.sections]
    raw = RawMemory(memory, tuple(file.raw(key.index) for key in keys))
    if memory.coding.scheme is Scheme.PORT:
        coordinates_of(raw, _rank_of(basis, memory.coding))
        return (), ()
    found = Basis.from_bytes(basis, memory.geometry) if memory.coding.basis and basis else None
    layers = unpack_memory(raw, basis=found)
    if not all(bool(layer.keys.isfinite().all() and layer.values.isfinite().all()) for layer in layers):
        raise AssertionError("a decoder let NaN or infinity through")
    attention = tuple(
        unpack_attention(raw.chunks[key.index], memory, key.layer_idx)
        for key in keys
        if key.kind is Kind.ATTENTION
    )
    return layers, attention


def _rank_of(port: bytes | None, coding: Coding) -> int:
    """Of the port that a memory names: how many coordinates a slot has."""
    if port is None or (sha256_hex(port), len(port)) != (coding.basis, coding.basis_nbytes):
        raise UnknownAlignment("the port that the memory names is not here")
    return len(safetensors.torch.load(port)["basis"])
