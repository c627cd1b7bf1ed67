"""send and pull: start a transfer with a peer, whichever side asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial

from kvnet.api import LayerProgress, OutboxEntry, SendReport
from kvnet.codec.presets import preset_name
from kvnet.compat import require_tier
from kvnet.errors import (
    IncompatibleModel,
    KvnetError,
    MissingPrefix,
    PeerUnreachable,
    ReplayedMessage,
    RequestError,
)
from kvnet.identity.peers import AddedPeer
from kvnet.transfer.messages import MAX_NOTE_CHARS, Hello
from kvnet.transport.client import PeerClient
from kvnet.transport.sending import AckProgress, Sent
from kvnet.types import MemoryId, NodeId, Scheme, Tier
from kvnetd import chains
from kvnetd.actions.choosing import record_to_send, require_decoder, text_of
from kvnetd.actions.memories import find
from kvnetd.incoming import InboundTransfer
from kvnetd.outgoing import Beside, OutboundTransfer
from kvnetd.services import Services
from kvnetd.store.outbox import Parcel
from kvnetd.store.records import MemoryRecord
from kvnetd.transfers import Transfers

MEMORY_ID_CHARS = 56
DIAL_APART_S = 0.5  # between the addresses of one peer


async def send(
    services: Services,
    transfers: Transfers,
    *,
    memory: str,
    to: str,
    note: str,
    agent: str,
    codec: str = "",
    with_text: bool = False,
    parcel: str = "",
    relay_to: tuple[NodeId, ...] | None = None,
    beside: Beside | None = None,
    on_outbound: Callable[[OutboundTransfer], None] | None = None,
) -> AsyncGenerator[LayerProgress | SendReport, None]:
    """Send a memory to `peer` or `peer/agent` now; yields a LayerProgress per layer, the report last.

    `with_text` sends along what the memory is of, for a model that cannot use it; `parcel` is the
    entry of the outbox that is done with then: it goes on as it was begun, whatever `codec` means by now.
    `relay_to` is as `Departures.prepare` has it; `beside` is of a memory that is sent in parts; `on_outbound`
    sees the transfer before it begins. Of a memory behind others the peer gets first what it lacks of those.
    """
    record = await find(services, memory)
    way = partial(_send_one, services, transfers, to=to, agent=agent, codec=codec)
    wanted, bases = [record], set[str]()
    while wanted:
        is_base = len(wanted) > 1
        words = {"note": note, "with_text": with_text, "parcel": parcel, "relay_to": relay_to}
        words |= {"beside": beside, "on_outbound": on_outbound}
        steps = way(wanted[-1], **({"beside": Beside(quiet=True)} if is_base else words))
        try:
            async with aclosing(steps):
                async for step in steps:
                    if not is_base:
                        yield step
        except MissingPrefix as missing:
            base = await _base_of(services, wanted[-1], missing)
            if base is None or base.id in bases:
                raise
            bases.add(base.id)
            wanted.append(base)
        else:
            wanted.pop()


def beside_of(parcel: Parcel | OutboxEntry) -> Beside | None:
    """What an offer says of a parcel that is a part of a live memory; None of any other."""
    beside = Beside(quiet=parcel.quiet, label=parcel.label)
    return None if beside == Beside() else beside


async def _base_of(services: Services, record: MemoryRecord, missing: MissingPrefix) -> MemoryRecord | None:
    """Of the memories here that one goes on behind, the one that a peer lacks. Raises MissingPrefix."""
    ends = missing.details.get("start_pos", [])
    for link in await chains.links_of(services, record):
        if [str(link.header.start_pos + link.header.seq_len)] == ends:
            return link
    return None


async def _send_one(
    services: Services,
    transfers: Transfers,
    record: MemoryRecord,
    *,
    to: str,
    agent: str,
    codec: str,
    note: str = "",
    with_text: bool = False,
    parcel: str = "",
    relay_to: tuple[NodeId, ...] | None = None,
    beside: Beside | None = None,
    on_outbound: Callable[[OutboundTransfer], None] | None = None,
) -> AsyncGenerator[LayerProgress | SendReport, None]:
    """`send` of one memory to a peer that has what is before it. Raises MissingPrefix."""
    began = time.perf_counter()
    if len(note) > MAX_NOTE_CHARS:
        raise RequestError(f"note: {len(note)} characters, at most {MAX_NOTE_CHARS}; put it in the memory")
    wanted, _, to_agent = to.partition("/")
    peer = services.peers.find(wanted)
    begun = await transfers.begun(parcel, peer)
    if begun is None:
        text = await text_of(services, record) if with_text else ""
        hello, address, _ = await say_hello(services, peer)
        record = await _chosen(services, record, codec, hello, has_text=bool(text))
        used = {section.compression for section in record.head.sections}
        require_decoder(hello, record.header.coding, used)
    else:
        record, text = begun  # the peer may have it already: another coding would be a second message
        _, address, _ = await say_hello(services, peer)
    outbound = await transfers.prepare(
        record,
        peer,
        note=note,
        agents=(agent, to_agent),
        text=text,
        parcel=parcel,
        relay_to=relay_to,
        beside=beside,
    )
    if on_outbound is not None:
        on_outbound(outbound)
    sent_at = time.perf_counter()
    try:
        async with aclosing(deliver(services, peer, address, outbound)) as steps:
            async for step in steps:
                if isinstance(step, LayerProgress):
                    yield step
                    continue
                now = time.perf_counter()
                if step.wire_nbytes and not (beside and beside.prefix_text):  # else it waited for a reading
                    await services.in_store(
                        services.rates.sent, peer.node_id, step.wire_nbytes, now - sent_at
                    )
                yield report_of(outbound, step, peer, seconds=now - began)
    except IncompatibleModel as error:
        if begun is None:
            raise
        raise ReplayedMessage(f"{error.message}; as it was begun it is not taken any more") from error


async def _chosen(
    services: Services, record: MemoryRecord, codec: str, hello: Hello, *, has_text: bool
) -> MemoryRecord:
    """The memory in the coding in which this peer gets it. Raises IncompatibleModel, as `record_to_send`."""
    source = record.header
    tier = require_tier(
        (source.fingerprint, source.geometry),
        (hello.fingerprint, hello.geometry),
        # Coordinates were made by one map: whether the peer has that one, the peer says.
        has_map=bool(hello.maps_from(source.fingerprint)) or source.coding.scheme is Scheme.PORT,
        in_coordinates=source.coding.scheme is Scheme.PORT,
        has_text=has_text,
    )
    if source.start_pos and tier not in (Tier.EXACT, Tier.IDENTITY):
        raise IncompatibleModel(
            f"memory {record.id}: begins at position {source.start_pos}; a map takes whole memories, from 0"
        )
    return await record_to_send(services, record, codec, hello, tier, has_text=has_text)


async def deliver(
    services: Services, peer: AddedPeer, address: str, outbound: OutboundTransfer
) -> AsyncGenerator[LayerProgress | Sent, None]:
    """Push a prepared transfer; a LayerProgress as each layer is durable there, Sent last. Closes it."""
    # One item a layer and one for the end: never more.
    num_layers = outbound.session.offer.memory.geometry.num_layers
    progress: asyncio.Queue[LayerProgress | None] = asyncio.Queue(num_layers + 1)

    def on_progress(ack: AckProgress) -> None:
        progress.put_nowait(LayerProgress(ack.layer_idx, ack.chunks_done, ack.chunks_total, ack.wire_nbytes))

    pushing = asyncio.create_task(_push(services, peer, address, outbound, on_progress))
    pushing.add_done_callback(lambda _: progress.put_nowait(None))
    failure: BaseException | None = None
    try:
        while (layer := await progress.get()) is not None:
            yield layer
        sent = await pushing
    except BaseException as error:
        failure = error
        raise
    finally:
        pushing.cancel()
        await asyncio.wait({pushing})  # it reads from the file that close() closes
        await outbound.close(failure)
        # Else frame, failure and traceback hold one another, and the connection, until a collection.
        failure = None
        del pushing
    yield sent


def report_of(outbound: OutboundTransfer, sent: Sent, peer: AddedPeer, *, seconds: float) -> SendReport:
    """What is said of a transfer that succeeded."""
    if outbound.record is None:
        raise AssertionError("a transfer succeeded before its memory was sealed")
    header = outbound.record.header
    return SendReport(
        transfer_id=outbound.session.offer.transfer_id,
        memory=header.id,
        peer=peer.name,
        chunks=len(outbound.session.plan),
        raw_bytes=header.raw_nbytes,
        wire_bytes=sent.wire_nbytes,
        seconds=round(seconds, 6),
        tier=sent.receipt.tier,
        resumed_chunks=sent.resumed_chunks,
        codec=preset_name(header.coding),
    )


def dial(services: Services, peer: AddedPeer, address: str) -> PeerClient:
    """A connection to a peer at one of its addresses: that over which it just said hello, if there is one."""
    return services.links.take(peer.public, address, partial(_connect, services, peer, address))


def _connect(services: Services, peer: AddedPeer, address: str) -> PeerClient:
    return PeerClient(address, public=peer.public, peer=f"{peer.name} at {address}", gate=services.gate)


async def say_hello(
    services: Services, peer: AddedPeer, *, deadline_s: float = 0.0
) -> tuple[Hello, str, float]:
    """The peer's hello, the address it answered at, and how long that took.

    Tries every known address, the next one soon after the one before: one that is silent, as an old address
    is or a rogue's, holds nothing up. Raises what a node said that answered, else what failed at the best.
    """
    addresses = services.directory.addresses(peer)
    dials = [
        asyncio.create_task(
            _hello_at(services, peer, address, after_s=i * DIAL_APART_S, deadline_s=deadline_s)
        )
        for i, address in enumerate(addresses)
    ]
    try:
        failures: dict[str, KvnetError] = {}
        for dialled in asyncio.as_completed(dials):
            address, answer = await dialled
            if not isinstance(answer, KvnetError):
                return answer[0], address, answer[1]
            failures[address] = answer
        told = (
            failures[address] for address in addresses if not isinstance(failures[address], PeerUnreachable)
        )
        raise next(told, failures[addresses[0]])
    finally:
        for one in dials:
            one.cancel()
        await asyncio.wait(dials)


async def _hello_at(
    services: Services, peer: AddedPeer, address: str, *, after_s: float, deadline_s: float
) -> tuple[str, tuple[Hello, float] | KvnetError]:
    await asyncio.sleep(after_s)
    began = time.perf_counter()
    client = _connect(services, peer, address)
    try:
        hello = await client.hello(deadline_s=deadline_s)
    except BaseException as error:
        await client.close()
        if not isinstance(error, KvnetError):
            raise
        services.directory.judge(peer.node_id, address, answered=False)
        return address, error
    services.links.keep(peer.public, address, client)
    services.directory.judge(peer.node_id, address, answered=True)
    return address, (hello, time.perf_counter() - began)


async def _push(
    services: Services,
    peer: AddedPeer,
    address: str,
    outbound: OutboundTransfer,
    on_progress: Callable[[AckProgress], None],
) -> Sent:
    async with dial(services, peer, address) as client:
        return await client.push(outbound, on_progress)


async def pull(services: Services, transfers: Transfers, *, memory: str, peer_name: str) -> SendReport:
    """Fetch one of a peer's memories by its full id, and first those that it goes on behind."""
    began = time.perf_counter()
    peer = services.peers.find(peer_name)
    wanted = [full_id(memory)]
    _, address, _ = await say_hello(services, peer)
    while True:
        try:
            inbound = await _pull_one(services, transfers, peer, address, wanted[-1])
        except MissingPrefix as missing:
            base = base_there(missing)
            if base is None or base in wanted or len(wanted) > chains.MAX_LINKS:
                raise
            wanted.append(base)
            continue
        wanted.pop()
        if not wanted:
            break
    offer = inbound.session.offer
    return SendReport(
        transfer_id=offer.transfer_id,
        memory=inbound.session.memory.id,
        peer=peer.name,
        chunks=offer.chunk_count,
        raw_bytes=offer.memory.raw_nbytes,
        wire_bytes=inbound.wire_nbytes,
        seconds=round(time.perf_counter() - began, 6),
        tier=inbound.session.tier.value,
        resumed_chunks=inbound.resumed_chunks,
        codec=preset_name(offer.memory.coding),
    )


def base_there(missing: MissingPrefix) -> MemoryId | None:
    """The peer's memory of the tokens that are missing here, if it said which."""
    return next(map(MemoryId, missing.details.get("behind", [])), None)


async def _pull_one(
    services: Services, transfers: Transfers, peer: AddedPeer, address: str, wanted: MemoryId
) -> InboundTransfer:
    async with dial(services, peer, address) as client:
        return await client.pull(
            transfers.pull_request(wanted, peer),
            partial(transfers.open_pulled, wanted=wanted),
            services.pool,
        )


def full_id(memory: str) -> MemoryId:
    """A memory's id as a peer wants it. Raises RequestError."""
    if len(memory) != MEMORY_ID_CHARS or not memory.startswith("mem_"):
        raise RequestError(f"memory {memory:.60}: a pull needs the peer's full id, mem_ and 52 characters")
    return MemoryId(memory)
