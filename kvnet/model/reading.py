"""A text read for whoever fits a map: its memory, and which characters each slot covers. Knows no peers."""

from __future__ import annotations

from collections.abc import Callable

from kvnet.codec.finite import finite_peak
from kvnet.codec.pack import unpack
from kvnet.model.generation import never
from kvnet.model.host import ModelHost
from kvnet.model.text import tokenize_with_spans
from kvnet.plan import plan_memory
from kvnet.types import RawMemory


def read_text(
    host: ModelHost, text: str, *, cancelled: Callable[[], bool] = never
) -> tuple[RawMemory, tuple[tuple[int, int], ...]]:
    """The raw memory of `text`, and its spans: one for each slot, or none (see `tokenize_with_spans`).

    Raises RequestError for an empty text, TextTooLong, Cancelled.
    """
    memory = host.capture(text, cancelled=cancelled)
    token_ids, spans = tokenize_with_spans(host.tokenizer, text)
    if len(token_ids) != memory.header.seq_len:
        raise AssertionError(f"{len(token_ids)} tokens with spans, {memory.header.seq_len} without")
    return memory, spans


def refuse_not_finite(memory: RawMemory, subject: str) -> None:
    """Raise NotFinite, naming `subject`, if a raw-coded memory without attention holds NaN or infinity."""
    geometry = memory.header.geometry
    for key, chunk in zip(plan_memory(memory.header), memory.chunks, strict=True):
        finite_peak(unpack(chunk, geometry, key.stop - key.start), subject)
