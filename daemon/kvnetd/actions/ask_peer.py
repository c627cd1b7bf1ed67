"""ask with a peer: it reads a text, or has a memory, and this node answers while that still arrives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from kvnet.api import Answer, KvReport
from kvnet.codec.presets import preset_name
from kvnet.compat import decide_tier
from kvnet.errors import MissingPrefix, NotPermitted, RequestError, UnknownBasis
from kvnet.identity.peers import AddedPeer, Permission
from kvnet.identity.signing import SignedMessage
from kvnet.model.generation import Generated, TextDelta
from kvnet.types import MemoryId, Scheme, Tier
from kvnetd import chains, prefixes
from kvnetd.actions.ask import Question, ask, sampling_of
from kvnetd.actions.send import base_there, dial, full_id, pull, say_hello
from kvnetd.incoming import InboundTransfer
from kvnetd.landing import Landing
from kvnetd.parties import untrusted_source
from kvnetd.services import Services
from kvnetd.transfers import Transfers

FITTING = (Tier.EXACT, Tier.IDENTITY)


async def ask_peer(
    services: Services, transfers: Transfers, question: Question
) -> AsyncGenerator[str | Answer, None]:
    """Answer behind what the peer sends: its memory of this id, or what it reads of the context.

    Yields the reply piece by piece, the Answer last: once all that the answer used was signed and is stored.
    Raises what a pull and what `ask` raise.
    """
    began = time.perf_counter()
    if bool(question.memory) is bool(question.context) or question.memories:
        raise RequestError(f"peer {question.peer}: give a text that it shall read, or one of its memories")
    if question.verify_text:
        raise RequestError(
            "verify_text: what a peer sends is answered from before all of it is here; "
            "pull the memory first, and ask without the peer"
        )
    peer = services.peers.find(question.peer)
    if Permission.ASK not in peer.permissions:
        raise NotPermitted(
            f"{peer.name}: its memories may not be used in answers here; "
            f"give that permission with `kvnet peer trust {peer.name}`"
        )
    arrival = _Arrival(services, transfers, peer, question)
    pulling = asyncio.create_task(arrival.pull())
    try:
        landing = await arrival.landing(pulling)
        if landing is None:  # it fits in another way, or not at all: then as any memory that is here
            inbound = await pulling
            here = replace(question, peer="", context="", memory=inbound.session.memory.id)
            async with aclosing(ask(services, here)) as steps:
                async for step in steps:
                    yield step
            return
        async with aclosing(_answer(services, question, arrival, landing, pulling, began)) as steps:
            async for step in steps:
                yield step
    finally:
        pulling.cancel()
        await asyncio.wait({pulling})


class _Arrival:
    """The pull of one memory, and the landing that it makes if the model takes it layer by layer."""

    def __init__(self, services: Services, transfers: Transfers, peer: AddedPeer, question: Question) -> None:
        self.peer = peer
        self.tier = Tier.NONE
        self.untrusted_source = peer.name  # joined by commas, with those of the memories before
        self._services = services
        self._transfers = transfers
        self._question = question
        self._opened: asyncio.Future[Landing | None] = asyncio.get_running_loop().create_future()

    async def pull(self) -> InboundTransfer:
        """Fetch it. Raises as a pull."""
        question = self._question
        wanted = full_id(question.memory) if question.memory else MemoryId("")
        _, address, _ = await say_hello(self._services, self.peer)
        try:
            return await self._pull_one(wanted, address)
        except MissingPrefix as missing:
            base = base_there(missing)
            if base is None:
                raise
        await pull(self._services, self._transfers, memory=base, peer_name=self.peer.name)
        return await self._pull_one(wanted, address)

    async def _pull_one(self, wanted: MemoryId, address: str) -> InboundTransfer:
        text, codec = self._question.context, self._question.codec
        request = self._transfers.pull_request(wanted, self.peer, text=text, codec=codec)
        async with dial(self._services, self.peer, address) as client:
            return await client.pull(request, partial(self._open, wanted=wanted), self._services.pool)

    async def landing(self, pulling: asyncio.Task[InboundTransfer]) -> Landing | None:
        """Where the memory lands, once its first layer has: the model is not held for what is far off.

        None if it has to be complete first. Raises what the pull failed with before.
        """
        first: set[asyncio.Future[Any]] = {pulling, self._opened}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not self._opened.done():
            await pulling
            raise AssertionError("a pull that succeeded opened nothing")
        landing = self._opened.result()
        if landing is not None:
            await landing.first_layer()
        return landing

    async def _open(self, sealed_offer: SignedMessage, *, wanted: MemoryId) -> InboundTransfer:
        inbound = await self._transfers.open_pulled(sealed_offer, wanted=wanted)
        try:
            landing = await self._landing_of(inbound)
        except BaseException as failure:
            await inbound.close(failure)
            raise
        if landing is not None:
            inbound.land(landing)
        self._opened.set_result(landing)
        return inbound

    async def _landing_of(self, inbound: InboundTransfer) -> Landing | None:
        services, memory, host = self._services, inbound.session.offer.memory, self._services.host
        self.tier = decide_tier(
            (memory.fingerprint, memory.geometry), (host.fingerprint, host.geometry), has_map=False
        )
        fits = self.tier in FITTING and memory.coding.scheme is not Scheme.PORT
        if not fits or inbound.resumed_chunks:
            return None
        try:
            arriving = await prefixes.arriving_behind(services, memory, origin=self.peer.node_id)
        except UnknownBasis:  # it comes with the memory, but behind it
            return None
        links = await chains.links_before(services, memory, origin=self.peer.node_id)
        names = (*(untrusted_source(services, link) for link in links), self.peer.name)
        self.untrusted_source = ",".join(dict.fromkeys(filter(None, names)))
        return Landing(services, arriving)


async def _answer(
    services: Services,
    question: Question,
    arrival: _Arrival,
    landing: Landing,
    pulling: asyncio.Task[InboundTransfer],
    began: float,
) -> AsyncGenerator[str | Answer, None]:
    with services.log.span("generation", model=services.host.name) as span:
        waited_s = time.perf_counter() - began
        generated: Generated | None = None
        make_items = partial(
            services.host.generate,
            question.prompt,
            arriving=landing.arriving,
            sampling=sampling_of(question),
        )
        items = services.runner.stream(lambda cancelled: make_items(cancelled=cancelled))
        async with aclosing(items):
            async for item in items:
                if isinstance(item, TextDelta):
                    yield item.text
                elif isinstance(item, Generated):
                    generated = item
        if generated is None:
            raise AssertionError("the generation ended without a result")
        inbound = await pulling  # nothing is said to be an answer before its memory was sealed and is durable
        kv = KvReport(
            tier=arrival.tier.value,
            reused_tokens=generated.reused_tokens,
            recomputed_tokens=generated.recomputed_tokens,
            fallback="none",
            ttft_s=round(waited_s + generated.ttft_s, 6),
            codec=preset_name(landing.arriving.header.coding),
            map="",
            untrusted_source=arrival.untrusted_source,
        )
        span.add(
            tier=kv.tier,
            fallback=kv.fallback,
            reused_tokens=kv.reused_tokens,
            recomputed_tokens=kv.recomputed_tokens,
            new_tokens=len(generated.token_ids),
            ttft_s=kv.ttft_s,
            finish_reason=generated.finish_reason,
            memory=inbound.session.memory.id,
        )
    yield Answer(
        text=generated.text,
        kv=kv,
        tokens=len(generated.token_ids),
        finish_reason=generated.finish_reason,
        seconds=round(time.perf_counter() - began, 6),
    )
