"""The nodes this node deals with: one JSON file, replaced atomically. What each may do, and who was revoked.

The trust list is one of the four homes of state. It holds keys, permissions and hints where to dial; it knows
nothing of what the network currently shows.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path

from kvnet.address import parse_address
from kvnet.durable import write_durably
from kvnet.errors import CapacityError, KvnetError, MalformedMessage, RequestError, StateCorrupt, UnknownPeer
from kvnet.format import strict_json
from kvnet.identity.keys import node_id_of, public_key_of, short_id
from kvnet.types import NodeId

MAX_PEERS = 256
MAX_NAME_CHARS = 40
MAX_ROTATIONS = 256  # of one peer: each is remembered, for what came under the keys before
FILE_VERSION = 4
# Of the fields below it has the first four; 2 has all but `earlier_ids`, 3 knows no `Permission.RELAY`.
OLDEST_FILE_VERSION = 1


class Permission(StrEnum):
    """What a peer may do here."""

    SEND = "send"  # send memories to this node
    PULL = "pull"  # fetch memories of this node by their id
    READ = "read"  # have this node's model read texts
    ASK = "ask"  # have what it sent used in answers of this node
    RELAY = "relay"  # have this node pass on what it sends, to peers of this node that it names


class Verified(StrEnum):
    """How it was made sure that an id belongs to the node that is meant."""

    BY_HAND = "by hand"
    PAIRING = "pairing"


@dataclass(frozen=True, slots=True)
class AddedPeer:
    """A node that was added, by its id or by pairing."""

    node_id: NodeId
    name: str
    address: str  # "host:port", or "" to be found by mDNS
    added_at: str  # or trusted again, if it was revoked
    permissions: tuple[Permission, ...] = tuple(Permission)
    quota_nbytes: int | None = None  # of what it may have stored here; None is no bound
    verified: Verified = Verified.BY_HAND
    revoked_at: str = ""  # "" unless it was
    rotated_from: str = ""  # the id that it had before, whose key signed this one
    alarm: str = ""  # what made one doubt that one node alone holds the key; "" is nothing
    earlier_ids: tuple[str, ...] = ()  # those before `rotated_from`, oldest first

    @property
    def public(self) -> bytes:
        """The peer's Ed25519 public key."""
        return public_key_of(self.node_id)

    @property
    def is_trusted(self) -> bool:
        """Whether it was not revoked."""
        return not self.revoked_at

    @property
    def all_ids(self) -> tuple[str, ...]:
        """Every id that it has had, oldest first: each key signed for the next one."""
        return (*self.earlier_ids, *filter(None, (self.rotated_from,)), self.node_id)


@dataclass(frozen=True, slots=True)
class _PeerFile:
    version: int
    peers: tuple[AddedPeer, ...]


