"""The sending half of a transfer as a state machine: what is still to send, what is acknowledged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvnet.errors import BadSignature, MalformedMessage, ReplayedMessage
from kvnet.format.envelope import Envelope
from kvnet.identity.keys import public_key_of
from kvnet.plan import ChunkKey, plan_transfer
from kvnet.transfer.messages import Accept, Commit, Offer, Receipt, unpack_bitmap
from kvnet.types import Compression, MemoryHeader, chunks_digest

SPARE_ACKS = 16


@dataclass(frozen=True, slots=True)
class WireChunk:
    """What the sender knows of a chunk before it is bound to a transfer."""

    key: ChunkKey
    compression: Compression
    raw_nbytes: int
    wire_nbytes: int
    wire_digest: bytes


Part = tuple[WireChunk, bytes | memoryview]  # a chunk with its wire bytes


class SenderSession:
    """One offer on its way. Its chunks are given at once, in plan order, or become known as they are made."""

    def __init__(
        self, offer: Offer, *, offer_digest: bytes, chunks: Sequence[WireChunk] | None = None
    ) -> None:
        self.offer = offer
        self.plan: tuple[ChunkKey, ...] = plan_transfer(offer.memory)
        if chunks is not None and tuple(chunk.key for chunk in chunks) != self.plan:
            raise ValueError("chunks are not those of the offer's plan")
        self.receipt: Receipt | None = None
        self.resumed_count = 0  # chunks the receiver held before this attempt
        self._offer_digest = offer_digest
        self._nonce = b""
        self._memory = offer.memory
        self._chunks = {chunk.key.index: chunk for chunk in chunks or ()}
        self._acked: set[int] = set()
        self._unacked_in_layer: dict[int, int] = {}
        self._num_idle_acks = 0

    @property
    def chunks(self) -> tuple[WireChunk, ...]:
        """The chunks that are known, in order."""
        return tuple(self._chunks[index] for index in sorted(self._chunks))

    def know(self, chunk: WireChunk) -> None:
        """Take note of a chunk that was made: of every one, also of those that the receiver holds."""
        index = chunk.key.index
        if chunk.key != self.plan[index] or self._chunks.setdefault(index, chunk) != chunk:
            raise ValueError(f"chunk {index} is not that of the offer's plan, or another than before")

    def close(self, memory: MemoryHeader) -> None:
        """Say what memory the offer's came to be: of an open one its contents are known now."""
        if not memory.closes(self.offer.memory):
            raise ValueError(f"memory {memory.id} is not what was offered")
        self._memory = memory

    @property
    def acked_count(self) -> int:
        """Chunks the receiver holds durably."""
        return len(self._acked)

    def accepted(self, accept: Accept) -> tuple[ChunkKey, ...]:
        """Take the receiver's answer; returns the keys of the chunks it lacks, in order.

        Raises ReplayedMessage or MalformedMessage.
        """
        if accept.transfer_id != self.offer.transfer_id or accept.offer_digest != self._offer_digest.hex():
            raise ReplayedMessage("accept: belongs to another offer")
        try:
            nonce = bytes.fromhex(accept.nonce)
        except ValueError:
            nonce = b""
        if len(nonce) != 16:
            raise MalformedMessage("accept: the nonce is not 16 bytes of hex")
        self._nonce = nonce
        self._acked = set(unpack_bitmap(accept.held, len(self.plan)))
        missing = tuple(key for key in self.plan if key.index not in self._acked)
        self.resumed_count = len(self._acked)
        self._unacked_in_layer = Counter(key.layer_idx for key in missing)
        return missing

    def envelope(self, chunk: WireChunk) -> Envelope:
        """Bind a chunk to this transfer; the result is what gets signed."""
        return Envelope(
            sender_key=public_key_of(self.offer.sender),
            receiver_key=public_key_of(self.offer.receiver),
            transfer_id=bytes.fromhex(self.offer.transfer_id),
            nonce=self._nonce,
            offer_digest=self._offer_digest,
            key=chunk.key,
            total=len(self.plan),
            compression=chunk.compression,
            raw_nbytes=chunk.raw_nbytes,
            wire_nbytes=chunk.wire_nbytes,
            wire_digest=chunk.wire_digest,
        )

    def acked(self, indices: Iterable[int]) -> bool:
        """Take acknowledgements; true once every chunk is durable at the receiver."""
        before = len(self._acked)
        for index in indices:
            if index >= len(self.plan):
                raise MalformedMessage(f"ack: chunk {index} of {len(self.plan)}")
            if index not in self._acked and index not in self._chunks:
                raise MalformedMessage(f"ack: chunk {index}, which was not sent yet")
            if index not in self._acked:
                self._acked.add(index)
                self._unacked_in_layer[self.plan[index].layer_idx] -= 1
        if len(self._acked) == before:
            self._num_idle_acks += 1
            if self._num_idle_acks > len(self.plan) + SPARE_ACKS:
                raise MalformedMessage("ack: the peer acknowledges without end and without news")
        return len(self._acked) == len(self.plan)

    def wire_nbytes(self, indices: Iterable[int]) -> int:
        """Bytes of these chunks as they travel."""
        return sum(self._chunks[index].wire_nbytes for index in indices if index in self._chunks)

    def layer_done(self, layer_idx: int) -> bool:
        """Whether every chunk of a layer is acknowledged."""
        return not self._unacked_in_layer.get(layer_idx, 0)

    def commit(self) -> Commit:
        """The last word, once everything is known and acknowledged."""
        return Commit(
            transfer_id=self.offer.transfer_id,
            offer_digest=self._offer_digest.hex(),
            nonce=self._nonce.hex(),
            chunks_digest=self._chunks_digest(),
        )

    def finish(self, receipt: Receipt) -> None:
        """Check the receipt: it must name this offer, these chunks and this memory.

        Raises ReplayedMessage or BadSignature.
        """
        if receipt.transfer_id != self.offer.transfer_id or receipt.offer_digest != self._offer_digest.hex():
            raise ReplayedMessage("receipt: belongs to another offer")
        if receipt.chunks_digest != self._chunks_digest() or receipt.memory != self._memory.id:
            raise BadSignature("receipt: confirms other contents than were sent")
        self.receipt = receipt

    def _chunks_digest(self) -> str:
        return chunks_digest([self._chunks[index].wire_digest for index in range(len(self.plan))])
