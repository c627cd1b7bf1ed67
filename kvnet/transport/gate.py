"""Who may deal with this node: asked at every call, and again of every open stream when trust changes.

Joins the trust list with mutual TLS. Knows keys, permissions and streams to cut; no messages, no stores.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc

from kvnet.errors import NotPermitted, PeerNotAdded, WrongNamespace
from kvnet.identity.keys import NodeKey, node_id_of, short_id
from kvnet.identity.peers import AddedPeer, PeerList, Permission
from kvnet.transport.limits import PortLimits
from kvnet.transport.security import Credentials, Shown

MAX_EARLIER_LEAVES = 8

Alarmed = Callable[[AddedPeer, str], None]


@dataclass(eq=False, slots=True)
class _Stream:
    """Something open that ends when its peer may no longer have it."""

    public: bytes
    permission: Permission | None
    cut: Callable[[], None]


@dataclass(slots=True)
class _Sightings:
    """The leaves that a key has shown, and from where: the newest, and those before it."""

    leaf: bytes
    host: str
    earlier: dict[bytes, str] = field(default_factory=dict)


class Gate:
    """The trust list at work. Make it inside the event loop that serves and dials."""

    def __init__(
        self,
        key: NodeKey,
        peers: PeerList,
        *,
        namespace: str,
        limits: PortLimits | None = None,
        on_alarm: Alarmed | None = None,
    ) -> None:
        self.namespace = namespace
        self.limits = limits or PortLimits()
        self.node_id = key.node_id
        self._peers = peers
        self._on_alarm = on_alarm
        self._credentials = Credentials(key)
        self._streams: set[_Stream] = set()
        self._sightings: dict[bytes, _Sightings] = {}
        self._loop = asyncio.get_running_loop()
        peers.watch(self._changed)

    def channel(self, address: str, public: bytes) -> grpc.aio.Channel:
        """A channel at whose other end that key alone can be."""
        return self._credentials.channel(address, public, self.limits.client_options())

    def server_credentials(self) -> grpc.ServerCredentials:
        """What lets in the peers that are trusted at the time, and nobody else."""
        return self._credentials.server(self._trusted_keys())

    def check(self, public: bytes, permission: Permission | None = None) -> AddedPeer:
        """The trusted peer with this key. Raises PeerNotAdded, NotPermitted."""
        peer = self._peers.trusted(public)
        if peer is None:
            raise PeerNotAdded(
                f"node {short_id(node_id_of(public))}: is not trusted here, or no longer; ask its owner"
            )
        if permission is not None and permission not in peer.permissions:
            raise NotPermitted(
                f"{peer.name}: has no permission to {permission} here; "
                f"its owner may give it with `kvnet peer trust {peer.name}`"
            )
        return peer

    def check_namespace(self, namespace: str, *, who: str) -> None:
        """Raises WrongNamespace for another one than ours."""
        if namespace != self.namespace:
            raise WrongNamespace(
                f"{who}: is in namespace {namespace!r:.60}, this node in {self.namespace!r:.60}; "
                "start both with the same --namespace"
            )

    @contextmanager
    def open(
        self, public: bytes, cut: Callable[[], None], permission: Permission | None = None
    ) -> Iterator[AddedPeer]:
        """Deal with a peer; `cut` is called once, on the loop, if it loses trust or permission meanwhile.

        Raises as `check`.
        """
        peer = self.check(public, permission)
        stream = _Stream(public, permission, cut)
        self._streams.add(stream)
        try:
            yield peer
        finally:
            self._streams.discard(stream)

    def saw(self, caller: Shown, host: str) -> None:
        """Take note of a call. A key whose leaves come by turns is held by two nodes: that is an alarm.

        Every start of a node makes a leaf of its own, and one that was replaced never comes back.
        """
        seen = self._sightings.setdefault(caller.public, _Sightings(caller.leaf, host))
        if caller.leaf in seen.earlier:
            self.alarm(caller.public, (seen.earlier[caller.leaf], seen.host))
        elif caller.leaf != seen.leaf:
            seen.earlier[seen.leaf] = seen.host
            while len(seen.earlier) > MAX_EARLIER_LEAVES:
                del seen.earlier[next(iter(seen.earlier))]
            seen.leaf = caller.leaf
        if caller.leaf == seen.leaf:
            seen.host = host

    def alarm(self, public: bytes, places: tuple[str, str]) -> None:
        """Two nodes hold this key at once, at these places: tell whoever runs this node."""
        peer = self._peers.get(node_id_of(public))
        if peer is not None and not peer.alarm and self._on_alarm is not None:
            self._on_alarm(peer, f"two nodes use its key at once, at {places[0]} and {places[1]}")

    def _trusted_keys(self) -> tuple[bytes, ...]:
        return tuple(peer.public for peer in self._peers.all() if peer.is_trusted)

    def _changed(self) -> None:
        """The trust list changed, on whatever thread."""
        self._credentials.admit(self._trusted_keys())
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for stream in tuple(self._streams):
            peer = self._peers.trusted(stream.public)
            if peer is None or (stream.permission is not None and stream.permission not in peer.permissions):
                self._streams.discard(stream)
                stream.cut()
        known = {peer.public for peer in self._peers.all()}
        self._sightings = {public: seen for public, seen in self._sightings.items() if public in known}
