"""The nodes this node deals with: added by hand, one JSON file, replaced atomically.

The trust list is one of the four homes of state. It holds keys and hints where to dial; it knows
nothing of what the network currently shows.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kvnet.errors import KvnetError, RequestError, StateCorrupt, UnknownPeer
from kvnet.format import strict_json
from kvnet.identity.keys import node_id_of, public_key_of, short_id
from kvnet.types import NodeId

MAX_PEERS = 256
MAX_NAME_CHARS = 40
FILE_VERSION = 1


@dataclass(frozen=True, slots=True)
class AddedPeer:
    """A node that was added by its id."""

    node_id: NodeId
    name: str
    address: str  # "host:port", or "" to be found by mDNS
    added_at: str

    @property
    def public(self) -> bytes:
        """The peer's Ed25519 public key."""
        return public_key_of(self.node_id)


@dataclass(frozen=True, slots=True)
class _PeerFile:
    version: int
    peers: tuple[AddedPeer, ...]


class PeerList:
    """Added peers by id, kept on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._peers: dict[NodeId, AddedPeer] = {peer.node_id: peer for peer in _read(path)}

    def all(self) -> tuple[AddedPeer, ...]:
        """Every added peer, oldest first."""
        return tuple(self._peers.values())

    def get(self, node_id: str) -> AddedPeer | None:
        """The peer with exactly this id."""
        return self._peers.get(NodeId(node_id))

    def by_short_id(self, short: str) -> AddedPeer | None:
        """The peer whose id starts so."""
        return next((peer for peer in self._peers.values() if short_id(peer.node_id) == short), None)

    def find(self, wanted: str) -> AddedPeer:
        """The one peer with this name, id or start of an id (four characters or more).

        Raises UnknownPeer for none and RequestError for several.
        """
        plain = wanted.replace("-", "").lower()
        found = [p for p in self._peers.values() if p.name == wanted or p.node_id == plain]
        if not found and len(plain) >= 4:
            found = [p for p in self._peers.values() if p.node_id.startswith(plain)]
        if len(found) > 1:
            raise RequestError(f"peer {wanted}: {len(found)} peers match; use more of the id")
        if not found:
            known = ", ".join(sorted(p.name for p in self._peers.values())) or "none"
            raise UnknownPeer(
                f"peer {wanted:.60}: not among the added peers ({known:.200}); "
                "add it with `kvnet peer add HOST:PORT --id NODE_ID`"
            )
        return found[0]

    def add(self, peer: AddedPeer) -> AddedPeer:
        """Add or replace a peer; the address of an earlier entry is kept when the new one has none."""
        peer = _plain(peer)
        _check_name(peer.name)
        before = self._peers.get(peer.node_id)
        if before is None and len(self._peers) >= MAX_PEERS:
            raise RequestError(f"peer list: {MAX_PEERS} peers already; remove one first")
        for other in self._peers.values():
            if other.name == peer.name and other.node_id != peer.node_id:
                raise RequestError(
                    f"peer name {peer.name}: already names {short_id(other.node_id)}; "
                    "choose another with --name"
                )
        if before is not None and not peer.address:
            peer = replace(peer, address=before.address)
        self._replace({**self._peers, peer.node_id: peer})
        return peer

    def usable_name(self, name: str, *, otherwise: str) -> str:
        """What a node calls itself, where it can be its name here; a peer must not pick another's."""
        try:
            _check_name(name)
        except RequestError:
            return otherwise
        taken = any(peer.name == name or peer.node_id.startswith(name) for peer in self._peers.values())
        return otherwise if taken else name

    def remove(self, wanted: str) -> AddedPeer:
        """Remove a peer by name or id and return what it was."""
        peer = self.find(wanted)
        self._replace({node_id: other for node_id, other in self._peers.items() if other != peer})
        return peer

    def _replace(self, peers: dict[NodeId, AddedPeer]) -> None:
        document = {"version": FILE_VERSION, "peers": [asdict(peer) for peer in peers.values()]}
        fresh = self._path.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as out:
            json.dump(document, out, indent=1)
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(self._path)
        self._peers = peers  # only now: what is in memory is what is on disk


def _check_name(name: str) -> None:
    fits = 1 <= len(name) <= MAX_NAME_CHARS and name.isprintable() and not set(name) & set("/ ")
    if not fits:
        raise RequestError(
            f"peer name {name!r:.60}: takes 1 to {MAX_NAME_CHARS} printable characters, no blank, no slash"
        )


def _plain(peer: AddedPeer) -> AddedPeer:
    # Whoever calls is looked up by the plain form of its id, however the id was written here.
    return replace(peer, node_id=node_id_of(public_key_of(peer.node_id)))


def _read(path: Path) -> tuple[AddedPeer, ...]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ()
    try:
        found = strict_json.decode(_PeerFile, data, what="peer list")
        if found.version != FILE_VERSION:
            raise StateCorrupt(f"version {found.version}, this kvnet reads {FILE_VERSION}")
        listed = tuple(_plain(peer) for peer in found.peers)
    except KvnetError as exc:
        raise StateCorrupt(
            f"{path}: {exc.message}; mend or move the file away, kvnet left it untouched"
        ) from exc
    return listed
