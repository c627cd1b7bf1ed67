"""pair: give out a one-use code, or use one, and keep the node that proves it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass
from functools import partial

from kvnet.address import join_address, parse_address
from kvnet.api import PairingAttempt, PairingComparison, PairingInvitation, PeerInfo
from kvnet.discovery import Endpoint
from kvnet.errors import (
    KvnetError,
    MalformedMessage,
    PairingDeclined,
    PeerUnreachable,
    RequestError,
    TooBusy,
)
from kvnet.identity.codes import PairingCode, parse_code
from kvnet.identity.keys import node_id_of, short_id
from kvnet.identity.pairing import LIFE_S, MAX_GUESSES, Invitation, Joining
from kvnet.identity.pairing_messages import Introduction
from kvnet.identity.peers import AddedPeer, Verified
from kvnet.transport.pairing import PairingLink, PairingListener, WrongGuess, dial
from kvnetd.actions.peers import list_peers
from kvnetd.meeting import Candidate, MeetingPlace, interfaces_of, own_addresses
from kvnetd.services import Services, utc_now

Step = PairingInvitation | PairingAttempt | PairingComparison | PeerInfo


@dataclass(frozen=True, slots=True)
class PairRequest:
    """Without a code one is given out. `address` is where the other node waits, where mDNS does not reach."""

    code: str = ""
    address: str = ""
    name: str = ""  # what to call the other node here; its own name if not given
    verify: bool = False


class Pairings:
    """The pairing of this node: one at a time, for as long as its caller stays."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._is_busy = False
        self._comparison: asyncio.Future[bool] | None = None

    async def pair(self, request: PairRequest) -> AsyncGenerator[Step, None]:
        """Yields the invitation and wrong guesses, the digits where they shall be compared, the peer last.

        Raises WrongCode, PairingExpired, PairingClosed, PairingDeclined, PeerUnreachable, WrongNamespace.
        """
        if self._is_busy:
            raise TooBusy("pairing: another `kvnet pair` runs on this node; end that one first")
        self._is_busy = True
        try:
            steps = self._join(request) if request.code else self._invite(request)
            async with aclosing(steps):
                async for step in steps:
                    yield step
        finally:
            self._is_busy = False
            self._comparison = None

    def answer(self, *, same: bool) -> None:
        """Whether the digits are those on the other machine. Raises RequestError where none are compared."""
        if self._comparison is None or self._comparison.done():
            raise RequestError("pairing: no digits are compared now; start with `kvnet pair --verify`")
        self._comparison.set_result(same)

    async def _invite(self, request: PairRequest) -> AsyncGenerator[Step, None]:
        if request.address:
            raise RequestError("pairing: an address is for whoever has a code; leave it out to get a code")
        services, code = self._services, PairingCode.generate()
        host, interfaces = services.config.listen_host, interfaces_of(services.config)
        invitation = Invitation(services.key, code, now=time.monotonic(), compares=request.verify)
        listener = PairingListener(invitation, pool=services.pool)
        port = await listener.start(host)
        async with AsyncExitStack() as stack:
            stack.callback(listener.close)
            if services.config.mdns and interfaces != ():
                place = MeetingPlace(services.config.namespace, code, interfaces)
                await stack.enter_async_context(place.advertised(port))
            addresses = (join_address(own, port) for own in own_addresses(host, interfaces))
            yield PairingInvitation(str(code), tuple(addresses), LIFE_S)
            async for outcome in listener.outcomes():
                if isinstance(outcome, WrongGuess):
                    services.log.write("peer.wrong_code", address=outcome.host, error=outcome.error.code)
                    yield PairingAttempt(outcome.host, outcome.guesses_left)
                    continue
                listener.close()
                async with outcome as link:
                    async for step in self._introduce(link, request, invites=True):
                        yield step

    async def _join(self, request: PairRequest) -> AsyncGenerator[Step, None]:
        code = parse_code(request.code)
        async with await self._dial(code, request) as link:
            async for step in self._introduce(link, request, invites=False):
                yield step

    async def _dial(self, code: PairingCode, request: PairRequest) -> PairingLink:
        """The link to whoever proves the code. Of those that do not, three are let try it, each once."""
        services = self._services
        failure: KvnetError | None = None
        refused_by: set[str] = set()
        guesses: list[str] = []  # who was given a proof: it tells whether one code is the right one
        with suppress(TimeoutError):
            async with (
                asyncio.timeout(LIFE_S),
                aclosing(self._candidates(code, request.address)) as candidates,
            ):
                async for name, endpoint in candidates:
                    if name in refused_by:
                        continue
                    joining, before = Joining(services.key, code, compares=request.verify), len(guesses)
                    proving = partial(guesses.append, name)
                    try:
                        return await dial(
                            endpoint.address, endpoint.port, joining, pool=services.pool, proving=proving
                        )
                    except KvnetError as error:
                        # One that hangs up on the proof has had its guess, as one that says no.
                        if isinstance(error, PeerUnreachable) and len(guesses) == before:
                            failure = failure or error
                            continue
                        failure = error
                        refused_by.add(name)
                        if len(refused_by) == MAX_GUESSES:
                            break
        raise failure or PeerUnreachable(
            f"pairing: no node on this network shows a code with the number {code.number}; codes live two "
            "minutes, and where mDNS does not reach give the other machine's HOST:PORT with --at"
        )

    async def _candidates(self, code: PairingCode, address: str) -> AsyncGenerator[Candidate, None]:
        config = self._services.config
        if address:
            yield Candidate(address, Endpoint(*parse_address(address)))
            return
        interfaces = interfaces_of(config)
        if not config.mdns or interfaces == ():
            raise RequestError("pairing: mDNS is off here; give the other machine's HOST:PORT with --at")
        async with aclosing(MeetingPlace(config.namespace, code, interfaces).candidates()) as candidates:
            async for candidate in candidates:
                yield candidate

    async def _introduce(
        self, link: PairingLink, request: PairRequest, *, invites: bool
    ) -> AsyncGenerator[Step, None]:
        """Both know the code: hear who the other one is, let people compare, and keep it once both agree."""
        services = self._services
        _, port = parse_address(services.listening.address)
        said = await link.introduce(Introduction(services.config.name, services.config.namespace, port))
        peer = self._peer(link, said, request.name)
        if link.confirmed.compares:
            self._comparison = asyncio.get_running_loop().create_future()
            yield PairingComparison(link.confirmed.short_auth_string)
            await self._compared(self._comparison)
        # The inviter keeps first and says so; what breaks off before that leaves nothing on either side.
        if invites:
            await link.agreed()
            await self._keep(peer)
            await link.agree()
        else:
            await link.agree()
            await link.agreed()
            await self._keep(peer)
        yield next(info for info in await list_peers(services, probe=False) if info.node_id == peer.node_id)

    def _peer(self, link: PairingLink, said: Introduction, wanted: str) -> AddedPeer:
        services = self._services
        services.gate.check_namespace(said.namespace, who="the node that proved the code")
        if not 0 < said.port < 1 << 16:
            raise MalformedMessage(f"pairing: the other node says its port is {said.port}")
        node_id = node_id_of(link.confirmed.peer_public)
        before = services.peers.get(node_id)
        if before is not None and not before.is_trusted and not link.confirmed.compares:
            raise RequestError(
                f"pairing: this is {before.name}, whose key was revoked at {before.revoked_at:.40}; "
                f"if it is to be trusted again, pair with --verify, or run `kvnet peer trust {before.name}`"
            )
        name = wanted or (before.name if before else "")
        if not name:
            name = services.peers.usable_name(said.name, otherwise=short_id(node_id))
        elif not (before and before.name == name) and not services.peers.usable_name(name, otherwise=""):
            raise RequestError(f"peer name {name!r:.60}: is taken, or is none; choose another with --name")
        # Where mDNS shows the node it may move; elsewhere this is all that is known of where it is.
        address = "" if services.directory.seen(node_id) else join_address(link.host, said.port)
        return AddedPeer(node_id, name, address, utc_now(), verified=Verified.PAIRING)

    async def _compared(self, comparison: asyncio.Future[bool]) -> None:
        try:
            async with asyncio.timeout(LIFE_S):
                same = await comparison
        except TimeoutError as exc:
            raise PairingDeclined("pairing: nobody compared the digits in two minutes; start again") from exc
        if not same:
            raise PairingDeclined(
                "pairing: the digits differ: somebody who knows the code stands between; nothing was kept, "
                "start again, and show the code to nobody else"
            )

    async def _keep(self, peer: AddedPeer) -> None:
        services = self._services
        await services.in_trust(services.peers.add, peer)
        services.directory.know(tuple(one.node_id for one in services.peers.all()))
        services.log.write("peer.paired", peer=peer.name)
