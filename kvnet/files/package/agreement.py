"""Whether the parts of a package tell of the same memory. Source: FORMAT.md §9. Knows no files."""

from __future__ import annotations

from collections.abc import Mapping

from kvnet.errors import MalformedPackage
from kvnet.files.documents import MEMORY_PATH, Documents, PreviewGeometry, package_id_of
from kvnet.files.package.listing import PackageFile
from kvnet.files.package.names import BASIS_PATH
from kvnet.format.awkg import AwkgHeader


def check_documents(documents: Documents, files: Mapping[str, PackageFile]) -> None:
    """Refuse documents of another package, or of files that this one does not hold: MalformedPackage."""
    memory_file = files[MEMORY_PATH]
    package_id = package_id_of(bytes.fromhex(memory_file.sha256))
    stated = {
        "manifest.json": documents.manifest.package_id,
        "provenance.json": documents.provenance.package_id,
        "quality-report.json": documents.quality.package_id,
        "preview.json": documents.preview.package_id,
    }
    for what, found in stated.items():
        if found != package_id:
            raise MalformedPackage(f"{what}: packageId is {found}, that of {MEMORY_PATH} is {package_id}")
    for name, path in documents.manifest.alignments.items():
        if path not in files:
            raise MalformedPackage(f"manifest.json: the alignment {name!r:.60} is {path}, which is not there")
    _require_same("preview.json", "fileNbytes", documents.preview.file_nbytes, memory_file.size)


def check_memory(documents: Documents, files: Mapping[str, PackageFile], header: AwkgHeader) -> None:
    """Refuse documents and a basis that are not those of this memory: MalformedPackage."""
    manifest, preview, memory = documents.manifest, documents.preview, header.memory
    _require_same("provenance.json", "integrityHash", documents.provenance.integrity_hash, header.checksum)
    for what, document in (("manifest.json", manifest), ("preview.json", preview)):
        _require_same(what, "sourceModel", document.source_model, memory.fingerprint.model)
        _require_same(what, "tokenCount", document.token_count, memory.seq_len)
    _require_same("preview.json", "geometry", preview.geometry, preview_geometry(header))
    _require_same("preview.json", "quantization", preview.quantization, header.quantization)
    basis = files.get(BASIS_PATH)
    found = ("sha256:" + basis.sha256, basis.size) if basis else ("", 0)
    if found != (memory.coding.basis, memory.coding.basis_nbytes):
        raise MalformedPackage(
            f"{BASIS_PATH}: {found[1]} bytes, {found[0] or 'not there'}; the memory was coded with "
            f"{memory.coding.basis_nbytes} bytes, {memory.coding.basis or 'none'}"
        )


def preview_geometry(header: AwkgHeader) -> PreviewGeometry:
    """What a preview says of a memory's shape."""
    geometry = header.memory.geometry
    return PreviewGeometry(geometry.num_layers, geometry.num_kv_heads, geometry.head_dim, geometry.dtype)


def _require_same(what: str, key: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise MalformedPackage(f"{what}: {key} is {found!s:.120}, that of {MEMORY_PATH} is {wanted!s:.120}")
