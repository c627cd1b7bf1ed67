"""rotate: give this node a new key that its old one signs for, and take in those of peers."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path

from kvnet.api import PeerInfo, RotationReport
from kvnet.durable import sync_folder, write_durably
from kvnet.errors import KvnetError, StateCorrupt, TooBusy
from kvnet.identity.keys import NodeKey, short_id
from kvnet.identity.peers import AddedPeer
from kvnet.identity.rotation import make_statement, verify_statement
from kvnet.identity.secret_file import create_secret
from kvnet.paths import Home
from kvnetd.actions.peers import list_peers
from kvnetd.actions.send import dial, say_hello
from kvnetd.parties import take_rotation
from kvnetd.services import Services

TELL_DEADLINE_S = 5.0
_replacing = threading.Lock()


async def rotate_key(services: Services, replaced: Callable[[], object] = lambda: None) -> RotationReport:
    """Put a new key in the place of this node's, and tell every trusted peer; `replaced` ends the process.

    The new key is on disk before anybody is told, so that nobody ever trusts a key that is lost; and once it
    is, this goes on to its end, whoever asked for it. Raises TooBusy where this node has another key already.
    """
    return await asyncio.shield(_rotate_key(services, replaced))


async def _rotate_key(services: Services, replaced: Callable[[], object]) -> RotationReport:
    new, path, statement = await services.in_pool(_replace_key, services.config.home, services.key)
    try:
        return await _tell_all(services, new, path, statement)
    finally:
        replaced()  # this process has the old key


async def _tell_all(services: Services, new: NodeKey, path: str, statement: bytes) -> RotationReport:
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
    with _replacing:  # two at once would sign for two keys, of which one is lost
        _require_in_place(home, old)
        new = NodeKey(create_secret(fresh))
        statement = make_statement(old, new, rotated_at=int(time.time()))
        path = _free_path(folder, f"rotation-{short_id(old.node_id)}")
        write_durably(path, statement)
        # What peers will trust, as the disk has it: behind this the old key is gone.
        if (
            NodeKey.load_or_create(fresh).node_id != new.node_id
            or verify_statement(path.read_bytes()).new != new.node_id
        ):
            raise StateCorrupt(f"{path}: is not read back as it was written; check the disk")
        fresh.replace(home.identity)
        sync_folder(folder)
    return new, str(path), statement


def _require_in_place(home: Home, key: NodeKey) -> None:
    there = NodeKey.load(home.identity)
    if there is not None and there.node_id != key.node_id:
        raise TooBusy(
            "key rotation: this node has a new key already, and uses it from its next start on; "
            "stop it and start it again"
        )


def _free_path(folder: Path, stem: str) -> Path:
    """A name that no statement has: one from before a crash may have been handed to somebody."""
    numbers = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    return next(path for number in numbers if not (path := folder / f"{stem}{number}.json").exists())
