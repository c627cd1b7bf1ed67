# Made from kvnet/client/_async by scripts/unasync; edit it there.
"""Maps and ports: listed, shown, removed, and to files and back."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from kvnet import wire
from kvnet.api import (
    AlignmentExport,
    AlignmentInfo,
    Evaluation,
    PackagedAlignment,
    Progress,
    TrainProgress,
    TrainReport,
)
from kvnet.client._sync.connection import Connection
from kvnet.client.connect import alignment_id_of
from kvnet.errors import AlignmentRefused, CapacityError, PeerError
from kvnet.files.alignments import check_file_nbytes, read_head_file
from kvnet.files.documents import is_alignment_path
from kvnet.files.package import Package, PackageFile
from kvnet.files.writer import replacing
from kvnet.texts import require_text
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

    def make_port(self, *, rank: int = 0) -> AlignmentInfo:
        """Make the hosted model's port, of `rank` coordinates if given, and keep it. It takes minutes."""
        request = pb.MakePortRequest(rank=rank)
        return wire.from_wire(self._call(self._stub.MakePort, request, deadline_s=None), AlignmentInfo)

    def fit_alignment(self, **options: Any) -> AlignmentInfo:
        """`fit_alignment_stream` to its end: the map."""
        with closing(self.fit_alignment_stream(**options)) as steps:
            for step in steps:
                if isinstance(step, AlignmentInfo):
                    return step
        raise AssertionError("the daemon ended the fit without a map")

    def fit_alignment_stream(
        self,
        *,
        peer: str = "",
        source: str = "",
        corpus: str | Path = "",
        lessons: int = 0,
        no_anchors: bool = False,
        rows: bool = False,
        layers: str = "",
        head_local: bool = False,
    ) -> Generator[Progress | AlignmentInfo, None, None]:
        """Fit a map to the hosted model from a peer's, or from a `source` on this machine; it comes last.

        It is kept whatever its gate says: see its `gate`. `corpus` is a text file with blank lines between
        paragraphs; the shipped texts if not given, of either at most `lessons`. With `no_anchors` every slot
        is mapped, with `rows` the map ends in the model's rows and not in its port. It sees all of the
        source's layers, or those that `layers` picks: `linear`, `learned` or `skip`. With `rows` it may be
        `head_local`. Whoever leaves ends the fit, and the same call goes on from there.
        """
        request = pb.FitAlignmentRequest(
            peer=require_text(peer, what="peer"),
            source=require_text(source, what="model"),
            corpus=_absolute(corpus),
            lessons=lessons,
            no_anchors=no_anchors,
            rows=rows,
            layers=require_text(layers, what="layers"),
            head_local=head_local,
        )
        with closing(self._stream(self._stub.FitAlignment, request)) as events:
            for event in events:
                if event.HasField("progress"):
                    yield wire.from_wire(event.progress, Progress)
                else:
                    yield wire.from_wire(event.alignment, AlignmentInfo)

    def train_alignment(self, alignment: str | AlignmentInfo, **options: Any) -> TrainReport:
        """`train_alignment_stream` to its end: what it came to."""
        with closing(self.train_alignment_stream(alignment, **options)) as steps:
            for step in steps:
                if isinstance(step, TrainReport):
                    return step
        raise AssertionError("the daemon ended the training without a report")

    def train_alignment_stream(
        self,
        alignment: str | AlignmentInfo,
        *,
        peer: str = "",
        source: str = "",
        corpus: str | Path = "",
        lessons: int = 0,
        steps: int = 0,
        plots: str | Path = "",
    ) -> Generator[TrainProgress | TrainReport, None, None]:
        """Train what the closed form of a map to the hosted model lacks; what it came to is told last.

        A new map is kept only if it beats the closed form on texts that neither has seen. The texts are read
        as for `fit_alignment_stream`. With `plots` the daemon draws the curve into that folder, for which it
        needs matplotlib. Whoever leaves ends the training, and the same call goes on from there.
        """
        request = pb.TrainAlignmentRequest(
            alignment=alignment_id_of(alignment),
            peer=require_text(peer, what="peer"),
            source=require_text(source, what="model"),
            corpus=_absolute(corpus),
            lessons=lessons,
            steps=steps,
            plots=_absolute(plots),
        )
        with closing(self._stream(self._stub.TrainAlignment, request)) as events:
            for event in events:
                if event.HasField("progress"):
                    yield wire.from_wire(event.progress, TrainProgress)
                else:
                    yield wire.from_wire(event.report, TrainReport)

    def evaluate_alignment(self, alignment: str | AlignmentInfo, **options: Any) -> Evaluation:
        """`evaluate_alignment_stream` to its end: the table."""
        with closing(self.evaluate_alignment_stream(alignment, **options)) as steps:
            for step in steps:
                if isinstance(step, Evaluation):
                    return step
        raise AssertionError("the daemon ended the examination without a table")

    def evaluate_alignment_stream(
        self, alignment: str | AlignmentInfo, *, peer: str = "", source: str = "", questions: int = 0
    ) -> Generator[Progress | Evaluation, None, None]:
        """Examine a map to the hosted model on new facts, with every control; the table comes last.

        The texts are read by a peer, or by a model on this machine: the map's own source if none is named.
        """
        request = pb.EvaluateAlignmentRequest(
            alignment=alignment_id_of(alignment),
            peer=require_text(peer, what="peer"),
            source=require_text(source, what="model"),
            questions=questions,
        )
        with closing(self._stream(self._stub.EvaluateAlignment, request)) as events:
            for event in events:
                if event.HasField("progress"):
                    yield wire.from_wire(event.progress, Progress)
                else:
                    yield wire.from_wire(event.evaluation, Evaluation)

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


def _absolute(path: str | Path) -> str:
    """As the daemon can open it, whose folder is another."""
    return str(Path(path).absolute()) if path else ""


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_NBYTES):
            yield block
