"""receipt ls, receipt export: proof of what this node delivered."""

from __future__ import annotations

from kvnet.api import ReceiptInfo
from kvnet.files.receipts import pack_receipt
from kvnetd.services import Services
from kvnetd.store.receipts import KeptReceipt


async def list_receipts(services: Services) -> tuple[ReceiptInfo, ...]:
    """Every receipt, oldest first."""
    kept = await services.in_store(services.ledger.receipts.all)
    return tuple(_info(services, receipt) for receipt in kept)


async def export_receipt(services: Services, wanted: str) -> bytes:
    """The file of a receipt, by the start of its transfer's or memory's id. Raises UnknownTransfer."""
    kept = await services.in_store(services.ledger.receipts.find, wanted)
    return pack_receipt(kept.receipt, kept.sealed_offer())


def _info(services: Services, kept: KeptReceipt) -> ReceiptInfo:
    peer = services.peers.get(kept.peer)
    return ReceiptInfo(
        transfer_id=kept.transfer_id,
        memory=kept.memory,
        peer=kept.peer,
        peer_name=peer.name if peer else "",
        completed_at=kept.completed_at,
        has_offer=kept.has_offer,
    )
