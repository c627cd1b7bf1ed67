"""One node's discovery as a program: prints every event as a JSON line until SIGTERM, then leaves cleanly.

Usage: discovery_node.py SHORT_ID TTL_S [INTERFACE ...]
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys

from kvnet.discovery import Advert, Discovery, Event, PeerSeen

REFRESH_S = 0.5


def _print(event: Event) -> None:
    seen = isinstance(event, PeerSeen)
    addresses = [endpoint.address for endpoint in event.endpoints] if isinstance(event, PeerSeen) else []
    line = {"event": "seen" if seen else "lost", "id": event.short_id, "addresses": addresses}
    print(json.dumps(line), flush=True)


async def _run(short_id: str, ttl_s: int, interfaces: tuple[str, ...]) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    advert = Advert(short_id, "home", 1, 7420)
    discovery = Discovery(advert, interfaces=interfaces or None, on_event=_print, ttl_s=ttl_s)
    await discovery.start()
    print(json.dumps({"event": "started", "links": [link.name for link in discovery.links]}), flush=True)
    while not stopped.is_set():
        try:
            await asyncio.wait_for(stopped.wait(), REFRESH_S)
        except TimeoutError:
            await discovery.refresh()
    await discovery.close()


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], int(sys.argv[2]), tuple(sys.argv[3:])))
