"""send and pull: start a transfer with a peer, whichever side asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial

from kvnet.api import LayerProgress, SendReport
from kvnet.codec.presets import PRESETS, preset_name
from kvnet.compat import require_tier
from kvnet.errors import (
    AlignmentRefused,
    IncompatibleModel,
    KvnetError,
    PeerUnreachable,
    ReplayedMessage,
    RequestError,
)
from kvnet.identity.peers import AddedPeer
from kvnet.model.recover import recover_text
from kvnet.transfer.messages import MAX_NOTE_CHARS, MAX_TEXT_NBYTES, Hello
from kvnet.transport.client import PeerClient
from kvnet.transport.sending import AckProgress, Sent
from kvnet.types import Coding, Compression, MemoryId, Scheme, Tier
from kvnetd import encoding
from kvnetd.actions.memories import find
from kvnetd.alignments import MAPPED, UNMAPPED
from kvnetd.outgoing import OutboundTransfer
from kvnetd.projection import PORT_BITS, map_into_port, project
from kvnetd.services import Services
from kvnetd.store.records import MemoryRecord
from kvnetd.store.texts import attached_text
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
) -> AsyncGenerator[LayerProgress | SendReport, None]:
    """Send a memory to `peer` or `peer/agent` now; yields a LayerProgress per layer, the report last.

    `with_text` sends along what the memory is of, for a model that cannot use it; `parcel` is the
    entry of the outbox that is done with then: it goes on as it was begun, whatever `codec` means by now.
    """
    began = time.perf_counter()
    if len(note) > MAX_NOTE_CHARS:
        raise RequestError(f"note: {len(note)} characters, at most {MAX_NOTE_CHARS}; put it in the memory")
    wanted, _, to_agent = to.partition("/")
    peer = services.peers.find(wanted)
    record = await find(services, memory)
    begun = await transfers.begun(parcel, peer)
    if begun is None:
        text = await _text_of(services, record) if with_text else ""
        hello, address, _ = await say_hello(services, peer)
        record = await _chosen(services, record, codec, hello, has_text=bool(text))
        used = {section.compression for section in record.head.sections}
        _require_decoder(hello, record.header.coding, used)
    else:
        record, text = begun  # the peer may have it already: another coding would be a second message
        _, address, _ = await say_hello(services, peer)
    # One item a layer and one for the end: never more.
    progress: asyncio.Queue[LayerProgress | None] = asyncio.Queue(record.header.geometry.num_layers + 1)

    def on_progress(ack: AckProgress) -> None:
        progress.put_nowait(LayerProgress(ack.layer_idx, ack.chunks_done, ack.chunks_total, ack.wire_nbytes))

    outbound = await transfers.prepare(
        record, peer, note=note, agents=(agent, to_agent), text=text, parcel=parcel
    )
    pushing = asyncio.create_task(_push(services, peer, address, outbound, on_progress))
    pushing.add_done_callback(lambda _: progress.put_nowait(None))
    failure: BaseException | None = None
    try:
        while (layer := await progress.get()) is not None:
            yield layer
        sent = await pushing
    except IncompatibleModel as error:
        failure = error
        if begun is None:
            raise
        raise ReplayedMessage(f"{error.message}; as it was begun it is not taken any more") from error
    except BaseException as error:
        failure = error
        raise
    finally:
        pushing.cancel()
        await asyncio.wait({pushing})  # it reads from the file that close() closes
        await outbound.close(failure)
    yield SendReport(
        transfer_id=outbound.session.offer.transfer_id,
        memory=record.id,
        peer=peer.name,
        chunks=len(outbound.session.chunks),
        raw_bytes=record.header.raw_nbytes,
        wire_bytes=sent.wire_nbytes,
        seconds=round(time.perf_counter() - began, 6),
        tier=sent.receipt.tier,
        resumed_chunks=sent.resumed_chunks,
        codec=preset_name(record.header.coding),
    )


async def _chosen(
    services: Services, record: MemoryRecord, codec: str, hello: Hello, *, has_text: bool
) -> MemoryRecord:
    """The memory in the coding in which this peer gets it. Raises IncompatibleModel, and as below."""
    source = record.header
    tier = require_tier(
        (source.fingerprint, source.geometry),
        (hello.fingerprint, hello.geometry),
        # Coordinates were made by one map: whether the peer has that one, the peer says.
        has_map=bool(hello.maps_from(source.fingerprint)) or source.coding.scheme is Scheme.PORT,
        in_coordinates=source.coding.scheme is Scheme.PORT,
        has_text=has_text,
    )
    return await _record_to_send(services, record, codec, hello, tier, has_text=has_text)


async def _record_to_send(
    services: Services, record: MemoryRecord, codec: str, hello: Hello, tier: Tier, *, has_text: bool
) -> MemoryRecord:
    """What shall travel: coordinates by a map that the peer holds too, else what a map of its own can use.

    Raises RequestError or AlignmentRefused for coordinates that were asked for and cannot be made, and
    IncompatibleModel, before anything is encoded, where the peer decodes none of it.
    """
    is_raw = record.header.coding.scheme is not Scheme.PORT
    if is_raw and tier in MAPPED and codec in PORT_BITS:
        source = record.header.fingerprint
        manifest = map_into_port(services, source, hello.fingerprint, held=hello.maps_from(source))
        if manifest is not None:
            bits = PORT_BITS[codec]
            _require_decoder(hello, Coding(Scheme.PORT, bits, bits), {Compression.ZSTD})
            try:
                return await project(services, record, manifest, bits=bits)
            except AlignmentRefused as refused:
                # Not for this memory: whether the peer can use it, the peer says. But no map can use what it
                # was not fitted on.
                if codec or (UNMAPPED in refused.details and not has_text):
                    raise
        if not codec:
            return await encoding.record_to_map(services, record)
    if is_raw and codec and codec in PORT_BITS:
        raise RequestError(
            f"codec {codec}: no admitted map here leads from {record.header.fingerprint.model} into a port "
            f"of {hello.fingerprint.model} that {hello.name} holds too; give one to the other node with "
            "`kvnet align export` and `kvnet align import`, or send with another codec"
        )
    await _require_preset(services, record, codec, hello)
    return await encoding.record_to_send(services, record, codec)


async def _text_of(services: Services, record: MemoryRecord) -> str:
    """The text that is kept beside a memory, or else what its own model reads out of it.

    Raises RequestError where there is neither, or one too long to send.
    """
    text = await services.in_pool(attached_text, services.memories, record.header)
    text = text or await recovered_text(services, record)
    nbytes = len(text.encode())
    if nbytes > MAX_TEXT_NBYTES:
        raise RequestError(
            f"memory {record.id}: its text has {nbytes} bytes, at most {MAX_TEXT_NBYTES} go with a memory; "
            "send it without"
        )
    return text


async def recovered_text(services: Services, record: MemoryRecord) -> str:
    """A whole memory tells its text to the model that made it (SECURITY.md).

    Raises RequestError where it does not, or another model made it.
    """
    header = record.header
    if header.fingerprint != services.host.fingerprint or header.coding.scheme is Scheme.PORT:
        raise RequestError(
            f"memory {record.id}: no text is kept beside it; read it again with `kvnet remember --keep-text`"
        )
    memory = await services.in_pool(services.memories.load, record)
    basis = await encoding.basis_of(services, header.coding, header.geometry)
    return await services.runner.run(recover_text, services.host, memory, basis=basis)


def dial(services: Services, peer: AddedPeer, address: str) -> PeerClient:
    """A connection to a peer at one of its addresses."""
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
    try:
        async with dial(services, peer, address) as client:
            hello = await client.hello(deadline_s=deadline_s)
    except KvnetError as error:
        services.directory.judge(peer.node_id, address, answered=False)
        return address, error
    services.directory.judge(peer.node_id, address, answered=True)
    return address, (hello, time.perf_counter() - began)


async def _require_preset(services: Services, record: MemoryRecord, codec: str, hello: Hello) -> None:
    """`_require_decoder` of a coding that would have to be made first: before it is."""
    name = await encoding.preset_to_send(services, record, codec)
    if name is not None:
        _require_decoder(hello, PRESETS[name].coding, {PRESETS[name].compression})


def _require_decoder(hello: Hello, coding: Coding, used: set[Compression]) -> None:
    """That the peer says it can decode what would be sent. Raises IncompatibleModel, in names of codecs."""
    limits = hello.limits
    names = {choice.name.lower() for choice in used}
    if coding.scheme not in limits.schemes:
        missing = preset_name(coding)
        taken = [name for name, preset in PRESETS.items() if preset.coding.scheme in limits.schemes]
    elif names - set(limits.compressions):
        missing, taken = min(names - set(limits.compressions)), list(limits.compressions)
    else:
        return
    only = ", ".join(taken) or "nothing"
    raise IncompatibleModel(f"{hello.name}: does not decode {missing}, only {only}; send with another codec")


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
    """Fetch one of a peer's memories by its full id."""
    began = time.perf_counter()
    peer = services.peers.find(peer_name)
    wanted = _full_id(memory)
    _, address, _ = await say_hello(services, peer)
    async with dial(services, peer, address) as client:
        inbound = await client.pull(
            transfers.pull_request(wanted, peer),
            partial(transfers.open_pulled, wanted=wanted),
            services.pool,
        )
    offer = inbound.session.offer
    return SendReport(
        transfer_id=offer.transfer_id,
        memory=offer.memory.id,
        peer=peer.name,
        chunks=offer.chunk_count,
        raw_bytes=offer.memory.raw_nbytes,
        wire_bytes=inbound.wire_nbytes,
        seconds=round(time.perf_counter() - began, 6),
        tier=inbound.session.tier.value,
        resumed_chunks=inbound.resumed_chunks,
        codec=preset_name(offer.memory.coding),
    )


def _full_id(memory: str) -> MemoryId:
    if len(memory) != MEMORY_ID_CHARS or not memory.startswith("mem_"):
        raise RequestError(f"memory {memory:.60}: a pull needs the peer's full id, mem_ and 52 characters")
    return MemoryId(memory)
