"""The gate in front of the peer API, and what becomes of its alarms: the log and the peer's record."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

from kvnet.identity.keys import NodeKey
from kvnet.identity.peers import AddedPeer, PeerList
from kvnet.transport.gate import Gate
from kvnetd.limits import Limits
from kvnetd.log import EventLog


def make_gate(
    key: NodeKey,
    peers: PeerList,
    *,
    namespace: str,
    limits: Limits,
    log: EventLog,
    trust_thread: Executor,
) -> Gate:
    """Make it inside the event loop. `trust_thread` is the one thread that changes `peers`."""
    loop = asyncio.get_running_loop()

    def on_alarm(peer: AddedPeer, message: str) -> None:
        def kept(done: asyncio.Future[AddedPeer | None]) -> None:
            if done.result() is not None:  # once, until somebody looked into it
                log.write("peer.alarm", peer=peer.name, message=message)

        keeping = loop.run_in_executor(trust_thread, peers.sound_alarm, peer.node_id, message)
        keeping.add_done_callback(kept)

    return Gate(key, peers, namespace=namespace, limits=limits, on_alarm=on_alarm)
