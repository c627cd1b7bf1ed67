"""The part of the control API that deals with sending and with the store. No logic of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from kvnet import wire
from kvnet.api import LayerProgress, Progress, SendReport
from kvnet.v1 import control_pb2 as pb
from kvnetd.actions import estimate, outbox, receipts, repair, send_many
from kvnetd.actions.dispatch import Dispatcher
from kvnetd.control_alignments import AlignmentService, Context
from kvnetd.services import Services
from kvnetd.transfers import Transfers

_Act = Callable[
    [Services, Transfers, Dispatcher, outbox.Sending], AsyncGenerator[LayerProgress | SendReport, None]
]


class DeliveryService(AlignmentService):
    """One method per RPC on sending and on the store; each is an action and a conversion."""

    def __init__(self, services: Services, transfers: Transfers, dispatcher: Dispatcher) -> None:
        super().__init__(services)
        self._transfers = transfers
        self._dispatcher = dispatcher

    async def Send(self, request: pb.SendRequest, context: Context) -> AsyncGenerator[pb.SendEvent, None]:
        asked = wire.from_wire(request, outbox.Sending)
        act: _Act = outbox.send_or_queue
        if "," in asked.to:
            act = send_many.send_many
        elif asked.text:
            self._services.require_model()
            from kvnetd.actions.send_text import send_text

            act = send_text
        steps = act(self._services, self._transfers, self._dispatcher, asked)
        async with aclosing(steps):
            async for step in steps:
                if isinstance(step, LayerProgress):
                    yield pb.SendEvent(progress=wire.to_wire(step, pb.LayerProgress))
                else:
                    yield pb.SendEvent(report=wire.to_wire(step, pb.SendReport))

    async def EstimateSend(self, request: pb.EstimateRequest, context: Context) -> pb.Estimate:
        found = await estimate.estimate(
            self._services, memory=request.memory, to=request.to, codec=request.codec
        )
        return wire.to_wire(found, pb.Estimate)

    async def ListOutbox(self, request: pb.ListOutboxRequest, context: Context) -> pb.OutboxList:
        found = await outbox.list_outbox(self._services)
        return pb.OutboxList(entries=[wire.to_wire(entry, pb.OutboxEntry) for entry in found])

    async def RetryOutboxEntry(self, request: pb.OutboxEntryRequest, context: Context) -> pb.OutboxEntry:
        entry = await outbox.retry(self._services, self._dispatcher, request.entry)
        return wire.to_wire(entry, pb.OutboxEntry)

    async def RemoveOutboxEntry(self, request: pb.OutboxEntryRequest, context: Context) -> pb.OutboxEntry:
        entry = await outbox.remove(self._services, self._dispatcher, request.entry)
        return wire.to_wire(entry, pb.OutboxEntry)

    async def ListReceipts(self, request: pb.ListReceiptsRequest, context: Context) -> pb.ReceiptList:
        found = await receipts.list_receipts(self._services)
        return pb.ReceiptList(receipts=[wire.to_wire(info, pb.ReceiptInfo) for info in found])

    async def ExportReceipt(
        self, request: pb.ExportReceiptRequest, context: Context
    ) -> pb.ExportReceiptReply:
        return pb.ExportReceiptReply(data=await receipts.export_receipt(self._services, request.transfer))

    async def Repair(
        self, request: pb.RepairRequest, context: Context
    ) -> AsyncGenerator[pb.RepairEvent, None]:
        async with aclosing(repair.repair(self._services)) as steps:
            async for step in steps:
                if isinstance(step, Progress):
                    yield pb.RepairEvent(progress=wire.to_wire(step, pb.Progress))
                else:
                    yield pb.RepairEvent(report=wire.to_wire(step, pb.RepairReport))
