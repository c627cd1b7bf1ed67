"""Nodes in one process, whole but for a model; and peers that send to them without a network."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from kvnetd.config import load_config
from kvnetd.directory import Directory
from kvnetd.incoming import InboundTransfer
from kvnetd.log import EventLog
from kvnetd.own_keys import own_ids
from kvnetd.services import Listening, Services
from kvnetd.store.alignments import AlignmentStore
from kvnetd.store.bases import BasisStore
from kvnetd.store.folder import open_folder
from kvnetd.store.ledger import Ledger
from kvnetd.store.memories import MemoryStore
from kvnetd.store.models import ModelNotes
from kvnetd.store.records import LocalNotes, Making, MemoryRecord
from kvnetd.store.spool import Spool
from kvnetd.transfers import Transfers
from kvnetd.trust import make_gate

from kvnet.api import InboxMessage
from kvnet.identity.keys import NodeKey
from kvnet.identity.peers import AddedPeer, PeerList
from kvnet.identity.signing import SignedMessage, sign_chunk, verify_chunk
from kvnet.model.runner import ModelRunner
from kvnet.paths import Home
from kvnet.transfer.messages import Offer, PullRequest, seal
from kvnet.transfer.sender import SenderSession
from kvnet.transport.server import PeerServer
from kvnet.types import Compression, Fingerprint, Geometry, MemoryId, RawMemory, TransferId
from tests.builders import (
    RECEIVER,
    SENDER,
    make_fingerprint,
    make_geometry,
    make_head,
    make_memory,
    make_offer,
    wire_basis,
    wire_chunks,
)

MEMORY = make_memory()
WIDE = make_geometry(num_kv_heads=64)
AT = "2026-01-01T00:00:00Z"


@dataclass
class Host:
    """What transfers and codings ask of a model host."""

    name: str
    fingerprint: Fingerprint
    geometry: Geometry
    max_seq_len: int


@asynccontextmanager
async def services_of(
    root: Path, key: NodeKey, *added: AddedPeer, limits: dict[str, int] | None = None, **settings: Any
) -> AsyncIterator[Services]:
    """The services of a node that has added these peers and hosts no model at all."""
    home = Home(root)
    home.store.mkdir(parents=True)
    config = load_config(home, {"limits": {"max_inbound_transfers": 2, **(limits or {})}, **settings}, {})
    peers = PeerList(home.peers, max_peers=config.limits.max_peers)
    for peer in added:
        peers.add(peer)
    vault = open_folder(home.store, home.vault_key, seals=config.encrypt_at_rest)
    ledger = Ledger(home.store / "ledger.sqlite")
    log = EventLog(home.events, node="n", max_nbytes=1 << 20)
    host: Any = Host("tiny", make_fingerprint(), make_geometry(), 64)
    runner = ModelRunner()
    bases = BasisStore(home.store / "bases")
    with (
        ThreadPoolExecutor(1) as store_thread,
        ThreadPoolExecutor(1) as trust_thread,
        ThreadPoolExecutor(1) as pool,
    ):
        services = Services(
            config=config,
            key=key,
            log=log,
            peers=peers,
            gate=make_gate(
                key,
                peers,
                namespace=config.namespace,
                limits=config.limits,
                log=log,
                trust_thread=trust_thread,
            ),
            directory=Directory(),
            memories=MemoryStore(home.store / "memories", vault),
            bases=bases,
            alignments=AlignmentStore(home.root / "alignments", own=own_ids(home, key)),
            models=ModelNotes(home.store / "models.json"),
            spool=Spool(home.store / "incoming", bases, vault),
            ledger=ledger,
            host=host,
            runner=runner,
            store_thread=store_thread,
            trust_thread=trust_thread,
            pool=pool,
            listening=Listening(),
        )
        yield services
        await services.links.close()
    await runner.close()
    ledger.close()
    log.close()


@dataclass(frozen=True)
class Node:
    """A node whose peer port is open."""

    services: Services
    transfers: Transfers
    address: str

    def remember(self, memory: RawMemory = MEMORY, wanted: Compression = Compression.LZ4) -> MemoryRecord:
        """Put a memory into the store."""
        return self.services.memories.put(memory, making(wanted), self.services.key)


def making(
    wanted: Compression = Compression.LZ4,
    *,
    at: str = AT,
    level: int = 0,
    in_passing: bool = False,
    **more: Any,
) -> Making:
    """How a memory that was made here at this time is written down."""
    notes = LocalNotes(origin="", stored_at=at, in_passing=in_passing)
    return Making(wanted, level, "alice", AT, notes, **more)


@asynccontextmanager
async def listening(services: Services) -> AsyncIterator[Node]:
    """Open the peer port on loopback."""
    transfers = Transfers(services)
    server = PeerServer(transfers, services.gate)
    port = await server.start(host="127.0.0.1", port=0)
    yield Node(services, transfers, f"127.0.0.1:{port}")
    await server.stop(0)
    await transfers.close()


def widen(*nodes: Node) -> None:
    """Host a model of 256 channels, whose calibrations are of several pieces."""
    for node in nodes:
        host: Any = node.services.host
        host.geometry = WIDE


def add(node: Node, other: Node) -> None:
    """Add a node by its id, name and address."""
    services = other.services
    peer = AddedPeer(services.key.node_id, services.config.name, other.address, AT)
    node.services.peers.add(peer)


def events(services: Services, name: str = "transfer") -> list[dict[str, Any]]:
    """The lines of the event log about this."""
    lines = [json.loads(line) for line in services.log.lines()]
    return [line for line in lines if line["event"].startswith(f"{name}.")]


def receipts(services: Services) -> list[tuple[str, str, str, str]]:
    """Direction, peer, transfer id and memory of every transfer that was completed."""
    return services.ledger._run("SELECT direction, peer, transfer_id, memory FROM transfers")


def inbox(services: Services) -> tuple[InboxMessage, ...]:
    """Every message, read or not."""
    return services.ledger.messages(agent=None, unread_only=False)


def set_room(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    """As if the disk had so much left, reserve not counted."""
    for module in ("kvnetd.parties", "kvnetd.store.disk"):
        monkeypatch.setattr(f"{module}.free_nbytes", lambda folder: nbytes)


def spooled(services: Services) -> list[str]:
    """The folders of unfinished transfers."""
    return sorted(folder.name for folder in services.spool.root.iterdir())


def offer(number: int = 1, memory: RawMemory = MEMORY, **changes: Any) -> Offer:
    """A fresh offer of Alice's; the clock is the real one here."""
    now = int(time.time())
    plain = make_offer(memory, created_at=now, expires_at=now + 600)
    return replace(plain, transfer_id=TransferId(f"{number:032x}"), **changes)


