"""peers: list, add, show, trust, revoke, remove and probe the nodes this node deals with."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from kvnet.address import parse_address
from kvnet.api import PeerInfo
from kvnet.compat import decide_tier
from kvnet.errors import KvnetError, PeerUnreachable, RequestError
from kvnet.identity.keys import node_id_of, public_key_of, short_id
from kvnet.identity.peers import AddedPeer, Permission
from kvnet.transport.security import Shown, who_answers
from kvnetd.actions.send import say_hello
from kvnetd.services import Services, utc_now

PROBE_DEADLINE_S = 5.0


async def list_peers(services: Services, *, probe: bool) -> tuple[PeerInfo, ...]:
    """Added peers first, then nodes that mDNS shows and nobody added."""
    added = services.peers.all()
    known = {short_id(peer.node_id) for peer in added}
    if probe:
        infos = list(await asyncio.gather(*(probe_peer(services, peer) for peer in added)))
    else:
        infos = [_unprobed(services, peer) for peer in added]
    for short, addresses in services.directory.all_seen().items():
        if short not in known:
            infos.append(_stranger(short, addresses))
    return tuple(infos)


async def add_peer(services: Services, *, address: str, node_id: str, name: str) -> PeerInfo:
    """Add a node by its id. Without an id, say who answers at the address, and add nobody."""
    if not node_id:
        raise RequestError(await _who_answers(address))
    public = public_key_of(node_id)
    if node_id_of(public) == services.key.node_id:
        raise RequestError(f"node id {short_id(node_id)}: is this very node; copy the id of the other one")
    if address:
        parse_address(address)
    plain = node_id_of(public)
    before = services.peers.get(plain)
    shown = name or (before.name if before else short_id(plain))
    peer = AddedPeer(plain, shown, address, utc_now())
    info = await probe_peer(services, peer)
    if not name and before is None and info.reachable:
        peer = replace(peer, name=services.peers.usable_name(info.name, otherwise=peer.name))
    peer = await services.in_trust(services.peers.add, peer)
    services.directory.know(tuple(p.node_id for p in services.peers.all()))
    return replace(
        _unprobed(services, peer),
        addresses=info.addresses,
        reachable=info.reachable,
        model=info.model,
        tier=info.tier,
        latency_s=info.latency_s,
        problem=info.problem,
    )


async def show_peer(services: Services, wanted: str) -> PeerInfo:
    """All about one peer; that two nodes answer with its key, at two of its addresses, is an alarm."""
    peer = services.peers.find_any(wanted)
    info = await probe_peer(services, peer) if peer.is_trusted else _unprobed(services, peer)
    shown = await asyncio.gather(*(who_answers(address) for address in info.addresses))
    _compare(services, peer, dict(zip(info.addresses, shown, strict=True)))
    kept = await services.in_trust(services.peers.find_any, wanted)  # behind an alarm that is being written
    return replace(info, alarm=kept.alarm)


async def trust_peer(
    services: Services,
    wanted: str,
    *,
    permissions: Sequence[str] | None = None,
    quota_nbytes: int | None = None,
) -> PeerInfo:
    """Trust a peer, again if it was revoked, and end its alarm; what is given replaces what it may."""
    may = None if permissions is None else tuple(map(_permission, permissions))
    peer = await services.in_trust(
        services.peers.trust, wanted, permissions=may, quota_nbytes=quota_nbytes, at=utc_now()
    )
    return _unprobed(services, peer)


async def revoke_peer(services: Services, wanted: str) -> PeerInfo:
    """Trust a peer no longer: its calls are refused, and what is open with it ends at once."""
    peer = await services.in_trust(services.peers.revoke, wanted, at=utc_now())
    services.log.write("peer.revoked", peer=peer.name)
    await _drop_unfinished(services, peer)
    return _unprobed(services, peer)


async def remove_peer(services: Services, wanted: str) -> PeerInfo:
    """Remove a peer: it can send nothing from now on."""
    peer = await services.in_trust(services.peers.remove, wanted)
    services.directory.know(tuple(p.node_id for p in services.peers.all()))
    await _drop_unfinished(services, peer)
    return _unprobed(services, peer)


async def probe_peer(services: Services, peer: AddedPeer) -> PeerInfo:
    """Dial a peer and say what it hosts and how a memory from here would reach it."""
    base = _unprobed(services, peer)
    if not peer.is_trusted:
        return base
    try:
        hello, address, latency_s = await say_hello(services, peer, deadline_s=PROBE_DEADLINE_S)
    except KvnetError as error:
        return replace(base, problem=error.message)
    ours = (services.host.fingerprint, services.host.geometry)
    return replace(
        base,
        name=peer.name if peer.name != short_id(peer.node_id) else hello.name,
        addresses=(address, *(a for a in base.addresses if a != address)),
        reachable=True,
        model=hello.fingerprint.model,
        tier=decide_tier(
            ours, (hello.fingerprint, hello.geometry), has_map=bool(hello.maps_from(ours[0]))
        ).value,
        latency_s=round(latency_s, 6),
    )


async def _drop_unfinished(services: Services, peer: AddedPeer) -> None:
    """Nobody will finish what it was sending: that must not fill the disk."""
    await asyncio.shield(services.in_store(services.spool.drop, peer.all_ids))


async def _who_answers(address: str) -> str:
    if not address:
        return "peer add: wants HOST:PORT, --id NODE_ID, or both"
    parse_address(address)
    shown = await who_answers(address)
    if shown is None:
        raise PeerUnreachable(f"peer {address}: no node answers there; check the address, and start it")
    return (
        f"peer {address}: a node answers there; if its own `kvnet status` shows this id, "
        f"add it with --id {node_id_of(shown.public)}"
    )


def _compare(services: Services, peer: AddedPeer, found: dict[str, Shown | None]) -> None:
    """One start of a node has one leaf, at however many addresses it answers."""
    first: dict[bytes, str] = {}
    for address, shown in found.items():
        if shown is not None and shown.public == peer.public:
            first.setdefault(shown.leaf, address)
    if len(first) > 1:
        one, other, *_ = first.values()
        services.gate.alarm(peer.public, (one, other))


def _permission(name: str) -> Permission:
    try:
        return Permission(name)
    except ValueError as exc:
        raise RequestError(f"permission {name!r:.40}: none of {', '.join(Permission)}") from exc


def _unprobed(services: Services, peer: AddedPeer) -> PeerInfo:
    seen = services.directory.seen(peer.node_id)
    static = (peer.address,) if peer.address else ()
    return PeerInfo(
        node_id=peer.node_id,
        name=peer.name,
        addresses=static + tuple(address for address in seen if address not in static),
        source="+".join(word for word, there in (("static", bool(static)), ("mdns", bool(seen))) if there),
        added=True,
        reachable=False,
        model="",
        tier="",
        latency_s=0.0,
        problem="" if peer.is_trusted else f"revoked at {peer.revoked_at:.40}",
        permissions=tuple(peer.permissions),
        quota_nbytes=peer.quota_nbytes,
        verified=peer.verified.value,
        added_at=peer.added_at,
        revoked_at=peer.revoked_at,
        rotated_from=peer.rotated_from,
        alarm=peer.alarm,
    )


def _stranger(short: str, addresses: tuple[str, ...]) -> PeerInfo:
    return PeerInfo(
        node_id=short,
        name="",
        addresses=addresses,
        source="mdns",
        added=False,
        reachable=False,
        model="",
        tier="",
        latency_s=0.0,
        problem="seen by mDNS; add it with --id and its full id",
    )
