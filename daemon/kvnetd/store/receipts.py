"""Receipts of what was delivered, kept by the sender: proof that the receiver held the memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from kvnet.errors import RequestError, UnknownTransfer
from kvnet.format import strict_json
from kvnet.identity.keys import public_key_of
from kvnet.identity.signing import SignedMessage
from kvnet.transfer.messages import MAX_OFFER_NBYTES, Offer, Receipt
from kvnetd.store.database import Database

MIN_PREFIX_CHARS: Final = 8
_SELECT: Final = (
    "SELECT transfer_id, peer, memory, completed_at, offer, offer_signature, receipt_body, receipt_signer, "
    "receipt_signature FROM transfers WHERE direction = 'out'"
)


@dataclass(frozen=True, slots=True)
class KeptReceipt:
    """A delivered transfer. `offer_body` is empty of an offer that had a text: that is not kept."""

    transfer_id: str
    peer: str  # node id of the receiver
    memory: str  # the id at the receiver
    completed_at: str
    offer_body: bytes
    offer_signature: bytes
    receipt: SignedMessage

    @property
    def has_offer(self) -> bool:
        """Whether the offer is kept as it was signed."""
        return bool(self.offer_body and self.offer_signature)

    def sealed_offer(self) -> SignedMessage | None:
        """The offer as it was signed; None where it is not kept."""
        if not self.has_offer:
            return None
        offer = strict_json.decode(Offer, self.offer_body, what="own offer", max_nbytes=MAX_OFFER_NBYTES)
        return SignedMessage(Offer.TYPE, self.offer_body, public_key_of(offer.sender), self.offer_signature)


class Receipts:
    """Every receipt, oldest first."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def all(self) -> tuple[KeptReceipt, ...]:
        """What was delivered, in the order in which it was."""
        return tuple(map(_kept, self._db.run(f"{_SELECT} ORDER BY completed_at")))

    def find(self, wanted: str) -> KeptReceipt:
        """That of the transfer with this id, or start of an id; of a memory's id, the last one.

        Raises UnknownTransfer, RequestError.
        """
        if len(wanted) < MIN_PREFIX_CHARS:
            raise UnknownTransfer(f"transfer {wanted!r:.60}: give {MIN_PREFIX_CHARS} characters or more")
        of_memory = [kept for kept in self.all() if kept.memory.startswith(wanted)]
        if len({kept.memory for kept in of_memory}) > 1:
            raise RequestError(f"memory {wanted}: several ids start so; use more of the id")
        if of_memory:
            return of_memory[-1]
        found = [kept for kept in self.all() if kept.transfer_id.startswith(wanted)]
        if not found:
            raise UnknownTransfer(
                f"transfer {wanted:.60}: none that this node delivered; see `kvnet receipt ls`"
            )
        if len(found) > 1:
            raise RequestError(f"transfer {wanted}: {len(found)} ids start so; use more of the id")
        return found[0]


def _kept(row: tuple[Any, ...]) -> KeptReceipt:
    transfer_id, peer, memory, completed_at, offer_body, offer_signature, *receipt = row
    return KeptReceipt(
        transfer_id=transfer_id,
        peer=peer,
        memory=memory,
        completed_at=completed_at,
        offer_body=offer_body,
        offer_signature=offer_signature,
        receipt=SignedMessage(Receipt.TYPE, *receipt),
    )
