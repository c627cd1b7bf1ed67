"""Offers that this node made and that are not at their end: the same one again is what resumes a transfer.

They outlive the daemon, so that a message goes out once although the receipt was lost with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvnet.errors import KvnetError
from kvnet.format import strict_json
from kvnet.identity.signing import SignedMessage
from kvnet.transfer.messages import MAX_OFFER_NBYTES, Offer
from kvnetd.store.database import Database
from kvnetd.store.failpoints import reach
from kvnetd.store.vault import Vault

_SEALED_AS = "own offer"
_SELECT = "SELECT sealed_body, signer, signature, parcel FROM offers"


@dataclass(frozen=True, slots=True)
class KeptOffer:
    """An offer as it was signed, and the entry of the outbox that it was made for, if it was for one."""

    offer: Offer
    sealed: SignedMessage
    parcel: str = ""


class KeptOffers:
    """One offer for each message on its way. A slot is all that makes a message what it is."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def find(self, slot: Sequence[str], vault: Vault) -> KeptOffer | None:
        """The offer of a message; None where there is none, or none that this key opens."""
        return self._opened(self._db.run(f"{_SELECT} WHERE slot = ?", _slot_id(slot)), vault)

    def begun(self, parcel: str, vault: Vault) -> KeptOffer | None:
        """The offer made for an entry of the outbox, which shall end as it was begun. Else as `find`."""
        rows = self._db.run(f"{_SELECT} WHERE parcel = ? ORDER BY created_at DESC LIMIT 1", parcel)
        return self._opened(rows, vault) if parcel else None

    def _opened(self, rows: list[Any], vault: Vault) -> KeptOffer | None:
        if not rows:
            return None
        sealed_body, signer, signature, parcel = rows[0]
        try:
            body = vault.open(sealed_body, what=_SEALED_AS)
            offer = strict_json.decode(Offer, body, what="own offer", max_nbytes=MAX_OFFER_NBYTES)
        except KvnetError:
            return None
        return KeptOffer(offer, SignedMessage(Offer.TYPE, body, signer, signature), parcel)

    def keep(self, slot: Sequence[str], kept: KeptOffer, vault: Vault) -> None:
        """Remember an offer. Its body is sealed whatever becomes of memories: it may hold a text."""
        offer, sealed = kept.offer, kept.sealed
        self._db.run(
            "INSERT OR REPLACE INTO offers VALUES (?, ?, ?, ?, ?, ?, ?)",
            *(_slot_id(slot), offer.transfer_id, kept.parcel, vault.seal(sealed.body, what=_SEALED_AS)),
            *(sealed.signer, sealed.signature, offer.created_at),
        )
        reach("offer.kept")

    def drop(self, slot: Sequence[str]) -> None:
        """Its transfer came to an end."""
        self._db.run("DELETE FROM offers WHERE slot = ?", _slot_id(slot))

    def delivered(self, run: Callable[..., list[Any]], transfer_id: str) -> None:
        """Within a transaction: the offer is done with, and so is the entry of the outbox it was made for."""
        run("DELETE FROM outbox WHERE id IN (SELECT parcel FROM offers WHERE transfer_id = ?)", transfer_id)
        run("DELETE FROM offers WHERE transfer_id = ?", transfer_id)

    def expire(self, *, before: int) -> None:
        """Drop offers made before this time; no outbox waits so long."""
        self._db.run("DELETE FROM offers WHERE created_at < ?", before)


def _slot_id(slot: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for part in slot:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
