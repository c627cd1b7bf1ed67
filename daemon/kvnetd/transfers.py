"""Every transfer of this node, in and out: what stands behind the peer server."""

from __future__ import annotations

from concurrent.futures import Executor

from kvnet.identity.keys import NodeKey
from kvnet.identity.peers import AddedPeer
from kvnet.identity.signing import SignedMessage
from kvnet.transfer.messages import MAX_HELLO_MAPS, PROTOCOL_VERSION, Hello
from kvnet.types import MemoryHeader, MemoryId, NodeId
from kvnetd.alignments import held_maps
from kvnetd.arrivals import Arrivals
from kvnetd.departures import Departures
from kvnetd.incoming import InboundTransfer
from kvnetd.outgoing import Beside, OutboundTransfer, Source
from kvnetd.parties import require_added, take_rotation, this_receiver
from kvnetd.passing import PassedOn
from kvnetd.relaying import Relays
from kvnetd.services import Services
from kvnetd.store.records import MemoryRecord
from kvnetd.store.sweep import drop_unused_bases


class Transfers:
    """Implements transport's PeerBackend on top of the store and the model host."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._relays = Relays(services)
        self._arrivals = Arrivals(services, self._relays)
        self._departures = Departures(services)
        self.key: NodeKey = services.key
        self.pool: Executor = services.pool

    def hello(self, nonce: bytes) -> Hello:
        """Who this node is, what it hosts and takes, bound to the caller's nonce."""
        receiver = this_receiver(self._services)
        base_s, token_s = self._services.rates.reading(receiver.fingerprint.digest).fit
        return Hello(
            protocol=PROTOCOL_VERSION,
            nonce=nonce.hex(),
            node_id=receiver.node_id,
            name=self._services.config.name,
            namespace=self._services.config.namespace,
            fingerprint=receiver.fingerprint,
            geometry=receiver.geometry,
            limits=receiver.limits,
            free_nbytes=receiver.free_nbytes,
            maps=held_maps(self._services)[:MAX_HELLO_MAPS],
            prefill_us=round(1e6 * base_s),
            prefill_token_ns=round(1e9 * token_s),
        )

    async def rotate(self, statement: bytes, caller: bytes) -> None:
        """A peer has a new key: as `parties.take_rotation` has it."""
        await take_rotation(self._services, statement, caller=caller)

    async def open_inbound(self, sealed_offer: SignedMessage) -> InboundTransfer | PassedOn:
        """A peer offers a memory; once complete, a message about it waits in the inbox.

        One that is a copy brings no message. Either goes on to whom its offer names.
        """
        inbound = await self._arrivals.open(sealed_offer, pulled=None)
        try:
            return await self._relays.pass_on(inbound, require_added(self._services, sealed_offer.signer))
        except BaseException as failure:
            await inbound.close(failure)
            raise

    async def close(self) -> None:
        """Break off what this node passes on."""
        await self._relays.close()

    async def open_pulled(self, sealed_offer: SignedMessage, *, wanted: MemoryId) -> InboundTransfer:
        """A peer answers our pull: it must offer what was asked for, and no message comes of it."""
        return await self._arrivals.open(sealed_offer, pulled=wanted)

    async def open_outbound(self, sealed_request: SignedMessage) -> OutboundTransfer:
        """A peer asks for one of our memories."""
        return await self._departures.answer_pull(sealed_request)

    async def prepare(
        self,
        record: MemoryRecord,
        peer: AddedPeer,
        *,
        note: str,
        agents: tuple[str, str],
        text: str = "",
        parcel: str = "",
        beside: Beside | None = None,
        relay_to: tuple[NodeId, ...] | None = None,
    ) -> OutboundTransfer:
        """One of our memories, about to be sent as a message: as `Departures.prepare` has it."""
        return await self._departures.prepare(
            record,
            peer,
            note=note,
            agents=agents,
            text=text,
            parcel=parcel,
            beside=beside,
            relay_to=relay_to,
        )

    async def begun(self, parcel: str, peer: AddedPeer) -> tuple[MemoryRecord, str] | None:
        """What an entry of the outbox was begun with: as `Departures.begun` has it."""
        return await self._departures.begun(parcel, peer)

    def pull_request(
        self, memory: MemoryId, peer: AddedPeer, *, text: str = "", codec: str = "", start_pos: int = 0
    ) -> SignedMessage:
        """A signed request for a peer's memory, or for what it reads of a text."""
        return self._departures.pull_request(memory, peer, text=text, codec=codec, start_pos=start_pos)

    async def prepare_reading(
        self,
        memory: MemoryHeader,
        source: Source,
        peer: AddedPeer,
        *,
        note: str,
        agents: tuple[str, str],
        text: str = "",
    ) -> OutboundTransfer:
        """A memory that is read while it is sent: as `Departures.prepare_reading` has it."""
        return await self._departures.prepare_reading(
            memory, source, peer, note=note, agents=agents, text=text
        )

    async def expire(self) -> None:
        """Clear out transfers that nobody can resume any more, and then calibrations that nothing names."""
        await self._arrivals.expire()
        await self._departures.expire()
        services = self._services
        await services.in_store(
            drop_unused_bases, services.bases, services.memories, services.models, services.spool
        )
