"""The receiving half of a transfer as a state machine: order, duplicates, completeness.

    offer admitted -> receiving -> (all chunks durable, commit checked) -> complete
                          \\-> failed, on the first contradiction

The session decides; whoever drives it writes chunks and sends acks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvnet.errors import BadSignature, ConflictingChunk, MalformedChunk, ReplayedMessage, TransferIncomplete
from kvnet.identity.keys import public_key_of
from kvnet.identity.seal import VerifiedHead
from kvnet.identity.signing import ChunkBinding, VerifiedChunk
from kvnet.plan import ChunkKey, count_chunks, plan_transfer, raw_nbytes_range
from kvnet.transfer.messages import Accept, Commit, Offer, Receipt, pack_bitmap
from kvnet.types import MemoryHeader, Tier, chunks_digest

SPARE_REPEATS = 16


@dataclass(frozen=True, slots=True)
class StoreChunk:
    """A new chunk: make it durable, then report `durable(index)`."""

    chunk: VerifiedChunk


@dataclass(frozen=True, slots=True)
class AlreadyHeld:
    """The very same chunk again: acknowledge it, store nothing."""

    index: int
    wire_nbytes: int


class ReceiverSession:
    """One admitted offer. `held` maps chunk index to wire digest, from an earlier attempt.

    `completed` is the chunks digest of a transfer that was finished before: it holds everything, and
    takes the commit over the same chunks again.
    """

    def __init__(
        self,
        offer: Offer,
        *,
        offer_digest: bytes,
        nonce: bytes,
        tier: Tier,
        held: Mapping[int, bytes],
        completed: str = "",
    ) -> None:
        self.offer = offer
        self.memory: MemoryHeader = offer.memory  # what is received; an open one until the seal closes it
        self.tier = tier
        self.plan: tuple[ChunkKey, ...] = plan_transfer(offer.memory)
        self.binding = ChunkBinding(
            sender_key=public_key_of(offer.sender),
            receiver_key=public_key_of(offer.receiver),
            transfer_id=bytes.fromhex(offer.transfer_id),
            nonce=nonce,
            offer_digest=offer_digest,
        )
        self._seen: dict[int, bytes] = dict(held)
        self._durable: set[int] = set(range(len(self.plan))) if completed else set(held)
        self._completed = completed
        self._num_repeats = 0

    @property
    def durable_count(self) -> int:
        """Chunks that may be counted on."""
        return len(self._durable)

    def accept(self) -> Accept:
        """The answer to the offer."""
        return Accept(
            transfer_id=self.offer.transfer_id,
            offer_digest=self.binding.offer_digest.hex(),
            nonce=self.binding.nonce.hex(),
            held=pack_bitmap(self._durable, len(self.plan)),
        )

    def receive(self, chunk: VerifiedChunk) -> StoreChunk | AlreadyHeld:
        """Admit a verified chunk. Raises MalformedChunk or ConflictingChunk."""
        envelope = chunk.envelope
        index = envelope.key.index
        if envelope.total != len(self.plan) or index >= len(self.plan):
            raise MalformedChunk(f"chunk {index} of {envelope.total}: the offer has {len(self.plan)} chunks")
        planned = self.plan[index]
        if envelope.key != planned:
            raise MalformedChunk(f"chunk {index}: covers {envelope.key}, the offer's plan has {planned}")
        allowed = raw_nbytes_range(self.offer.memory, planned)
        if envelope.raw_nbytes not in allowed:
            raise MalformedChunk(
                f"chunk {index}: {envelope.raw_nbytes} raw bytes, the geometry and coding of the offer "
                f"make {allowed.start} to {allowed.stop - 1}"
            )
        before = self._seen.get(index)
        if before is None:
            self._seen[index] = envelope.wire_digest
            return StoreChunk(chunk)
        if before != envelope.wire_digest:
            raise ConflictingChunk(f"chunk {index}: came twice with different contents; transfer ended")
        self._num_repeats += 1
        if self._num_repeats > len(self.plan) + SPARE_REPEATS:
            raise MalformedChunk(f"chunk {index}: repeats without end; transfer ended")
        return AlreadyHeld(index, envelope.wire_nbytes)

    def durable(self, index: int) -> None:
        """Report that a chunk survived fsync and may be acknowledged."""
        if index not in self._seen:
            raise ValueError(f"chunk {index} was never admitted")
        self._durable.add(index)

    def commit(self, commit: Commit) -> None:
        """Check the sender's commit against what is durable here.

        Raises ReplayedMessage, TransferIncomplete or BadSignature.
        """
        if commit.transfer_id != self.offer.transfer_id or commit.nonce != self.binding.nonce.hex():
            raise ReplayedMessage("commit: belongs to another transfer or attempt")
        if commit.offer_digest != self.binding.offer_digest.hex():
            raise ReplayedMessage("commit: refers to another offer")
        missing = len(self.plan) - len(self._durable)
        if missing:
            raise TransferIncomplete(f"commit: {missing} of {len(self.plan)} chunks are missing; send again")
        if commit.chunks_digest != self.chunks_digest():
            raise BadSignature("commit: its digest is not that of the chunks received; transfer ended")
        if self.offer.wire_digest and not self._completed:
            of_memory = [self._seen[index] for index in range(count_chunks(self.offer.memory))]
            if chunks_digest(of_memory) != self.offer.wire_digest:
                raise BadSignature("commit: the chunks received are not those of the offer; transfer ended")

    def check_seal(self, head: VerifiedHead) -> None:
        """Check the file head that came with the memory: it must describe what was offered and received.

        Raises BadSignature.
        """
        if not head.header.memory.closes(self.offer.memory):
            raise BadSignature("seal: describes another memory than the offer")
        if self.offer.map and head.header.w_matrix_reference != self.offer.map:
            raise BadSignature("seal: names another map than the offer; transfer ended")
        sections = head.header.sections
        if not self._completed and any(
            section.wire_digest != self._seen[section.key.index] for section in sections
        ):
            raise BadSignature("seal: its digests are not those of the chunks received; transfer ended")
        self.memory = head.header.memory

    def chunks_digest(self) -> str:
        """Digest over the chunks received, in order."""
        if self._completed:
            return self._completed
        return chunks_digest([self._seen[index] for index in range(len(self.plan))])

    def receipt(self, *, received_at: int) -> Receipt:
        """What this node signs once the memory is durable."""
        return Receipt(
            transfer_id=self.offer.transfer_id,
            offer_digest=self.binding.offer_digest.hex(),
            chunks_digest=self.chunks_digest(),
            memory=self.memory.id,
            tier=self.tier.value,
            received_at=received_at,
        )
