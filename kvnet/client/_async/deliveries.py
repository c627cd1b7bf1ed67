"""Sending, what waits for its peer, receipts, and the check of the store."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from kvnet import wire
from kvnet.api import (
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
from kvnet.files.writer import replacing
from kvnet.texts import require_text
from kvnet.v1 import control_pb2 as pb


class AsyncDeliveryCalls(AsyncFileCalls):
    """What a node delivers, and what it keeps."""

    async def send(self, memory: str | MemoryInfo, to: str, **options: Any) -> SendReport:
        """Send a memory to a peer, or to one agent there (`to="bob/reviewer"`).

        Options are those of `send_stream`. The report's `memory` is the id at the peer; `queued` is not empty
        where the memory waits, for a peer that is off or behind others, and `problem` says why.
        """
        async with aclosing(self.send_stream(memory, to, **options)) as steps:
            async for step in steps:
                if isinstance(step, SendReport):
                    return step
        raise AssertionError("the daemon ended the transfer without a report")

    async def send_stream(
        self,
        memory: str | MemoryInfo,
        to: str,
        *,
        note: str = "",
        codec: str = "",
        with_text: bool = False,
        if_off: str = "queue",
    ) -> AsyncGenerator[LayerProgress | SendReport, None]:
        """`send`, yielding a LayerProgress as each layer is durable at the peer, the report last.

        `codec` is one of `kvnet.codec.presets.CODECS`; the daemon's setting if not given. `with_text` sends
        the text that was kept beside it too, for a model that cannot use the memory. `if_off` says what to do
        where the peer is off: `queue` it in the outbox, `wait` until it is delivered from there, or `fail`.
        Where others wait for the peer already, the first two put it behind them.
        """
        request = pb.SendRequest(
            memory=id_of(memory),
            to=require_text(to, what="peer"),
            note=require_text(note, what="note"),
            agent=self.agent,
            codec=codec,
            with_text=with_text,
            if_off=require_text(if_off, what="if_off"),
        )
        async for event in self._stream(self._stub.Send, request):
            if event.HasField("report"):
                yield wire.from_wire(event.report, SendReport)
            else:
                yield wire.from_wire(event.progress, LayerProgress)

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
