"""A node whose control socket is open, without a model and without a process of its own."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from kvnetd.actions.dispatch import Dispatcher
from kvnetd.control import ControlServer, ControlService
from kvnetd.services import Services
from kvnetd.transfers import Transfers

from kvnet.identity.keys import NodeKey
from kvnet.identity.peers import AddedPeer
from kvnet.paths import Home
from tests.builders import RECEIVER
from tests.kvnetd.nodes import services_of

TOKEN = "of-the-tests"  # noqa: S105  # opens nothing else
READY_S = 30.0


@contextmanager
def control_node(*added: AddedPeer, key: NodeKey = RECEIVER) -> Iterator[Services]:
    """The services behind a control socket; `services.config.home.root` is where clients find it."""
    with tempfile.TemporaryDirectory(prefix="kv-") as folder:  # a socket's path ends after 107 bytes
        ready, built = threading.Event(), list[Services]()
        ending = list[Callable[[], object]]()

        async def serve() -> None:
            home, stopping = Home(Path(folder) / "home"), asyncio.Event()
            async with services_of(home.root, key, *added) as services:
                home.run.mkdir(mode=0o700)
                home.token.write_text(TOKEN, encoding="ascii")
                transfers = Transfers(services)
                service = ControlService(services, transfers, Dispatcher(services, transfers), stopping.set)
                server = ControlServer(service, home, TOKEN)
                await server.start()
                built.append(services)
                ending.append(partial(asyncio.get_running_loop().call_soon_threadsafe, stopping.set))
                ready.set()
                await stopping.wait()
                await server.stop(0)

        thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
        thread.start()
        assert ready.wait(READY_S)
        try:
            yield built[0]
        finally:
            ending[0]()
            thread.join(READY_S)
