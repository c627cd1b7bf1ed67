"""The daemon as a whole: what is started in which order, and stopped in the reverse one."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict
from functools import partial
from typing import IO, TYPE_CHECKING, cast

from kvnet.address import join_address
from kvnet.discovery import Advert, Discovery, Event, PeerSeen, choose_links, list_links
from kvnet.errors import AlreadyRunning, StateCorrupt
from kvnet.identity.keys import NodeKey, short_id
from kvnet.identity.peers import PeerList
from kvnet.model.reference.catalog import packaged_alignments
from kvnet.model.runner import ModelRunner
from kvnet.paths import Home
from kvnet.transfer.messages import PROTOCOL_VERSION
from kvnet.transport.server import PeerServer
from kvnet.version import VERSION
from kvnetd.actions.dispatch import Dispatcher
from kvnetd.actions.status import status
from kvnetd.config import Config, keep_name
from kvnetd.control import ControlServer, ControlService
from kvnetd.directory import Directory
from kvnetd.kept import sweep_states
from kvnetd.log import EventLog
from kvnetd.meeting import interfaces_of
from kvnetd.no_model import NONE, no_host
from kvnetd.own_keys import own_ids
from kvnetd.probing import probe_reading
from kvnetd.rates import Rates
from kvnetd.services import Listening, Services
from kvnetd.store.alignments import AlignmentStore
from kvnetd.store.bases import BasisStore
from kvnetd.store.disk import keep_free
from kvnetd.store.folder import open_folder
from kvnetd.store.ledger import Ledger
from kvnetd.store.memories import MemoryStore
from kvnetd.store.models import ModelNotes
from kvnetd.store.spool import Spool
from kvnetd.transfers import Transfers
from kvnetd.trust import make_gate

if TYPE_CHECKING:  # torch: imported where a model is loaded, and nowhere else in here
    from kvnet.model.host import ModelHost
    from kvnet.model.loader import Device, DTypeChoice, Quantization
    from kvnet.transport.answering import ReadBackend

_log = logging.getLogger(__name__)

POOL_THREADS = 2
STOP_GRACE_S = 2.0
REFRESH_INTERVAL_S = 15.0


async def run(config: Config, *, as_json: bool = False) -> None:
    """Run until SIGTERM, SIGINT or a Shutdown call; one line on stdout says that the node is ready."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with node(config, stopping) as services:
        now = await status(services)
        line = json.dumps(asdict(now)) if as_json else f"{now.name} is up: {now.model} on {now.grpc}"
        print(line, flush=True)
        await stopping.wait()


@asynccontextmanager
async def node(config: Config, stopping: asyncio.Event) -> AsyncIterator[Services]:
    """A running node; leaving the block stops it. Raises OperatorError where it cannot start."""
    home = config.home
    home.check()
    async with AsyncExitStack() as stack:
        _make_folders(home)
        stack.enter_context(_locked(home))
        keep_name(config)
        key = NodeKey.load_or_create(home.identity)
        log = EventLog(home.events, node=short_id(key.node_id), max_nbytes=config.log_max_nbytes)
        stack.callback(log.close)
        span = stack.enter_context(log.span("node", version=VERSION, pid=os.getpid()))
        services = await _build(stack, config, key, log)
        stack.push_async_callback(services.links.close)
        transfers = Transfers(services)
        stack.push_async_callback(transfers.close)
        server = PeerServer(transfers, services.gate, _reader(services))
        port = await server.start(host=config.listen_host, port=config.listen_port)
        stack.push_async_callback(server.stop, STOP_GRACE_S)
        services.listening.address = _address(config.listen_host, port)
        span.add(address=services.listening.address, model=services.host.name)
        dispatcher = Dispatcher(services, transfers)
        await _discover(stack, services, port, dispatcher)
        await stack.enter_async_context(_running(dispatcher))
        housekeeping = asyncio.create_task(_keep_house(services, transfers))
        stack.callback(housekeeping.cancel)
        control = ControlServer(
            ControlService(services, transfers, dispatcher, stopping.set), home, _write_token(home)
        )
        await control.start()
        stack.push_async_callback(control.stop, STOP_GRACE_S)
        yield services


