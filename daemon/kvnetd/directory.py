"""Where to dial a peer: the address given by hand first, then what mDNS shows now."""

from __future__ import annotations

from kvnet.discovery import Discovery, Endpoint
from kvnet.errors import PeerUnreachable
from kvnet.identity.keys import short_id
from kvnet.identity.peers import AddedPeer


class Directory:
    """Joins the peer list with discovery. Both are hints; the key that answers decides."""

    def __init__(self) -> None:
        self._discovery: Discovery | None = None

    def watch(self, discovery: Discovery) -> None:
        """Look at this discovery from now on."""
        self._discovery = discovery

    @property
    def watches(self) -> bool:
        """Whether mDNS is on."""
        return self._discovery is not None

    def addresses(self, peer: AddedPeer) -> tuple[str, ...]:
        """Addresses to try, best first. Raises PeerUnreachable when there is none."""
        found = [peer.address] if peer.address else []
        found += [address for address in self.seen(peer.node_id) if address not in found]
        if not found:
            raise PeerUnreachable(
                f"peer {peer.name}: not seen on the network and added without an address; "
                "start it, or add its HOST:PORT"
            )
        return tuple(found)

    def seen(self, node_id: str) -> tuple[str, ...]:
        """What mDNS shows for this node."""
        return self.all_seen().get(short_id(node_id), ())

    def all_seen(self) -> dict[str, tuple[str, ...]]:
        """Short id -> addresses, of every node that mDNS shows in this namespace."""
        if self._discovery is None:
            return {}
        return {
            short: tuple(f"{endpoint.address}:{endpoint.port}" for endpoint in endpoints)
            for short, endpoints in self._discovery.peers().items()
        }

    def judge(self, node_id: str, address: str, *, answered: bool) -> None:
        """Tell discovery whether the peer itself answered at an address that mDNS showed."""
        if self._discovery is None or address not in self.seen(node_id):
            return
        host, _, port = address.rpartition(":")
        verdict = self._discovery.confirm if answered else self._discovery.doubt
        verdict(short_id(node_id), Endpoint(host, int(port)))

    async def refresh(self) -> None:
        """Look at the interfaces again."""
        if self._discovery is not None:
            await self._discovery.refresh()

    def know(self, node_ids: tuple[str, ...]) -> None:
        """Tell discovery whom a flood of adverts must not push out."""
        if self._discovery is not None:
            self._discovery.set_known(short_id(node_id) for node_id in node_ids)
