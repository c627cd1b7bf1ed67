"""A transfer on its way in that is used meanwhile: what is verified is decoded, for the model to take."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kvnet.format.awkg.sections import unpack_section
from kvnet.identity.signing import VerifiedChunk
from kvnetd.services import Services

if TYPE_CHECKING:
    from kvnet.model.arriving import ArrivingMemory

MAX_DECODING = 8  # chunks of one memory; those behind them wait on the link


class Landing:
    """From the spool into an arriving memory. `end` returns at once."""

    def __init__(self, services: Services, arriving: ArrivingMemory) -> None:
        self.arriving = arriving
        self._services = services
        self._decoding: set[asyncio.Task[None]] = set()
        self._first_layer = asyncio.Event()

    async def take(self, chunk: VerifiedChunk) -> None:
        """Begin to decode a verified chunk; waits while too many are being decoded."""
        while len(self._decoding) >= MAX_DECODING:
            await asyncio.wait(self._decoding, return_when=asyncio.FIRST_COMPLETED)
        task = asyncio.create_task(self._decode(chunk))
        self._decoding.add(task)
        task.add_done_callback(self._decoding.discard)

    def end(self, failure: BaseException | None) -> None:
        """Nothing more comes: whoever waits for a layer that is not there hears why."""
        if failure is not None:
            self.arriving.fail(failure)
            self._first_layer.set()

    async def first_layer(self) -> None:
        """Wait until the model has something to begin with, or will hear that it never has."""
        await self._first_layer.wait()

    async def _decode(self, chunk: VerifiedChunk) -> None:
        try:
            await self._services.in_pool(self._add, chunk)
        except Exception as failure:  # belongs to whoever waits for the layer
            self.end(failure)
        if self.arriving.has_layer(0):
            self._first_layer.set()

    def _add(self, chunk: VerifiedChunk) -> None:
        envelope, arriving = chunk.envelope, self.arriving
        arriving.add(envelope.key, unpack_section(arriving.header, envelope, chunk.signed.payload))