async def _build(stack: AsyncExitStack, config: Config, key: NodeKey, log: EventLog) -> Services:
    home = config.home
    keep_free(nbytes=config.limits.reserve_nbytes, percent=config.limits.reserve_percent)
    store_thread = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="store"))
    trust_thread = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="trust"))
    pool = stack.enter_context(ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="pool"))
    loop = asyncio.get_running_loop()
    peers = PeerList(home.peers, max_peers=config.limits.max_peers)
    gate = make_gate(
        key, peers, namespace=config.namespace, limits=config.limits, log=log, trust_thread=trust_thread
    )
    open_vault = partial(open_folder, home.store, home.vault_key, seals=config.encrypt_at_rest)
    vault = await loop.run_in_executor(store_thread, open_vault)  # first: it refuses a newer kvnet's folder
    ledger = await loop.run_in_executor(store_thread, Ledger, home.store / "ledger.sqlite")
    # Through the store's thread: behind whatever it still has to write.
    stack.push_async_callback(loop.run_in_executor, store_thread, ledger.close)
    memories = await loop.run_in_executor(store_thread, MemoryStore, home.store / "memories", vault)
    alignments = await loop.run_in_executor(
        store_thread, AlignmentStore, home.root / "alignments", packaged_alignments(), own_ids(home, key)
    )
    bases = await loop.run_in_executor(store_thread, BasisStore, home.store / "bases", alignments.port_file)
    spool = await loop.run_in_executor(store_thread, Spool, home.store / "incoming", bases, vault)
    runner = ModelRunner()
    stack.push_async_callback(runner.close)
    host = no_host() if config.model == NONE else await _load(config, runner, log)
    return Services(
        config=config,
        key=key,
        log=log,
        peers=peers,
        gate=gate,
        directory=Directory(),
        memories=memories,
        bases=bases,
        alignments=alignments,
        models=ModelNotes(home.store / "models.json"),
        spool=spool,
        ledger=ledger,
        host=host,
        runner=runner,
        store_thread=store_thread,
        trust_thread=trust_thread,
        pool=pool,
        listening=Listening(),
        rates=await loop.run_in_executor(store_thread, Rates, home.store / "rates.json"),
    )


async def _load(config: Config, runner: ModelRunner, log: EventLog) -> ModelHost:
    from kvnet.model.host import ModelHost
    from kvnet.model.loader import ModelSpec

    spec = ModelSpec(
        config.model,
        quantization=cast("Quantization", config.quantization),  # ModelSpec checks all three again
        dtype=cast("DTypeChoice", config.dtype),
        device=cast("Device", config.device),
    )
    with log.span("model", model=config.model, quantization=config.quantization) as span:
        host = await runner.run(ModelHost.load, spec, config.home.cache)
        span.add(device=str(host.device))
    return host


def _reader(services: Services) -> ReadBackend | None:
    """Who reads for peers: nobody where there is no model."""
    if services.config.model == NONE:
        return None
    from kvnetd.readings import Readings

    return Readings(services)


async def _discover(stack: AsyncExitStack, services: Services, port: int, dispatcher: Dispatcher) -> None:
    config = services.config
    interfaces = interfaces_of(config)
    if not config.mdns or interfaces == ():
        return
    advert = Advert(short_id(services.key.node_id), config.namespace, PROTOCOL_VERSION, port)

    def on_event(event: Event) -> None:
        peer = services.peers.by_short_id(event.short_id)
        if peer is not None:
            what = "seen" if isinstance(event, PeerSeen) else "lost"
            services.log.write(f"discovery.{what}", peer=peer.name)
            if isinstance(event, PeerSeen):
                dispatcher.notice(peer.node_id)

    max_entries = config.limits.max_mdns_entries
    discovery = Discovery(advert, interfaces=interfaces, on_event=on_event, max_entries=max_entries)
    await discovery.start()
    stack.push_async_callback(discovery.close)
    services.directory.watch(discovery)
    services.directory.know(tuple(peer.node_id for peer in services.peers.all()))


@asynccontextmanager
async def _running(dispatcher: Dispatcher) -> AsyncIterator[None]:
    """Deliver what waits; leaving the block breaks deliveries off and waits until they have ended."""
    delivering = asyncio.create_task(dispatcher.run())
    try:
        yield
    finally:
        delivering.cancel()
        await asyncio.wait({delivering})


def _address(host: str, port: int) -> str:
    """Where others find this node: of all its interfaces one that a LAN has, loopback if there is none."""
    if host == "0.0.0.0":  # noqa: S104  # compared, not bound
        links = choose_links(list_links(), None)
        host = next((str(ip.ip) for link in links for ip in link.addresses), "127.0.0.1")
    return join_address(host, port)


async def _keep_house(services: Services, transfers: Transfers) -> None:
    """Follow interfaces that come and go, and clear out transfers, fits and trainings nobody resumes."""
    sweep = partial(services.in_pool, sweep_states, services.config.home.root)
    probe = partial(probe_reading, services)
    while True:
        for chore in (probe, transfers.expire, services.directory.refresh, sweep):
            try:
                await chore()
            except Exception:  # a chore that fails now must not end the others for good
                _log.exception("housekeeping failed; it goes on")
        await asyncio.sleep(REFRESH_INTERVAL_S)


def _make_folders(home: Home) -> None:
    try:
        for folder in (home.root, home.store, home.cache, home.run):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.run.chmod(0o700)
    except OSError as exc:
        raise StateCorrupt(
            f"state folder {home.root}: cannot be used ({exc.strerror}: {exc.filename})"
        ) from exc


@contextmanager
def _locked(home: Home) -> Iterator[IO[str]]:
    with home.lock.open("a+", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            lock.seek(0)
            raise AlreadyRunning(
                f"state folder {home.root}: a daemon (pid {lock.read().strip() or 'unknown'}) uses it; "
                "stop that one with `kvnet down`, or set KVNET_HOME to another folder"
            ) from exc
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield lock


def _write_token(home: Home) -> str:
    token = secrets.token_urlsafe(32)
    home.token.unlink(missing_ok=True)
    handle = os.open(home.token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as out:
        out.write(token)
    return token
