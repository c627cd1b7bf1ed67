"""The part of the control API that deals with maps and ports. No logic of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from kvnet import wire
from kvnet.api import Progress, TrainProgress
from kvnet.v1 import control_pb2 as pb
from kvnet.v1 import control_pb2_grpc
from kvnetd.actions import align
from kvnetd.services import Services

Context = grpc.aio.ServicerContext[Any, Any]


class AlignmentService(control_pb2_grpc.ControlServicer):
    """One method per RPC on maps and ports; each is an action and a conversion."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def ListAlignments(self, request: pb.ListAlignmentsRequest, context: Context) -> pb.AlignmentList:
        found = align.list_alignments(self._services)
        return pb.AlignmentList(alignments=[wire.to_wire(info, pb.AlignmentInfo) for info in found])

    async def ShowAlignment(self, request: pb.ShowAlignmentRequest, context: Context) -> pb.AlignmentInfo:
        return wire.to_wire(align.show(self._services, request.alignment), pb.AlignmentInfo)

    async def ExportAlignment(
        self, request: pb.ExportAlignmentRequest, context: Context
    ) -> AsyncGenerator[pb.Piece, None]:
        pieces = align.export(self._services, request.alignment)
        async with aclosing(pieces):
            async for data in pieces:
                yield pb.Piece(data=data)

    async def ImportAlignment(
        self, request_iterator: AsyncIterator[pb.AlignmentPiece], context: Context
    ) -> pb.AlignmentInfo:
        async def pieces() -> AsyncGenerator[bytes | bool, None]:
            async for piece in request_iterator:
                yield getattr(piece, piece.WhichOneof("piece") or "data")

        return wire.to_wire(await align.import_(self._services, pieces()), pb.AlignmentInfo)

    async def RemoveAlignment(self, request: pb.RemoveAlignmentRequest, context: Context) -> pb.AlignmentInfo:
        return wire.to_wire(await align.remove(self._services, request.alignment), pb.AlignmentInfo)

    async def MakePort(self, request: pb.MakePortRequest, context: Context) -> pb.AlignmentInfo:
        from kvnetd.actions import fit

        return wire.to_wire(await fit.make_port(self._services, rank=request.rank), pb.AlignmentInfo)

    async def FitAlignment(
        self, request: pb.FitAlignmentRequest, context: Context
    ) -> AsyncGenerator[pb.FitEvent, None]:
        from kvnetd.actions import fit

        steps = fit.fit(self._services, wire.from_wire(request, fit.FitRequest))
        async with aclosing(steps):
            async for step in steps:
                if isinstance(step, Progress):
                    yield pb.FitEvent(progress=wire.to_wire(step, pb.Progress))
                else:
                    yield pb.FitEvent(alignment=wire.to_wire(step, pb.AlignmentInfo))

    async def TrainAlignment(
        self, request: pb.TrainAlignmentRequest, context: Context
    ) -> AsyncGenerator[pb.TrainEvent, None]:
        from kvnetd.actions import train

        steps = train.train(self._services, wire.from_wire(request, train.TrainRequest))
        async with aclosing(steps):
            async for step in steps:
                if isinstance(step, TrainProgress):
                    yield pb.TrainEvent(progress=wire.to_wire(step, pb.TrainProgress))
                else:
                    yield pb.TrainEvent(report=wire.to_wire(step, pb.TrainReport))

    async def EvaluateAlignment(
        self, request: pb.EvaluateAlignmentRequest, context: Context
    ) -> AsyncGenerator[pb.EvaluateEvent, None]:
        from kvnetd.actions import examine

        steps = examine.evaluate(self._services, wire.from_wire(request, examine.EvaluateRequest))
        async with aclosing(steps):
            async for step in steps:
                if isinstance(step, Progress):
                    yield pb.EvaluateEvent(progress=wire.to_wire(step, pb.Progress))
                else:
                    yield pb.EvaluateEvent(evaluation=wire.to_wire(step, pb.Evaluation))
