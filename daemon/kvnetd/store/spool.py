"""The folder of unfinished transfers, each in a folder of its own (`unfinished`): which there are, and whose.

Knows names, sizes and offers; not what is in a transfer.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvnet.errors import KvnetError, StateCorrupt
from kvnet.format import strict_json
from kvnet.identity.keys import node_id_of, public_key_of
from kvnet.identity.signing import SignedMessage
from kvnet.plan import transfer_room_nbytes
from kvnet.transfer.messages import MAX_OFFER_NBYTES, Offer, relay_id
from kvnetd.store.bases import BasisStore
from kvnetd.store.disk import files_nbytes, full_disk_refused, require_room
from kvnetd.store.sections import SEALED_SECTIONS_FILE, sections_place
from kvnetd.store.unfinished import CHUNK_LOG_FILE, OFFER_FILE, RECORD_NBYTES, IncomingTransfer
from kvnetd.store.vault import SEAL_NBYTES, Vault


@dataclass(frozen=True, slots=True)
class _About:
    """What is asked of every unfinished transfer again and again, so that its offer is read but once."""

    created_at: int  # seconds since 1970, UTC
    basis: str  # digest, or ""


# Half made, or damaged: nothing was acknowledged under it that could be resumed.
_NOTHING: Final = _About(0, "")


class Spool:
    """The folder of unfinished transfers, one folder each, named by sender and transfer id.

    Two senders that use the same transfer id never touch each other's chunks.
    """

    def __init__(self, root: Path, bases: BasisStore, vault: Vault | None = None) -> None:
        """Without a vault everything is written in clear."""
        self.root = root
        self._bases = bases
        self._vault = vault or Vault.in_clear()
        self._known: dict[str, _About] = {}  # by folder name
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def open(self, offer: Offer, sealed: SignedMessage) -> IncomingTransfer:
        """Start or resume a transfer: `prepare`, then `take_up`."""
        self.prepare(offer, sealed)
        return self.take_up(offer)

    def prepare(self, offer: Offer, sealed: SignedMessage) -> None:
        """Make a transfer's folder, if it is not here. One of another offer with this id is started afresh.

        Raises StoreFull when what is still to come would not fit.
        """
        folder = self.root / folder_name(offer)
        needed, begun = transfer_room_nbytes(offer.memory), self.knows(offer, sealed)
        require_room(self.root, needed - (self.held_nbytes(offer) if begun else 0), what="transfer")
        if folder.exists() and not begun:
            shutil.rmtree(folder)
        with full_disk_refused("transfer"):
            if not folder.exists():
                folder.mkdir(mode=0o700)
                self._vault.write(folder / OFFER_FILE, sealed.body)
        self._known[folder.name] = _about(offer)

    def take_up(self, offer: Offer) -> IncomingTransfer:
        """Open a transfer that was prepared; reads and hashes what of it is here, from any thread."""
        with full_disk_refused("transfer"):
            return IncomingTransfer(self.root / folder_name(offer), offer, self._bases, self._vault)

    def knows(self, offer: Offer, sealed: SignedMessage) -> bool:
        """Whether this very offer was admitted before and its transfer is not complete."""
        try:
            return self._vault.read(self.root / folder_name(offer) / OFFER_FILE) == sealed.body
        except (OSError, StateCorrupt):
            return False

    def held_nbytes(self, offer: Offer) -> int:
        """Wire bytes of this transfer that lie here already."""
        folder = self.root / folder_name(offer)
        place = sections_place(folder)
        try:
            nbytes = place.stat().st_size
            count = (folder / CHUNK_LOG_FILE).stat().st_size // RECORD_NBYTES
        except FileNotFoundError:
            return 0
        return nbytes - (count * SEAL_NBYTES if place.name == SEALED_SECTIONS_FILE else 0)

    def copy_of(self, offer: Offer) -> Offer | None:
        """Of what an offer's sender sends here, what another node passed on: that one's offer, or None."""
        if not offer.wire_digest or offer.memory.is_open:
            return None
        origin = offer.origin or offer.sender
        for folder in self.root.glob(f"*-{relay_id(origin, offer.memory.id, offer.wire_digest)}"):
            copied = None if folder.name == folder_name(offer) else self._offer_in(folder)
            said = (origin, offer.memory, offer.wire_digest)
            if copied is not None and (copied.origin, copied.memory, copied.wire_digest) == said:
                return copied
        return None

    def claim(self, copied: Offer, offer: Offer, sealed: SignedMessage) -> None:
        """Let what was passed on be the beginning of a transfer of the same bytes that was not begun."""
        source, folder = self.root / folder_name(copied), self.root / folder_name(offer)
        if source.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of another offer with this id
            source.rename(folder)  # until the next line it is of an offer that nobody makes, and is swept
            self._vault.write(folder / OFFER_FILE, sealed.body)

    def room_nbytes(self, offer: Offer, sealed: SignedMessage) -> int:
        """What a transfer may take here from its first to its last byte: chunks, their log and the offer."""
        seal_nbytes = SEAL_NBYTES if self._vault.seals else 0
        chunks = transfer_room_nbytes(offer.memory) + offer.chunk_count * (RECORD_NBYTES + seal_nbytes)
        return chunks + len(sealed.body) + seal_nbytes

    def nbytes_of(self, sender: str = "", *, but: Collection[str] = ()) -> int:
        """Bytes of all that lies here of one node's unfinished transfers, or all's, but of some folders."""
        return sum(files_nbytes(folder) for folder in self._folders_of(sender) if folder.name not in but)

    def count_of(self, sender: str, *, but: Collection[str] = ()) -> int:
        """How many of one node's transfers are unfinished, the folders named in `but` not counted."""
        return sum(folder.name not in but for folder in self._folders_of(sender))

    def drop(self, senders: Collection[str]) -> None:
        """Remove every unfinished transfer of these nodes: nobody will resume them."""
        for sender in senders:
            for folder in self._folders_of(sender):
                shutil.rmtree(folder, ignore_errors=True)

    def expire(self, *, now: int, life_s: int, busy: frozenset[str]) -> int:
        """Remove transfers that were offered longer ago than `life_s`; returns how many.

        `busy` are the folder names of transfers on their way in (see `folder_name`).
        """
        gone = 0
        for folder in self.root.iterdir():
            if folder.name not in busy and self._about(folder).created_at + life_s < now:
                shutil.rmtree(folder, ignore_errors=True)
                gone += 1
        here = {folder.name for folder in self.root.iterdir()}
        self._known = {name: about for name, about in self._known.items() if name in here}
        return gone

    def bases(self) -> frozenset[str]:
        """Digests of the calibrations that unfinished transfers need."""
        return frozenset(filter(None, (self._about(folder).basis for folder in self.root.iterdir())))

    def _folders_of(self, sender: str) -> tuple[Path, ...]:
        return tuple(self.root.glob(f"{sender}-*" if sender else "*"))

    def _about(self, folder: Path) -> _About:
        known = self._known.get(folder.name)
        if known is None:
            known = self._known[folder.name] = self._read(folder)
        return known

    def _read(self, folder: Path) -> _About:
        offer = self._offer_in(folder)
        return _NOTHING if offer is None else _about(offer)

    def _offer_in(self, folder: Path) -> Offer | None:
        try:
            body = self._vault.read(folder / OFFER_FILE)
            return strict_json.decode(Offer, body, what="offer", max_nbytes=MAX_OFFER_NBYTES)
        except (KvnetError, OSError):
            return None


def _about(offer: Offer) -> _About:
    return _About(offer.created_at, offer.memory.coding.basis)


def folder_name(offer: Offer) -> str:
    """What names a transfer's folder: a node id and 32 hex digits, both through bytes and back."""
    transfer_id = bytes.fromhex(offer.transfer_id).hex()
    if len(transfer_id) != 32:
        raise ValueError(f"transfer id {offer.transfer_id!r:.60} is not 32 hex digits")
    return f"{node_id_of(public_key_of(offer.sender))}-{transfer_id}"
