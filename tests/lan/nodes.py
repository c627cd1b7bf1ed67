"""Daemons on a LAN in a box, which find each other by mDNS.

alice, bob = LanDaemon(lan, lan.nodes[0], folder / "alice"), LanDaemon(lan, lan.nodes[1], folder / "bob")
start(alice, bob)
introduce_by_id(alice, bob)
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from kvnet.api import MemoryInfo, NodeStatus, OutboxEntry
from kvnet.client import AsyncNode
from tests.e2e.daemons import Daemon
from tests.lan.harness import Lan

QUEUED_S = 30.0
FOUND_S = 20.0


class LanDaemon(Daemon):
    """A daemon inside a node of a LAN: with mDNS on, listening at whatever address the node has."""

    def __init__(self, lan: Lan, node: str, folder: Path) -> None:
        super().__init__(
            folder, folder.name, inside=("ip", "netns", "exec", node), listen="0.0.0.0:0", mdns="1"
        )
        self.lan_node = node
        self._lan = lan

    @property
    def port(self) -> int:
        """Of the peer port."""
        return int(self.grpc.rpartition(":")[2])

    @property
    def address(self) -> str:
        """HOST:PORT on the LAN, at present."""
        return f"{self._lan.address(self.lan_node)}:{self.port}"

    def launch(self, *wrapper: str) -> None:
        """Start it, inside `wrapper` too, such as `env NAME=VALUE`."""
        inside = self.inside
        self.inside = (*inside, *wrapper)
        try:
            super().launch()
        finally:
            self.inside = inside

    def wait_until_ready(self) -> NodeStatus:
        """As of any daemon; its next start is at the same port, of whatever address the node has then."""
        status = super().wait_until_ready()
        self.flags["listen"] = f"0.0.0.0:{self.port}"
        return status


def start(*daemons: LanDaemon) -> None:
    """Start them at one time and wait for all."""
    for daemon in daemons:
        daemon.launch()
    for daemon in daemons:
        daemon.wait_until_ready()


def introduce_by_id(one: Daemon, other: Daemon) -> None:
    """Each adds the other without an address: mDNS has to find it."""
    for here, there in ((one, other), (other, one)):
        with here.node() as node:
            node.add_peer(node_id=there.node_id, name=there.name)


async def found(node: AsyncNode, name: str, address: str = "") -> None:
    """Wait until mDNS shows the peer, at this address if one is given."""
    deadline = time.monotonic() + FOUND_S
    while True:
        (info,) = [peer for peer in await node.peers() if peer.name == name]
        if address in info.addresses or (info.addresses and not address):
            return
        assert time.monotonic() < deadline, f"{name} was not found in {FOUND_S} s: {info}"
        await asyncio.sleep(0.1)


async def waiting(sender: AsyncNode, memory: MemoryInfo, *, because: tuple[str, ...] = ("",)) -> OutboxEntry:
    """Wait until a memory waits in the outbox, and one of these words is said why."""
    deadline = time.monotonic() + QUEUED_S
    while True:
        for entry in await sender.outbox():
            if entry.memory == memory.id and any(word in entry.problem for word in because):
                return entry
        assert time.monotonic() < deadline, f"nothing waits because of {because}: {await sender.outbox()}"
        await asyncio.sleep(0.05)
