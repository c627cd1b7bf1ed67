"""A memory that comes in two ways: its first tokens are read here while the others' chunks arrive."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial

from kvnet.errors import MalformedMessage
from kvnet.format.compress import DEFAULT_LEVELS
from kvnet.model.host import ModelHost
from kvnet.model.memory import digest_tokens
from kvnet.transfer.messages import Offer
from kvnet.types import Compression, RawMemory
from kvnetd import encoding
from kvnetd.services import Services, utc_now
from kvnetd.store.records import LocalNotes, Step


class HeadReading:
    """The reading of what comes before an offered memory. It begins at once, and is kept only at the end."""

    def __init__(self, services: Services, offer: Offer) -> None:
        self._services = services
        self._offer = offer
        self._abandoned = threading.Event()
        self._reading = asyncio.create_task(self._read())

    async def keep(self) -> None:
        """Wait for it, and store it as a memory that came from the sender.

        Raises MalformedMessage for a text that does not begin with those tokens, TextTooLong, StoreFull.
        """
        memory, notes = await asyncio.shield(self._reading)
        services = self._services
        compression = Compression[services.config.compression.upper()]
        level = DEFAULT_LEVELS.get(compression, 0)
        making = encoding.new_making(services, notes, compression, level)
        began = time.perf_counter()
        await services.in_store(services.memories.put, memory, making, services.key)
        seconds = notes.steps[0].duration_s + time.perf_counter() - began
        digest, num_tokens = memory.header.fingerprint.digest, memory.header.seq_len
        await services.in_store(services.rates.read, digest, num_tokens, seconds)

    def abandon(self) -> None:
        """Stop reading; twice, or after the end, is nothing."""
        self._abandoned.set()
        if not self._reading.cancel() and not self._reading.cancelled():
            self._reading.exception()  # whoever waited has heard it; nobody else needs to

    async def _read(self) -> tuple[RawMemory, LocalNotes]:
        services, host = self._services, self._services.host
        began_at = utc_now()
        act = partial(_read_head, host, self._offer, self._abandoned)
        memory, duration_s = await services.runner.run(act)
        step = Step("inference", host.name, host.fingerprint.digest, began_at, round(duration_s, 6))
        return memory, LocalNotes(origin=self._offer.sender, stored_at=utc_now(), steps=(step,))


def _read_head(host: ModelHost, offer: Offer, abandoned: threading.Event) -> tuple[RawMemory, float]:
    """The memory, and how long the model took."""
    header = offer.memory
    token_ids = host.tokenize_context(offer.prefix_text)[: header.start_pos]
    if len(token_ids) < header.start_pos or digest_tokens(token_ids) != header.prefix_digest:
        raise MalformedMessage(
            f"offer: its prefix_text does not begin with the {header.start_pos} tokens before the memory"
        )
    began = time.perf_counter()
    memory = host.capture_tokens(token_ids, cancelled=abandoned.is_set)
    return memory, time.perf_counter() - began
