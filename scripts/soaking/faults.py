"""What each fault does to the two nodes and the link between them. An act returns when all is mended."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.lan.proxy import FaultProxy, Faults

from .nodes import SoakNode
from .plan import Fault, Kind

LOCALHOST: Final = "127.0.0.1"
HELLO_NBYTES: Final = 3000  # of a hello, handshake included; a transfer's own comes first in its connection
REPLY_NBYTES: Final = 4000  # what a receiver says in a transfer, handshake included
STRIKE_S: Final = 6.0  # how long a fault that waits for its byte, or a failpoint for its visit, is left armed
_POLL_S: Final = 0.01

Begin = Callable[[], "asyncio.Task[object]"]  # sends the messages off; done when each is accepted


@dataclass(slots=True)
class Stage:
    """The sender, the receiver and the proxy between them."""

    sender: SoakNode
    receiver: SoakNode
    proxy: FaultProxy

    def target(self, fault: Fault) -> SoakNode:
        """The node whose process, disk or clock is hit."""
        return self.receiver if fault.targets_receiver else self.sender

    async def dial_anew(self, proxy: FaultProxy) -> None:
        """The sender reaches the receiver through this proxy from now on."""
        address, node_id, name = f"{LOCALHOST}:{proxy.port}", self.receiver.node_id, self.receiver.name
        await self.sender.sdk.add_peer(address, node_id=node_id, name=name)
        self.proxy = proxy


async def act(stage: Stage, fault: Fault, nbytes: int, begin: Begin) -> bool:
    """Do it, with `nbytes` on their way; returns whether it hit anything."""
    if fault.kind in _ON_THE_WAY:
        return await _on_the_way(stage.proxy, fault, nbytes, begin)
    return await _ACTS[fault.kind](stage, fault, begin)


async def _on_the_way(proxy: FaultProxy, fault: Fault, nbytes: int, begin: Begin) -> bool:
    """Cut, flipped or stalled at one byte of a connection: of each of the next so many."""
    end = HELLO_NBYTES if fault.in_hello else REPLY_NBYTES if fault.from_receiver else nbytes
    faults = _ON_THE_WAY[fault.kind](int(fault.place * end))
    struck, none = proxy.num_struck, Faults()
    up, down = (none, faults) if fault.from_receiver else (faults, none)
    proxy.arm(to_server=up, to_client=down, num_faulty=fault.num_faulty)
    accepted = begin()
    await _until(lambda: proxy.num_struck > struck or accepted.done())
    await asyncio.sleep(fault.hold_s)
    if fault.kind is Kind.STALL and fault.number % 2:
        proxy.cut()
    proxy.heal()
    return proxy.num_struck > struck


async def _delay(stage: Stage, fault: Fault, begin: Begin) -> bool:
    slow = Faults(delay_s=fault.place * 0.03, jitter_s=fault.moment_s / 5)
    stage.proxy.arm(to_server=slow, to_client=slow, num_faulty=fault.num_faulty)
    accepted = begin()
    await _until(accepted.done)
    stage.proxy.heal()
    return True


async def _partition(stage: Stage, fault: Fault, begin: Begin) -> bool:
    begin()
    await asyncio.sleep(fault.moment_s)
    stage.proxy.isolate()
    await asyncio.sleep(fault.hold_s)
    stage.proxy.rejoin()
    return True


async def _refuse(stage: Stage, fault: Fault, begin: Begin) -> bool:
    begin()
    await asyncio.sleep(fault.moment_s)
    stage.proxy.refuses = True
    stage.proxy.cut()
    await asyncio.sleep(fault.hold_s)
    stage.proxy.refuses = False
    return True


async def _flap(stage: Stage, fault: Fault, begin: Begin) -> bool:
    begin()
    for _ in range(2 + fault.num_faulty):
        await asyncio.sleep(fault.moment_s / 2)
        stage.proxy.refuses = True
        stage.proxy.cut()
        await asyncio.sleep(fault.hold_s / 4)
        stage.proxy.refuses = False
    return True


async def _readdress(stage: Stage, fault: Fault, begin: Begin) -> bool:
    begin()
    await asyncio.sleep(fault.moment_s)
    await stage.proxy.__aexit__(None, None, None)
    await asyncio.sleep(fault.hold_s)
    proxy = FaultProxy(LOCALHOST, int(stage.receiver.grpc.rpartition(":")[2]), num_faulty=0)
    await proxy.__aenter__()
    await stage.dial_anew(proxy)
    return True


async def _disk_full(stage: Stage, fault: Fault, begin: Begin) -> bool:
    begin()
    await asyncio.sleep(fault.moment_s)
    with filled(stage.receiver.home.root):
        await asyncio.sleep(fault.hold_s)
    return True


async def _clock(stage: Stage, fault: Fault, begin: Begin) -> bool:
    begin()
    await asyncio.sleep(fault.moment_s)
    node = stage.target(fault)
    node.move_clock(fault.jump_s)
    if fault.num_faulty % 2:
        stage.proxy.cut()
    await asyncio.sleep(fault.hold_s)
    node.move_clock(0.0)
    return True


async def _kill(stage: Stage, fault: Fault, begin: Begin) -> bool:
    begin()
    await asyncio.sleep(fault.moment_s)
    node = stage.target(fault)
    await node.kill()
    await asyncio.sleep(fault.hold_s / 4)
    await node.start()
    return True


async def _failpoint(stage: Stage, fault: Fault, begin: Begin) -> bool:
    node = stage.target(fault)
    await node.stop()
    await node.start(failpoint=fault.failpoint)
    if fault.failpoint == "outbox.queued":
        stage.proxy.refuses = True  # else nothing needs to be queued
    accepted = begin()
    await _until(lambda: node.has_ended() or accepted.done())
    struck = node.has_ended()
    stage.proxy.refuses = False
    await node.stop()
    await node.start()
    return struck


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Nothing more can be written on this disk."""
    filler = disk / "filler"
    try:
        with suppress(OSError), filler.open("wb", buffering=0) as out:
            usage = os.statvfs(disk)
            with suppress(OSError):
                os.posix_fallocate(out.fileno(), 0, usage.f_bavail * usage.f_bsize)
            out.seek(0, os.SEEK_END)
            while out.write(bytes(4096)):
                pass
        yield
    finally:
        filler.unlink(missing_ok=True)


async def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + STRIKE_S
    while not holds() and time.monotonic() < deadline:  # noqa: ASYNC110  # what it asks is in other processes
        await asyncio.sleep(_POLL_S)


_ON_THE_WAY: Final[dict[Kind, Callable[[int], Faults]]] = {
    Kind.CUT: lambda at: Faults(cut_after_nbytes=at),
    Kind.FLIP: lambda at: Faults(flip_at=at),
    Kind.STALL: lambda at: Faults(stall_after_nbytes=at),
}
_ACTS: Final[dict[Kind, Callable[[Stage, Fault, Begin], Awaitable[bool]]]] = {
    Kind.DELAY: _delay,
    Kind.PARTITION: _partition,
    Kind.REFUSE: _refuse,
    Kind.FLAP: _flap,
    Kind.READDRESS: _readdress,
    Kind.DISK_FULL: _disk_full,
    Kind.CLOCK_SENDER: _clock,
    Kind.CLOCK_RECEIVER: _clock,
    Kind.KILL_SENDER: _kill,
    Kind.KILL_RECEIVER: _kill,
    Kind.FAILPOINT_SENDER: _failpoint,
    Kind.FAILPOINT_RECEIVER: _failpoint,
}
