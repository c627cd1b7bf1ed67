"""explain: how a memory would reach a model, without trying it."""

from __future__ import annotations

from kvnet.alignment import MapManifest
from kvnet.api import Difference, Explanation, MapSummary
from kvnet.compat import Policy, Side, advise, decide_tier, differences, reach
from kvnet.model.prospect import prospect
from kvnet.types import Fingerprint, Scheme, Tier
from kvnetd.actions.memories import find
from kvnetd.alignments import MAPPED, map_for, map_of_rows, why_not
from kvnetd.services import Services
from kvnetd.store.records import MemoryRecord
from kvnetd.store.texts import has_text


async def explain(services: Services, wanted: str, *, model: str = "") -> Explanation:
    """What `ask` would do with a memory here by the daemon's own policy, or on a node that hosts `model`.

    Raises UnknownMemory, UnknownModel, UnsupportedModel.
    """
    record = await find(services, wanted)
    header, policy = record.header, Policy(services.config.align)
    source, receiver = (header.fingerprint, header.geometry), await _receiver(services, model)
    found = None if policy is Policy.ERROR else _map_to(services, record, receiver[0])
    with_text = await services.in_pool(has_text, services.memories, header)
    in_coordinates = header.coding.scheme is Scheme.PORT
    tier = decide_tier(source, receiver, has_map=found is not None, in_coordinates=in_coordinates)
    tier = reach(tier, policy=policy, has_text=with_text)
    return Explanation(
        memory=record.id,
        model=receiver[0].model,
        tier=tier.value,
        policy=policy.value,
        differences=tuple(
            Difference(name, *values) for name, values in differences(source, receiver).items()
        ),
        map=_summary(found) if found and tier in MAPPED else None,
        has_text=with_text,
        advice=_advice(services, record, tier, policy, receiver[0]),
    )


async def _receiver(services: Services, model: str) -> Side:
    if not model:
        return services.host.fingerprint, services.host.geometry
    return await services.in_pool(prospect, model, cache_dir=services.config.home.cache)


def _map_to(services: Services, record: MemoryRecord, receiver: Fingerprint) -> MapManifest | None:
    """The map that would be used; of a memory in coordinates only the hosted model's own can be told."""
    if record.header.coding.scheme is not Scheme.PORT:
        return map_of_rows(services, record.header, receiver)
    is_hosted = receiver.digest == services.host.fingerprint.digest
    return map_for(services, record.header, record.head.w_matrix_reference) if is_hosted else None


def _advice(
    services: Services, record: MemoryRecord, tier: Tier, policy: Policy, receiver: Fingerprint
) -> str:
    """What would change the tier, and before it why a map that is here is not used."""
    general = advise(tier, policy=policy, peer=_peer_of(services, record))
    problem = "" if policy is Policy.ERROR else why_not(services, record.header, receiver)
    return f"{problem}; {general}" if problem and tier in (Tier.TEXT, Tier.REFUSED) else general


def _summary(found: MapManifest) -> MapSummary:
    return MapSummary(found.id, found.method.value, found.gate)


def _peer_of(services: Services, record: MemoryRecord) -> str:
    """What the node is called here that a memory came from."""
    peer = services.peers.get(record.origin) if record.origin else None
    return peer.name if peer else "PEER"
