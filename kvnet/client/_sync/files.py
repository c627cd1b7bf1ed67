# Made from kvnet/client/_async by scripts/unasync; edit it there.
"""Memories to files and back, packages, calibration: calls that move bytes through this process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvnet import wire
from kvnet.api import AlignmentInfo, Calibration, ExportReport, MemoryInfo, PackReport
from kvnet.client._sync.alignments import AlignmentCalls
from kvnet.client.carried import path_in_package, paths_by_receiver
from kvnet.client.connect import id_of, sign_package
from kvnet.errors import PeerError, RequestError
from kvnet.files.lineage import Lineage, compose
from kvnet.files.package import About, Package, PackageParts, is_package, write_package
from kvnet.files.package.names import BASIS_PATH
from kvnet.files.reader import MemoryFile
from kvnet.files.writer import replacing
from kvnet.identity.signing import SignedMessage
from kvnet.texts import require_text
from kvnet.v1 import control_pb2 as pb

_BLOCK_NBYTES = 1 << 20


class FileCalls(AlignmentCalls):
    """The part of Node that reads and writes files."""

    def export_memory(self, memory: str | MemoryInfo, path: str | Path, *, codec: str = "") -> ExportReport:
        """Write a memory's `.awkg` file, a new one: the bytes its maker signed, which anyone can verify.

        With `codec`, one of `kvnet.codec.presets.CODECS`, it is encoded first, as it would be for sending:
        another memory, with an id of its own.
        """
        target, request = Path(path), pb.ExportRequest(memory=id_of(memory), codec=codec)
        with replacing(target, only_new=True) as write:
            for event in self._stream(self._stub.Export, request):
                write(event.data)
        with MemoryFile.open(target) as file:
            return ExportReport(
                memory=file.memory_id,
                path=str(target),
                nbytes=file.head.file_nbytes,
                signed_by=file.header.signed_by,
                needs_basis=file.header.memory.coding.basis,
            )

    def import_memory(self, path: str | Path) -> MemoryInfo:
        """Take in an `.awkg` file or a package; everything in it is verified first.

        Maps and ports in a package are taken in by `import_packaged_alignments`.
        """
        source = Path(path)
        with _told_of(source):
            if not is_package(source):
                with MemoryFile.open(source) as file:  # what is no memory is not even sent to the daemon
                    return self._import(file.path, iter(()))
            with Package.open(source) as package:
                package.verify()
                has_basis = any(file.path == BASIS_PATH for file in package.files)
                with package.open_memory() as file:
                    return self._import(file.path, package.read(BASIS_PATH) if has_basis else iter(()))

    def pack(
        self,
        memory: str | MemoryInfo,
        target: str | Path,
        *,
        name: str = "",
        description: str = "",
        domain: str = "",
        tags: tuple[str, ...] = (),
        license: str = "",
        pricing: Mapping[str, Any] | None = None,
        quality: bool = True,
        codec: str = "",
        alignments: Sequence[str | AlignmentInfo] = (),
    ) -> PackReport:
        """Write a signed package: a folder, or a zip if `target` ends in `.zip`.

        With `codec` the memory is encoded first, as by `export_memory`. With `quality`, a lossy memory whose
        original is here is measured against it; nothing is invented. `alignments` are maps and ports to carry
        along; a map brings the port it ends in. RequestError for two maps to one model.
        """
        info = self.show(memory)
        about = About(
            name=require_text(name, what="name") or info.name or info.id[:16],
            description=require_text(description, what="description"),
            domain=require_text(domain, what="domain"),
            tags=tuple(require_text(tag, what="tag") for tag in tags),
            license=require_text(license, what="license"),
            pricing=dict(pricing or {}),
        )
        with _workspace(Path(target)) as folder:
            memory_file, basis = folder / "memory.awkg", None
            exported = self.export_memory(memory, memory_file, codec=codec)
            wanted = pb.LineageRequest(memory=exported.memory, quality=quality)
            lineage = wire.from_wire(self._call(self._stub.Lineage, wanted, deadline_s=None), Lineage)
            if exported.needs_basis:
                basis = folder / "basis.safetensors"
                self._export_basis(exported.memory, basis)
            carried = self._export_alignments(alignments, folder)
            named = paths_by_receiver(carried)
            documents = compose(memory_file, about, lineage, alignments=named)
            files = {path_in_package(info): folder / info.id for info in carried}
            parts = PackageParts(memory_file, documents, files, basis=basis)
            written = write_package(Path(target), parts, self._sign_package)
        return PackReport(
            package_id=written.package_id,
            path=str(target),
            nbytes=written.nbytes,
            memory=exported.memory,
            quality_measured=bool(lineage.measurements),
        )

    def calibrate(self, *texts: str) -> Calibration:
        """Learn a basis for the codec `compact` from texts like those that will be remembered.

        The daemon keeps it and encodes with it from now on. The reference models bring one along.
        """
        request = pb.CalibrateRequest(texts=[require_text(text, what="text") for text in texts])
        reply = self._call(self._stub.Calibrate, request, deadline_s=None)
        return wire.from_wire(reply, Calibration)

    def show(self, memory: str | MemoryInfo) -> MemoryInfo:
        """A memory by id, start of an id, or name."""
        request = pb.ShowMemoryRequest(memory=id_of(memory))
        return wire.from_wire(self._call(self._stub.ShowMemory, request), MemoryInfo)

    def _export_alignments(
        self, alignments: Sequence[str | AlignmentInfo], folder: Path
    ) -> tuple[AlignmentInfo, ...]:
        """Write these maps and ports, and the ports that the maps end in, to files named by their ids."""
        wanted = [self.show_alignment(alignment) for alignment in alignments]
        ports = [self.show_alignment(info.port) for info in wanted if info.port]
        found = {info.id: info for info in (*wanted, *ports)}
        for info in found.values():
            self.export_alignment(info, folder / info.id)
        return tuple(found.values())

    def _export_basis(self, memory: str, target: Path) -> None:
        with target.open("wb") as out:
            for piece in self._stream(self._stub.Export, pb.ExportRequest(memory=memory, basis=True)):
                out.write(piece.data)

    def _import(self, source: Path, basis: Iterator[bytes]) -> MemoryInfo:
        def pieces() -> Iterator[pb.ImportPiece]:
            for block in basis:
                yield pb.ImportPiece(basis=block)
            with source.open("rb") as file:
                while block := file.read(_BLOCK_NBYTES):
                    yield pb.ImportPiece(memory=block)

        return wire.from_wire(self._call(self._stub.Import, pieces(), deadline_s=None), MemoryInfo)

    def _sign_package(self, body: bytes) -> SignedMessage:
        return sign_package(self._home, self._metadata, body)


@contextmanager
def _told_of(source: Path) -> Iterator[None]:
    """What is wrong with a file is told with the name by which the caller knows it."""
    try:
        yield
    except PeerError as error:
        if f"{source}: " in error.message:
            raise
        said = error.message.removeprefix("memory file: ")
        raise type(error)(f"{source}: {said}", details=error.details) from error


@contextmanager
def _workspace(target: Path) -> Iterator[Path]:
    """A private folder beside `target`, gone afterwards: on the same disk, which has to have room anyway."""
    try:
        folder = tempfile.TemporaryDirectory(
            dir=target.absolute().parent, prefix=".kvnet-", ignore_cleanup_errors=True
        )
    except OSError as exc:
        raise RequestError(f"{target}: cannot be written ({exc.strerror}); choose another place") from exc
    with folder as name:
        yield Path(name)