def pull(memory: MemoryId, key: NodeKey = SENDER, **changes: Any) -> SignedMessage:
    """A signed request for one of our memories."""
    plain = PullRequest(memory, SENDER.node_id, RECEIVER.node_id, int(time.time()), "11" * 16)
    return seal(key, replace(plain, **changes))


async def deliver(
    inbound: InboundTransfer,
    *indices: int,
    key: NodeKey = SENDER,
    memory: RawMemory = MEMORY,
    wanted: Compression = Compression.NONE,
    basis: bytes = b"",
) -> SenderSession:
    """Send the chunks of these indices that are missing, or all; each is durable then."""
    session = inbound.session
    of_memory, of_basis = wire_chunks(memory, wanted), wire_basis(memory.header, basis)
    chunks, payloads = of_memory[0] + of_basis[0], of_memory[1] + of_basis[1]
    sender = SenderSession(session.offer, offer_digest=session.binding.offer_digest, chunks=chunks)
    for index in (key.index for key in sender.accepted(session.accept())):
        if not indices or index in indices:
            signed = sign_chunk(key, sender.envelope(chunks[index]), payloads[index])
            verified = verify_chunk(signed, session.binding)
            session.receive(verified)
            await inbound.store([verified])
            session.durable(index)
    return sender


async def complete(inbound: InboundTransfer, **sent: Any) -> SignedMessage:
    """Send what is missing, commit and seal; returns the receipt."""
    failure: BaseException | None = None
    try:
        commit = (await deliver(inbound, **sent)).commit()
        inbound.session.commit(commit)
        head = make_head(
            sent.get("memory", MEMORY),
            key=sent.get("key", SENDER),
            wanted=sent.get("wanted", Compression.NONE),
        )
        inbound.session.check_seal(head)
        return await inbound.finish(head)
    except BaseException as error:
        failure = error
        raise
    finally:
        await inbound.close(failure)
