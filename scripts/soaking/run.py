"""A soak from its first fault to its last check."""

from __future__ import annotations

import asyncio
import math
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from kvnet.api import MemoryInfo
from kvnet.errors import KvnetError
from kvnet.model.reference.world import sample_context
from tests.lan.proxy import FaultProxy

from .checker import Arrived, Message, check
from .courier import Courier, message_of
from .faults import LOCALHOST, Stage, act
from .nodes import Nursery, SoakNode
from .plan import CLOCKS, NUM_MEMORIES, RESTARTS, Fault, Kind, make_plan
from .record import Findings

DISK_NBYTES: Final = 128 << 20
SOON_S: Final = 30.0
GIVE_UP_S: Final = 90.0
CHECK_STORES_EVERY: Final = 25
GC_CLOCK_S: Final = 2 * 24 * 3600.0  # past the life of an unfinished transfer
GC_WAIT_S: Final = 20.0

Tell = Callable[[Findings, Fault], None]


async def soak(count: int, seed: int, *, tell: Tell, kinds: Iterable[Kind] = tuple(Kind)) -> Findings:
    """Run `count` faults, or as many as there are before SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    try:
        with ExitStack() as stack:
            folder = Path(tempfile.mkdtemp(prefix="kv-soak-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            has_disk = stack.enter_context(_small_disk(folder / "bob"))
            skipped = {} if has_disk else {Kind.DISK_FULL.value: "needs root, to mount a small tmpfs"}
            plan = make_plan(count, seed, [kind for kind in kinds if kind not in skipped])
            nursery = stack.enter_context(Nursery())
            return await _Run(Findings(plan, seed, skipped), nursery, folder, tell, stopping).go()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


class _Run:
    """Two nodes, what goes between them, and what was found."""

    def __init__(
        self, found: Findings, nursery: Nursery, folder: Path, tell: Tell, stopping: asyncio.Event
    ) -> None:
        self._found, self._tell, self._stopping = found, tell, stopping
        self._sender, self._receiver = (SoakNode(nursery, folder / name, name) for name in ("alice", "bob"))
        self._nodes = (self._sender, self._receiver)
        self._courier = Courier(self._sender, self._receiver, folder)
        self._memories: list[MemoryInfo] = []
        self._sent: dict[str, str] = {}  # memory -> digest of its file at the sender

    async def go(self) -> Findings:
        """Everything, from the start of the nodes to their end."""
        found = self._found
        try:
            for node in self._nodes:
                await node.start()
            stage = await self._introduce()
            await self._remember()
            found.began = time.monotonic()
            for fault in found.plan:
                try:
                    await self._one(stage, fault)
                except (KvnetError, RuntimeError) as error:  # a node that is down or does not answer
                    found.crashes.append(f"{fault.number} {fault.kind}: {error}")
                    await self._revive()
                self._tell(found, fault)
                if self._stopping.is_set():
                    break
            await self._finish()
            await stage.proxy.__aexit__(None, None, None)
        finally:
            for node in self._nodes:
                await node.stop()
            self._gather()
        return found

    async def _introduce(self) -> Stage:
        sender, receiver = self._sender, self._receiver
        await receiver.sdk.add_peer(sender.grpc, node_id=sender.node_id, name=sender.name)
        proxy = FaultProxy(LOCALHOST, int(receiver.grpc.rpartition(":")[2]), num_faulty=0)
        await proxy.__aenter__()
        stage = Stage(sender, receiver, proxy)
        await stage.dial_anew(proxy)
        return stage

    async def _remember(self) -> None:
        rng = random.Random(f"soak texts {self._found.seed}")
        for _ in range(NUM_MEMORIES):
            text = sample_context(rng, rng.randint(12, 36), "train").text
            memory = await self._sender.sdk.remember(text)
            self._memories.append(memory)
            self._sent[memory.id] = await self._courier.digest(self._sender, memory.id)

    async def _one(self, stage: Stage, fault: Fault) -> None:
        """One fault, and what must hold after it."""
        found, courier = self._found, self._courier
        messages = [
            message_of(self._memories[index], f"{found.seed}/{fault.number}/{index}")
            for index in fault.memories
        ]
        found.messages += messages
        healed = asyncio.Event()
        submissions: list[asyncio.Task[None]] = []

        def begin() -> asyncio.Task[object]:
            submissions.extend(asyncio.create_task(courier.submit(message, healed)) for message in messages)
            return asyncio.create_task(asyncio.wait(submissions))

        log_end = self._sender.log_nbytes()
        struck = await act(stage, fault, messages[0].nbytes, begin)
        healed_at = time.monotonic()
        healed.set()
        await self._settle(fault, messages, submissions, healed_at)
        notes = {message.note for message in messages}
        arrived = [one for one in courier.arrived if one.note in notes]
        kept = {one.memory: await courier.digest(self._receiver, one.memory) for one in arrived}
        if fault.kind not in CLOCKS:  # a wrong clock may well end an offer, and what came under it
            _note_resumed(self._sender.events_since(log_end), messages)
        if fault.kind in RESTARTS and fault.targets_receiver:
            for message in messages:
                message.was_in_place = message.memory in self._receiver.found_at_start
        found.verdict.add(check(messages, arrived, sent=self._sent, kept=kept))
        if fault.forgets:
            for memory in kept:
                await self._receiver.sdk.forget(memory)
        if fault.number % CHECK_STORES_EVERY == CHECK_STORES_EVERY - 1:
            await self._check_stores()
        found.done.append(fault)
        if not struck:
            found.not_struck.append(fault)
        self._sample()

    async def _settle(
        self,
        fault: Fault,
        messages: list[Message],
        submissions: list[asyncio.Task[None]],
        healed_at: float,
    ) -> None:
        """Wait until everything is where it belongs, and note how long that took."""
        found, took_s = self._found, math.inf
        try:
            async with asyncio.timeout(GIVE_UP_S):
                await asyncio.gather(*submissions)
                took_s = await self._courier.until_arrived(messages, healed_at)
        except TimeoutError:
            for submission in submissions:
                submission.cancel()
            await asyncio.wait(submissions)
        if took_s > SOON_S:
            last = self._courier.last_refusal
            found.over_30s.append(f"{fault.number} {fault.kind}: recovered after {took_s:.1f} s ({last})")
        if math.isfinite(took_s):
            found.recoveries_s.append(took_s)
        self._gather()

    async def _revive(self) -> None:
        for node in self._nodes:
            if node.has_ended():
                await node.start()

    def _gather(self) -> None:
        found = self._found
        for node in self._nodes:
            node.look_for_crashes()
            found.crashes += node.crashes
            node.crashes.clear()
        found.refusals, found.failed_entries = self._courier.refusals, self._courier.failed
        found.num_receipts = self._courier.num_receipts

    def _sample(self) -> None:
        """Memory and descriptors, over the time in which no node is restarted on purpose."""
        found = self._found
        if any(fault.kind in RESTARTS for fault in found.plan[len(found.done) :]):
            return
        now = time.monotonic() - found.began
        for node in self._nodes:
            found.rss_mib.setdefault(node.name, []).append((now, node.rss_mib()))
            found.fds.setdefault(node.name, []).append(node.num_fds())

    async def _check_stores(self) -> None:
        verdict, courier = self._found.verdict, self._courier
        await courier.verify_receipts()
        damage = [sentence for node in self._nodes for sentence in await courier.damage(node)]
        verdict.mismatches += len(damage) + len(courier.bad_receipts)
        verdict.problems += damage + courier.bad_receipts
        courier.bad_receipts.clear()

    async def _finish(self) -> None:
        """The whole inbox once more, both stores, and what is left when nothing can be resumed any more."""
        found, receiver = self._found, self._receiver
        await self._check_stores()
        inbox = await receiver.sdk.inbox(all=True, every_agent=True)
        everything = [Arrived(one.id, one.note, one.memory) for one in inbox]
        # Once more, for what came late; it sees again what the checks after each fault saw.
        final, before = check(found.messages, everything, sent={}, kept={}), found.verdict
        before.lost = max(before.lost, final.lost)
        before.duplicates = max(before.duplicates, final.duplicates)
        before.mismatches = max(before.mismatches, final.mismatches)
        before.problems += [problem for problem in final.problems if problem not in before.problems]
        await receiver.stop()
        receiver.move_clock(GC_CLOCK_S)
        await receiver.start()
        deadline = time.monotonic() + GC_WAIT_S
        incoming = receiver.home.store / "incoming"
        while any(incoming.iterdir()) and time.monotonic() < deadline:  # noqa: ASYNC110  # another process's
            await asyncio.sleep(0.1)
        found.spool_nbytes, found.store_nbytes = _disk_nbytes(incoming), _disk_nbytes(receiver.home.store)


def _note_resumed(events: Iterable[dict[str, Any]], messages: Sequence[Message]) -> None:
    """From the sender's log: what the receiver said it had, in the attempt that delivered each memory."""
    completed = {e["memory"]: e["resumed_chunks"] for e in events if e["event"] == "transfer.completed"}
    for message in messages:
        message.resumed_chunks = completed.get(message.memory)


def _disk_nbytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def _small_disk(folder: Path) -> Iterator[bool]:
    """A disk of its own at `folder`, where this process may mount one; else an ordinary folder."""
    folder.mkdir(mode=0o700, parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_NBYTES},mode=700", "tmpfs", str(folder)]
    is_mounted = (
        os.geteuid() == 0
        and shutil.which("mount") is not None
        and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    )
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)
