"""rotate: give this node a new key that its old one signs for, and take in those of peers."""

from __future__ import annotations

import asyncio
import time

from kvnet.api import PeerInfo, RotationReport
from kvnet.errors import KvnetError
from kvnet.files.durable import sync_folder
from kvnet.identity.keys import NodeKey, short_id
from kvnet.identity.peers import AddedPeer
from kvnet.identity.rotation import make_statement
from kvnet.identity.secret_file import create_secret
from kvnet.paths import Home
from kvnetd.actions.peers import list_peers
from kvnetd.actions.send import dial, say_hello
from kvnetd.parties import take_rotation
from kvnetd.services import Services

TELL_DEADLINE_S = 5.0


async def rotate_key(services: Services) -> RotationReport:
    """Put a new key in the place of this node's, and tell every trusted peer. The caller ends the process.

    The new key is on disk before anybody is told, so that nobody ever trusts a key that is lost.
    """
    new, path, statement = await services.in_pool(_replace_key, services.config.home, services.key)
    peers = tuple(peer for peer in services.peers.all() if peer.is_trusted)
    told = await asyncio.gather(*(_tell(services, peer, statement) for peer in peers))
    services.log.write("peer.own_key_rotated", count=sum(told))
    return RotationReport(
        old_id=services.key.node_id,
        new_id=new.node_id,
        statement=path,
        told=tuple(peer.name for peer, knows in zip(peers, told, strict=True) if knows),
        untold=tuple(peer.name for peer, knows in zip(peers, told, strict=True) if not knows),
    )


async def accept_rotation(services: Services, statement: bytes) -> PeerInfo:
    """Trust a peer's new key, from its file. Raises as `parties.take_rotation`."""
    peer = await take_rotation(services, statement)
    return next(info for info in await list_peers(services, probe=False) if info.node_id == peer.node_id)


async def _tell(services: Services, peer: AddedPeer, statement: bytes) -> bool:
    try:
        async with asyncio.timeout(TELL_DEADLINE_S):
            _, address, _ = await say_hello(services, peer, deadline_s=TELL_DEADLINE_S)
            async with dial(services, peer, address) as client:
                await client.rotate(statement)
    except (KvnetError, TimeoutError):
        return False
    return True


def _replace_key(home: Home, old: NodeKey) -> tuple[NodeKey, str, bytes]:
    """The new key, in the place of the old one; the path and the bytes of the statement."""
    folder = home.identity.parent
    fresh = folder / "next.key"
    new = NodeKey(create_secret(fresh))
    statement = make_statement(old, new, rotated_at=int(time.time()))
    path = folder / f"rotation-{short_id(old.node_id)}.json"
    path.write_bytes(statement)
    sync_folder(folder)
    fresh.replace(home.identity)
    sync_folder(folder)
    return new, str(path), statement
