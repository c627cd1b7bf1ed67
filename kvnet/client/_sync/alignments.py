# Made from kvnet/client/_async by scripts/unasync; edit it there.
"""Maps and ports: listed, shown, removed, and to files and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from kvnet import wire
from kvnet.api import AlignmentExport, AlignmentInfo, PackagedAlignment
from kvnet.client._sync.connection import Connection
from kvnet.client.connect import alignment_id_of
from kvnet.errors import AlignmentRefused, CapacityError, PeerError
from kvnet.files.alignments import check_file_nbytes, read_head_file
from kvnet.files.documents import is_alignment_path
from kvnet.files.package import Package, PackageFile
from kvnet.files.writer import replacing
from kvnet.v1 import control_pb2 as pb

_BLOCK_NBYTES = 1 << 20


class AlignmentCalls(Connection):
    """The part of Node that deals with maps and ports."""

    def alignments(self) -> list[AlignmentInfo]:
        """Every map and port on this node, oldest first, then those that cannot be read."""
        reply = self._call(self._stub.ListAlignments, pb.ListAlignmentsRequest())
        return [wire.from_wire(info, AlignmentInfo) for info in reply.alignments]

    def show_alignment(self, alignment: str | AlignmentInfo) -> AlignmentInfo:
        """A map or port by its id, or the start of it."""
        request = pb.ShowAlignmentRequest(alignment=alignment_id_of(alignment))
        return wire.from_wire(self._call(self._stub.ShowAlignment, request), AlignmentInfo)

    def export_alignment(self, alignment: str | AlignmentInfo, path: str | Path) -> AlignmentExport:
        """Write a map's or port's file, a new one, as it was signed."""
        target, request = Path(path), pb.ExportAlignmentRequest(alignment=alignment_id_of(alignment))
        with replacing(target, only_new=True) as write:
            for piece in self._stream(self._stub.ExportAlignment, request):
                write(piece.data)
        head = read_head_file(target)
        return AlignmentExport(head.manifest.id, str(target), head.file_nbytes, head.signer)

    def import_alignment(self, path: str | Path, *, trust: bool = False) -> AlignmentInfo:
        """Take in a map's or port's file; everything in it is verified first.

        One that neither this node, nor an added peer signed, and that does not come with kvnet, is refused as
        AlignmentRefused; with `trust` it is taken in whoever signed it.
        """
        source = Path(path)
        read_head_file(source)  # what is no alignment is not even sent to the daemon
        return self._import_alignment(_blocks(source), trust=trust)

    def import_packaged_alignments(
        self, package: str | Path, *, trust: bool = False
    ) -> list[PackagedAlignment]:
        """Take in the maps and ports of a package. One that is refused is told of and passed over."""
        with Package.open(package) as opened:
            files = [file for file in opened.files if is_alignment_path(file.path)]
            return [self._import_packaged(opened, file, trust=trust) for file in files]

    def remove_alignment(self, alignment: str | AlignmentInfo) -> AlignmentInfo:
        """Remove a map or port; returns what it was. Those that came with kvnet stay."""
        request = pb.RemoveAlignmentRequest(alignment=alignment_id_of(alignment))
        return wire.from_wire(self._call(self._stub.RemoveAlignment, request), AlignmentInfo)

    def _import_packaged(self, package: Package, file: PackageFile, *, trust: bool) -> PackagedAlignment:
        try:
            check_file_nbytes(file.size)
            blocks = list(package.read(file.path))  # whole before it is sent: its end tells if it is right
            info = self._import_alignment(blocks, trust=trust)
        except (AlignmentRefused, PeerError, CapacityError) as refused:
            return PackagedAlignment(file.path, "", refused.message)
        return PackagedAlignment(file.path, info.id, "")

    def _import_alignment(self, blocks: Iterable[bytes], *, trust: bool) -> AlignmentInfo:
        def pieces() -> Iterator[pb.AlignmentPiece]:
            yield pb.AlignmentPiece(trust=trust)
            for block in blocks:
                yield pb.AlignmentPiece(data=block)

        reply = self._call(self._stub.ImportAlignment, pieces(), deadline_s=None)
        return wire.from_wire(reply, AlignmentInfo)


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_NBYTES):
            yield block
