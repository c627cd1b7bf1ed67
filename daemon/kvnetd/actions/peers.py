"""peers: list, add, remove and probe the nodes this node deals with."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from kvnet.api import PeerInfo
from kvnet.compat import decide_tier
from kvnet.errors import KvnetError, RequestError
from kvnet.identity.keys import node_id_of, public_key_of, short_id
from kvnet.identity.peers import AddedPeer
from kvnet.transport.client import PeerClient
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
        _check_address(address)
    plain = node_id_of(public)
    before = services.peers.get(plain)
    shown = name or (before.name if before else short_id(plain))
    peer = AddedPeer(plain, shown, address, utc_now())
    info = await probe_peer(services, peer)
    if not name and before is None and info.reachable:
        peer = replace(peer, name=services.peers.usable_name(info.name, otherwise=peer.name))
    peer = await services.in_store(services.peers.add, peer)
    services.directory.know(tuple(p.node_id for p in services.peers.all()))
    return replace(info, name=peer.name, added=True)


async def remove_peer(services: Services, wanted: str) -> PeerInfo:
    """Remove a peer: it can send nothing from now on."""
    peer = await services.in_store(services.peers.remove, wanted)
    services.directory.know(tuple(p.node_id for p in services.peers.all()))
    return _unprobed(services, peer)


async def probe_peer(services: Services, peer: AddedPeer) -> PeerInfo:
    """Dial a peer and say what it hosts and how a memory from here would reach it."""
    base = _unprobed(services, peer)
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


async def _who_answers(address: str) -> str:
    if not address:
        return "peer add: wants HOST:PORT, --id NODE_ID, or both"
    _check_address(address)
    async with PeerClient(address, public=None, peer=address) as client:
        hello = await client.hello()
    return (
        f"peer {address}: {hello.name} answers there; if its own `kvnet status` shows this id, "
        f"add it with --id {hello.node_id}"
    )


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
        problem="",
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


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise RequestError(f"peer address {address!r:.80}: not HOST:PORT; for example 192.168.1.20:7447")
