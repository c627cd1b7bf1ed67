"""Sending, what waits for its peer, receipts, and the check of the store."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any, overload

from kvnet import wire
from kvnet.api import (
    Estimate,
    LayerProgress,
    MemoryInfo,
    OutboxEntry,
    Progress,
    ReceiptInfo,
    RepairReport,
    SendReport,
)
from kvnet.client._async.files import AsyncFileCalls
from kvnet.client.connect import id_of
from kvnet.errors import RequestError
from kvnet.files.writer import replacing
from kvnet.texts import require_text
from kvnet.v1 import control_pb2 as pb


class AsyncDeliveryCalls(AsyncFileCalls):
    """What a node delivers, and what it keeps."""

    async def send_text(self, text: str, to: str, *, name: str = "", **options: Any) -> SendReport:
        """Read a text and send each layer of it as soon as it is read; `name` is what it is called here.

        Options are those of `send_stream`.
        """
        return await self.send("", to, text=text, name=name, **options)

    @overload
    async def send(self, memory: str | MemoryInfo, to: str, **options: Any) -> SendReport: ...

    @overload
    async def send(
        self, memory: str | MemoryInfo, to: list[str] | tuple[str, ...], **options: Any
    ) -> list[SendReport]: ...

    async def send(
        self, memory: str | MemoryInfo, to: str | list[str] | tuple[str, ...], **options: Any
    ) -> SendReport | list[SendReport]:
        """Send a memory to a peer, or to one agent there (`to="bob/reviewer"`), or to a list of them.

        Options are those of `send_stream`. The report's `memory` is the id at the peer; `queued` is not empty
        where the memory waits, for a peer that is off or behind others, and `problem` says why. A list has a
        report for each, as each comes to its end: one copy leaves this node and goes round among them; who
        could not be served has a `problem` and nothing `queued`.
        """
        if isinstance(to, str) and "," in to:
            raise RequestError(f"to: {to!r:.80} names several; give a list of them")
        async with aclosing(self.send_stream(memory, to, **options)) as steps:
            reports = [step async for step in steps if isinstance(step, SendReport)]
        if not reports:
            raise AssertionError("the daemon ended the transfer without a report")
        return reports[0] if isinstance(to, str) else reports

    async def send_stream(
        self,
        memory: str | MemoryInfo,
        to: str | list[str] | tuple[str, ...],
        *,
        note: str = "",
        codec: str = "",
        with_text: bool = False,
        if_off: str = "queue",
        text: str = "",
        name: str = "",
        mode: str = "",
    ) -> AsyncGenerator[LayerProgress | SendReport, None]:
        """`send`, yielding a LayerProgress as each layer is durable at the peer, the report last.

        `codec` is one of `kvnet.codec.presets.CODECS`; the daemon's setting if not given. `with_text` sends
        the text that was kept beside it too, for a model that cannot use the memory. `if_off` says what to do
        where the peer is off: `queue` it in the outbox, `wait` until it is delivered from there, or `fail`.
        `mode` is `transfer`, `text` (which the peer reads), `split` (it reads the head while the tail comes),
        or `auto`, which does what `estimate` says; the report tells which and what was predicted.
        `text` is read instead of a memory that is here, as by `send_text`. For several receivers (a list, or
        commas between them) there is a report for each as it comes to its end, and progress is that of all.
        Where others wait for the peer already, the first two put it behind them.
        """
        request = pb.SendRequest(
            memory=id_of(memory) if memory else "",
            text=require_text(text, what="text"),
            name=require_text(name, what="name"),
            to=require_text(to if isinstance(to, str) else ",".join(to), what="peer"),
            note=require_text(note, what="note"),
            agent=self.agent,
            codec=codec,
            with_text=with_text,
            if_off=require_text(if_off, what="if_off"),
            mode=require_text(mode, what="mode"),
        )
        async for event in self._stream(self._stub.Send, request):
            if event.HasField("report"):
                yield wire.from_wire(event.report, SendReport)
            else:
                yield wire.from_wire(event.progress, LayerProgress)

    async def estimate(self, memory: str | MemoryInfo, to: str, *, codec: str = "") -> Estimate:
        """What sending a memory to a peer would take: as it is, as its text, and as a split of both."""
        request = pb.EstimateRequest(memory=id_of(memory), to=require_text(to, what="peer"), codec=codec)
        return wire.from_wire(await self._call(self._stub.EstimateSend, request), Estimate)

    async def outbox(self) -> list[OutboxEntry]:
        """What waits for its peer and what could not be delivered, in the order in which it was sent."""
        reply = await self._call(self._stub.ListOutbox, pb.ListOutboxRequest())
        return [wire.from_wire(entry, OutboxEntry) for entry in reply.entries]

    async def retry_outbox_entry(self, entry: str | OutboxEntry) -> OutboxEntry:
        """Try an entry of the outbox now; one that failed waits again."""
        request = pb.OutboxEntryRequest(entry=_entry_id(entry))
        return wire.from_wire(await self._call(self._stub.RetryOutboxEntry, request), OutboxEntry)

    async def remove_outbox_entry(self, entry: str | OutboxEntry) -> OutboxEntry:
        """Take an entry out of the outbox; a delivery in progress is broken off."""
        request = pb.OutboxEntryRequest(entry=_entry_id(entry))
        return wire.from_wire(await self._call(self._stub.RemoveOutboxEntry, request), OutboxEntry)

    async def receipts(self) -> list[ReceiptInfo]:
        """What was delivered, oldest first."""
        reply = await self._call(self._stub.ListReceipts, pb.ListReceiptsRequest())
        return [wire.from_wire(info, ReceiptInfo) for info in reply.receipts]

    async def export_receipt(self, transfer: str | SendReport | ReceiptInfo, path: str | Path) -> int:
        """Write a receipt to a new file that anyone can check (`kvnet verify`); returns its bytes."""
        wanted = (
            require_text(transfer, what="transfer") if isinstance(transfer, str) else transfer.transfer_id
        )
        request = pb.ExportReceiptRequest(transfer=wanted)
        reply = await self._call(self._stub.ExportReceipt, request)
        with replacing(Path(path), only_new=True) as write:
            write(reply.data)
        return len(reply.data)

    async def repair(self) -> RepairReport:
        """Check every digest in the store, set aside what is damaged, seal what lies in clear."""
        async with aclosing(self.repair_stream()) as steps:
            async for step in steps:
                if isinstance(step, RepairReport):
                    return step
        raise AssertionError("the daemon ended the repair without a report")

    async def repair_stream(self) -> AsyncGenerator[Progress | RepairReport, None]:
        """`repair`, yielding a Progress for each memory, the report last."""
        async for event in self._stream(self._stub.Repair, pb.RepairRequest()):
            if event.HasField("report"):
                yield wire.from_wire(event.report, RepairReport)
            else:
                yield wire.from_wire(event.progress, Progress)


def _entry_id(entry: str | OutboxEntry) -> str:
    return entry.id if isinstance(entry, OutboxEntry) else require_text(entry, what="outbox entry")
