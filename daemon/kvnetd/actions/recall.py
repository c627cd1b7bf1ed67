"""What an answer is given to know: one memory, several joined, or the text that was attached to them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from kvnet.alignment import MapManifest
from kvnet.codec.basis import Basis
from kvnet.codec.presets import preset_name
from kvnet.compat import Policy, Route, decide_tier, require_route, weakest
from kvnet.errors import AlignmentRefused, RequestError, StateCorrupt, TextTooLong
from kvnet.model.arriving import ArrivingMemory
from kvnet.model.slots import Slots, join
from kvnet.types import RawMemory, Scheme, Tier
from kvnetd import chains, encoding, prefixes
from kvnetd.actions.check import require_agreement
from kvnetd.actions.memories import find
from kvnetd.alignments import MAPPED, map_for, refuse_unjudged, require_made_by
from kvnetd.mapping import slots_for
from kvnetd.parties import require_may_ask, untrusted_source
from kvnetd.services import Services
from kvnetd.store.records import MemoryRecord
from kvnetd.store.texts import attached_text, has_text

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recalled:
    """A memory with its basis, or slots, or a text: at most one of them, and how it came to be used."""

    tier: Tier = Tier.NONE
    memory: RawMemory | None = None
    basis: Basis | None = None
    slots: Slots | None = None
    arriving: ArrivingMemory | None = None  # of a memory that goes on behind others
    text: str | None = None
    memory_ids: str = ""  # joined by commas, as are the next two
    maps: str = ""
    codecs: str = ""
    untrusted_source: str = ""  # joined too: whose word the memories are, or the texts read in their place


@dataclass(frozen=True, slots=True)
class Planned:
    """One memory, how it reaches the hosted model, and what is done with it."""

    record: MemoryRecord
    tier: Tier
    found: MapManifest | None
    route: Route
    has_text: bool

    @property
    def map_id(self) -> str:
        """The map that it comes through: the one that made its coordinates, or the one here; else ""."""
        if self.tier not in MAPPED:
            return ""
        if self.record.header.coding.scheme is Scheme.PORT:
            return self.record.head.w_matrix_reference
        return self.found.id if self.found else ""

    @property
    def fits(self) -> bool:
        """Whether the cache of the hosted model takes it as it is."""
        return (
            self.tier in (Tier.EXACT, Tier.IDENTITY) and self.record.header.coding.scheme is not Scheme.PORT
        )


def policy_of(services: Services, asked: str) -> Policy:
    """The policy that a call names, or the daemon's own. Raises RequestError."""
    try:
        return Policy(asked or services.config.align)
    except ValueError as exc:
        raise RequestError(f"align {asked!r:.40}: none of {', '.join(Policy)}") from exc


async def plan(services: Services, wanted: str, policy: Policy) -> Planned:
    """What would be done with a memory.

    Raises UnknownMemory, NotPermitted, IncompatibleModel, AlignmentRefused where a map leads here that was
    not judged for memories like this one, and UnknownAlignment for coordinates whose map is not here.
    """
    record = await find(services, wanted)
    require_may_ask(services, record)
    header, host = record.header, services.host
    source, receiver = (header.fingerprint, header.geometry), (host.fingerprint, host.geometry)
    in_coordinates = header.coding.scheme is Scheme.PORT
    found = None if policy is Policy.ERROR else map_for(services, header, record.head.w_matrix_reference)
    tier = decide_tier(source, receiver, has_map=found is not None, in_coordinates=in_coordinates)
    with_text = await services.in_pool(has_text, services.memories, header)
    if policy is not Policy.ERROR and not with_text and tier is Tier.REFUSED:
        if in_coordinates:
            require_made_by(services, record)
        refuse_unjudged(services, header)
    if header.start_pos and (tier in MAPPED or tier is Tier.REFUSED or policy is Policy.TEXT):
        raise AlignmentRefused(
            f"memory {record.id}: goes on at position {header.start_pos} behind another, and only its own "
            "model reads on from there; have the whole text read here"
        )
    route = require_route(source, receiver, tier, policy=policy, has_text=with_text)
    return Planned(record, tier, found if tier in MAPPED else None, route, with_text)