class PeerList:
    """Added peers by id, kept on disk. Reads are safe from any thread, changes come from one at a time."""

    def __init__(self, path: Path, *, max_peers: int = MAX_PEERS) -> None:
        self._max_peers = max_peers
        self._path = path
        self._peers: dict[NodeId, AddedPeer] = {peer.node_id: peer for peer in _read(path)}
        self._watchers: list[Callable[[], None]] = []

    def all(self) -> tuple[AddedPeer, ...]:
        """Every added peer, revoked ones too, oldest first."""
        return tuple(self._peers.values())

    def get(self, node_id: str) -> AddedPeer | None:
        """The peer with exactly this id, revoked or not."""
        return self._peers.get(NodeId(node_id))

    def ever(self, node_id: str) -> AddedPeer | None:
        """The peer with this id, or that had it before it rotated its key, revoked or not."""
        return self.get(node_id) or next((p for p in self._peers.values() if node_id in p.all_ids), None)

    def trusted(self, public: bytes) -> AddedPeer | None:
        """The peer with this key, unless it was revoked."""
        peer = self._peers.get(node_id_of(public))
        return peer if peer is not None and peer.is_trusted else None

    def by_short_id(self, short: str) -> AddedPeer | None:
        """The peer whose id starts so."""
        return next((peer for peer in self._peers.values() if short_id(peer.node_id) == short), None)

    def find(self, wanted: str) -> AddedPeer:
        """`find_any`, for dealing with: raises UnknownPeer for a peer that was revoked, too."""
        peer = self.find_any(wanted)
        if not peer.is_trusted:
            raise UnknownPeer(
                f"peer {peer.name}: was revoked at {peer.revoked_at:.40}; "
                f"trust it again with `kvnet peer trust {peer.name}`"
            )
        return peer

    def find_any(self, wanted: str) -> AddedPeer:
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
        """Add a peer; one that is here already gets the new name, its address if given, and is trusted again.

        What it may do, and that it was paired, stays as it was.
        """
        peer = _plain(peer)
        _check_name(peer.name)
        _check_address(peer.address)
        before = self._peers.get(peer.node_id)
        if before is None and len(self._peers) >= self._max_peers:
            raise CapacityError(f"peer list: {self._max_peers} peers already; remove one first")
        for other in self._peers.values():
            if other.name == peer.name and other.node_id != peer.node_id:
                raise RequestError(
                    f"peer name {peer.name}: already names {short_id(other.node_id)}; "
                    "choose another with --name"
                )
        if before is not None:
            paired = Verified.PAIRING in (before.verified, peer.verified)
            peer = replace(
                before,
                name=peer.name,
                address=peer.address or before.address,
                verified=Verified.PAIRING if paired else Verified.BY_HAND,
                # A statement of before it was revoked may be that of a thief.
                added_at=peer.added_at if before.revoked_at else before.added_at,
                revoked_at="",
                alarm="",
            )
        return self._put(peer)

    def usable_name(self, name: str, *, otherwise: str) -> str:
        """What a node calls itself, where it can be its name here; a peer must not pick another's."""
        try:
            _check_name(name)
        except RequestError:
            return otherwise
        # As `find_any` reads what somebody types.
        plain = name.replace("-", "").lower()
        taken = any(peer.name == name or peer.node_id.startswith(plain) for peer in self._peers.values())
        return otherwise if taken else name

    def remove(self, wanted: str) -> AddedPeer:
        """Remove a peer by name or id and return what it was."""
        peer = self.find_any(wanted)
        self._replace({node_id: other for node_id, other in self._peers.items() if other != peer})
        return peer

    def revoke(self, wanted: str, *, at: str) -> AddedPeer:
        """Trust a peer no longer, and remember that; one that was revoked before stays so from then."""
        peer = self.find_any(wanted)
        return self._put(replace(peer, revoked_at=at)) if peer.is_trusted else peer

    def trust(
        self,
        wanted: str,
        *,
        permissions: Iterable[Permission] | None = None,
        quota_nbytes: int | None = None,
        at: str = "",
    ) -> AddedPeer:
        """Trust a peer and end its alarm; one that was revoked is trusted again from `at` on.

        What is given replaces what it may do and store.
        """
        peer = self.find_any(wanted)
        may = peer.permissions if permissions is None else tuple(permissions)
        quota = peer.quota_nbytes if quota_nbytes is None else quota_nbytes
        since = at or peer.added_at if peer.revoked_at else peer.added_at
        again = replace(peer, revoked_at="", alarm="", permissions=may, quota_nbytes=quota, added_at=since)
        return self._put(_plain(again))

    def sound_alarm(self, node_id: str, alarm: str) -> AddedPeer | None:
        """Remember why a peer's key is in doubt. None where it is not here, or in doubt already."""
        peer = self.get(node_id)
        if peer is None or peer.alarm:
            return None
        return self._put(replace(peer, alarm=alarm))

    def rotate(self, old_id: str, new_id: str) -> AddedPeer:
        """Give a peer the key that its old one signed for; the old one is trusted no longer.

        Raises UnknownPeer where the old one is not trusted, RequestError where the new one is here already,
        or the peer has had too many: a forgotten one would no longer count for its quota.
        """
        peer = self.find(old_id)
        if len(peer.all_ids) > MAX_ROTATIONS:
            raise RequestError(
                f"peer {peer.name}: has rotated its key {MAX_ROTATIONS} times already; "
                "remove it and pair again"
            )
        fresh = _plain(
            replace(
                peer,
                node_id=NodeId(new_id),
                rotated_from=peer.node_id,
                earlier_ids=tuple(one for one in peer.all_ids if one != peer.node_id),
            )
        )
        if fresh.node_id in self._peers:
            raise RequestError(
                f"peer {peer.name}: its new key is that of {short_id(fresh.node_id)}, here already"
            )
        self._replace(
            {one.node_id: one for one in (fresh if one == peer else one for one in self._peers.values())}
        )
        return fresh

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` behind every change, on the thread that made it."""
        self._watchers.append(changed)

    def _put(self, peer: AddedPeer) -> AddedPeer:
        self._replace({**self._peers, peer.node_id: peer})
        return peer

    def _replace(self, peers: dict[NodeId, AddedPeer]) -> None:
        document = {"version": FILE_VERSION, "peers": [asdict(peer) for peer in peers.values()]}
        # Durably: a revocation must not come undone with the power.
        write_durably(self._path, json.dumps(document, indent=1).encode())
        self._peers = peers  # only now: what is in memory is what is on disk
        for changed in self._watchers:
            changed()


def _check_name(name: str) -> None:
    fits = 1 <= len(name) <= MAX_NAME_CHARS and name.isprintable() and not set(name) & set("/ ")
    if not fits:
        raise RequestError(
            f"peer name {name!r:.60}: takes 1 to {MAX_NAME_CHARS} printable characters, no blank, no slash"
        )


def _check_address(address: str) -> None:
    if address:
        parse_address(address)


def _plain(peer: AddedPeer) -> AddedPeer:
    # Whoever calls is looked up by the plain form of its id, however the id was written here.
    may = tuple(one for one in Permission if one in peer.permissions)
    return replace(peer, node_id=node_id_of(public_key_of(peer.node_id)), permissions=may)


def _read(path: Path) -> tuple[AddedPeer, ...]:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read()
    except FileNotFoundError:
        return ()
    except OSError as exc:
        raise StateCorrupt(f"{path}: cannot be read ({exc.strerror}); mend it") from exc
    if mode & 0o022:
        raise StateCorrupt(
            f"{path}: mode {mode:04o} lets others change whom this node trusts; look into it, then run "
            f"chmod 600 {path}"
        )
    try:
        listed = _parse(data)
    except KvnetError as exc:
        raise StateCorrupt(
            f"{path}: {exc.message}; mend or move the file away, kvnet left it untouched"
        ) from exc
    return listed


def _parse(data: bytes) -> tuple[AddedPeer, ...]:
    what = "peer list"
    document = strict_json.loads(data, what=what)
    version = document.get("version") if isinstance(document, dict) else None
    # Before its fields: those of a newer version are unknown, and that is not what is wrong with it.
    if isinstance(version, int) and version > FILE_VERSION:
        raise StateCorrupt(f"version {version} of a newer kvnet, this one reads up to {FILE_VERSION}")
    found = strict_json.from_plain(_PeerFile, document, what=what)
    if found.version < OLDEST_FILE_VERSION:
        raise StateCorrupt(
            f"version {found.version}, this kvnet reads {OLDEST_FILE_VERSION} to {FILE_VERSION}"
        )
    listed = tuple(_plain(peer) for peer in found.peers)
    for field in ("node_id", "name"):
        values = [getattr(peer, field) for peer in listed]
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise MalformedMessage(f"{what}: {field} {twice!r:.60} is there twice")
    for peer in listed:
        _check_name(peer.name)
        _check_address(peer.address)
    return listed
