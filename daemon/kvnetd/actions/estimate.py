"""estimate: what handing a memory to a peer would cost, by each way, from what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from kvnet.api import Estimate
from kvnet.codec.presets import preset_name
from kvnet.compat import decide_tier
from kvnet.cost import Costs, Line, Load, costs_of
from kvnet.errors import RequestError
from kvnet.identity.peers import AddedPeer
from kvnet.transfer.messages import Hello
from kvnet.types import Kind, Scheme, Tier
from kvnetd.actions.choosing import record_to_send, text_of
from kvnetd.actions.memories import find
from kvnetd.actions.send import dial, say_hello
from kvnetd.probing import probe_link
from kvnetd.services import Services
from kvnetd.store.records import MemoryRecord


@dataclass(frozen=True, slots=True)
class Priced:
    """A memory, a peer, and what every way from one to the other costs."""

    peer: AddedPeer
    record: MemoryRecord
    coded: MemoryRecord  # as it would travel
    costs: Costs
    link: Line
    reading: Line
    text: str  # "" where it cannot be read there,
    token_ids: tuple[int, ...]
    why_not: str  # and for this reason


async def estimate(services: Services, *, memory: str, to: str, codec: str = "") -> Estimate:
    """Seconds from the start of a transfer to its receipt. Raises as `price`."""
    found = await price(services, memory=memory, to=to, codec=codec)
    byte_s, token_s = found.link.fit[1], found.reading.fit[1]
    return Estimate(
        memory=found.record.id,
        peer=found.peer.name,
        codec=preset_name(found.coded.header.coding),
        tokens=found.record.header.seq_len,
        wire_bytes=_wire_nbytes(found.coded),
        transfer_s=round(found.costs.transfer_s, 6),
        text_s=_rounded(found.costs.text_s),
        split_s=_rounded(found.costs.split_s),
        split_tokens=found.costs.split_tokens,
        choice=found.costs.choice.value,
        why_no_text=found.why_not,
        link_bytes_per_s=round(1 / byte_s) if byte_s else 0,
        reading_tokens_per_s=round(1 / token_s) if token_s else 0,
    )


async def price(services: Services, *, memory: str, to: str, codec: str) -> Priced:
    """Price every way of a memory to a peer; it is encoded for that, as sending it would have it.

    A link that was never used is measured by a few bytes. Raises UnknownMemory, UnknownPeer, PeerUnreachable,
    and what choosing the coding raises.
    """
    peer = services.peers.find(to.partition("/")[0])
    record = await find(services, memory)
    hello, address, hello_s = await say_hello(services, peer)
    if not services.rates.link(peer.node_id).is_known:
        async with dial(services, peer, address) as client:
            await probe_link(services, client, peer.node_id, hello_s)
    header = record.header
    tier = decide_tier(
        (header.fingerprint, header.geometry),
        (hello.fingerprint, hello.geometry),
        has_map=bool(hello.maps_from(header.fingerprint)) or header.coding.scheme is Scheme.PORT,
        in_coordinates=header.coding.scheme is Scheme.PORT,
    )
    coded = await record_to_send(services, record, codec, hello, tier, has_text=False)
    text, token_ids, why_not = await _readable(services, record, hello, tier)
    link = services.rates.link(peer.node_id)
    reading = Line.of(hello.prefill_us / 1e6, hello.prefill_token_ns / 1e9)
    load = Load(header.seq_len, _wire_nbytes(coded), len(text.encode()))
    costs = costs_of(load, link=link, reading=None if why_not else reading)
    return Priced(peer, record, coded, costs, link, reading, text, token_ids, why_not)


async def _readable(
    services: Services, record: MemoryRecord, hello: Hello, tier: Tier
) -> tuple[str, tuple[int, ...], str]:
    """The text that a peer could read instead and its tokens, or why it cannot."""
    if tier is not Tier.EXACT:
        return "", (), f"{hello.name} hosts another model than {record.header.fingerprint.model}"
    if not hello.prefill_token_ns:
        return "", (), f"{hello.name} has not measured yet how fast it reads"
    if record.header.seq_len < 2:
        return "", (), "a memory of one token is its own shortest form"
    try:
        from kvnetd.cutting import tokens_of  # torch

        services.require_model()
        text = await text_of(services, record)
        return text, await tokens_of(services, record, text), ""
    except RequestError as refused:
        return "", (), refused.message


def _wire_nbytes(record: MemoryRecord) -> int:
    return sum(s.wire_nbytes for s in record.head.sections if s.key.kind is not Kind.BASIS)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