async def recall(
    services: Services, wanted: Sequence[str], policy: Policy, *, verify_text: bool = False
) -> Recalled:
    """Read back what these memories hold for the hosted model, in this order.

    With `verify_text` each is compared with its text first, but for those of which the text itself is read.
    Raises what `plan` raises, AlignmentRefused where only some of them can be used together, TextTooLong
    before anything is read, TextMismatch, what else `require_agreement` raises, and as the store's `load`.
    """
    plans = [await plan(services, name, policy) for name in wanted]
    if not plans:
        return Recalled()
    if verify_text and all(one.route is not Route.TEXT for one in plans):
        for one in plans:
            await require_agreement(services, one.record)
    sources = [
        untrusted_source(services, record)
        for one in plans
        for record in (*await chains.links_of(services, one.record), one.record)
    ]
    return replace(await _used(services, plans), untrusted_source=_distinct(sources))


async def _used(services: Services, plans: Sequence[Planned]) -> Recalled:
    if any(one.route is Route.TEXT for one in plans):
        return await _texts(services, plans)
    if len(plans) == 1 and plans[0].fits:
        return await _as_it_is(services, plans[0])
    _refuse_suffixes(plans)
    try:
        return await _as_slots(services, plans)
    except AlignmentRefused as refused:  # the map knows nothing of one of them
        if not all(one.has_text for one in plans):
            raise
        _log.warning("the text is read instead: %s", refused.message)
        return await _texts(services, plans)


async def _as_it_is(services: Services, one: Planned) -> Recalled:
    header = one.record.header
    with services.log.span(
        "injection", memory=one.record.id, tier=one.tier.value, map="", tokens=header.seq_len
    ):
        if header.start_pos:
            arriving = await prefixes.recalled(services, one.record)
            codec = preset_name(header.coding)
            return Recalled(one.tier, arriving=arriving, memory_ids=one.record.id, codecs=codec)
        basis = await encoding.basis_of(services, header.coding)
        memory = await services.in_pool(services.memories.load, one.record)
    return Recalled(
        one.tier, memory=memory, basis=basis, memory_ids=one.record.id, codecs=preset_name(header.coding)
    )


async def _as_slots(services: Services, plans: Sequence[Planned]) -> Recalled:
    _refuse_too_long(services, plans)
    parts = []
    for one in plans:
        header = one.record.header
        with services.log.span(
            "injection", memory=one.record.id, tier=one.tier.value, map=one.map_id, tokens=header.seq_len
        ):
            parts.append(await slots_for(services, one.record, one.tier, one.found))
    return Recalled(
        weakest(one.tier for one in plans),
        slots=join(parts),
        memory_ids=_joined(one.record.id for one in plans),
        maps=_distinct(one.map_id for one in plans),
        codecs=_distinct(preset_name(one.record.header.coding) for one in plans),
    )


async def _texts(services: Services, plans: Sequence[Planned]) -> Recalled:
    """The texts of all of them: a text is read in front of everything, so it cannot follow another memory."""
    for one in plans:
        if not one.has_text:
            raise AlignmentRefused(
                f"memory {one.record.id}: has no text, and another of these can only be read as its text; "
                "ask with one of them at a time"
            )
    texts = []
    for one in plans:
        text = await services.in_pool(attached_text, services.memories, one.record.header)
        if text is None:
            raise StateCorrupt(f"memory {one.record.id}: its text was removed meanwhile; ask again")
        texts.append(text)
    return Recalled(Tier.TEXT, text="\n".join(texts), memory_ids=_joined(one.record.id for one in plans))


def _refuse_suffixes(plans: Sequence[Planned]) -> None:
    for one in plans:
        if one.record.header.start_pos:
            raise RequestError(
                f"memory {one.record.id}: goes on behind another, which comes along by itself; "
                "ask with it alone, or with whole memories"
            )


def _refuse_too_long(services: Services, plans: Sequence[Planned]) -> None:
    num_tokens = sum(one.record.header.seq_len for one in plans)
    if num_tokens > services.host.max_seq_len:
        raise TextTooLong(
            f"the memories have {num_tokens} tokens, {services.host.name} holds {services.host.max_seq_len}; "
            "ask with fewer of them"
        )


def _joined(names: Iterable[str]) -> str:
    return ",".join(names)


def _distinct(names: Iterable[str]) -> str:
    return _joined(dict.fromkeys(filter(None, names)))
