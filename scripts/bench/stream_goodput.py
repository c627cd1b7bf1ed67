"""Goodput of the whole path beside a bare mutual-TLS gRPC stream of the same bytes; the first durable ack.

The bare arm is two processes, the certificates and channel options of kvnet, messages of 1 MiB as bytes that
nobody looks at. The whole path is two daemons without a model: read, digest, envelope, signature, mutual TLS,
verify, write, fsync, seal, receipt. Arms take turns in one run. "No fsync" is the same path in memory files,
where a sync is free.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
from stream_link import LOOPBACK, Hosts, two_hosts
from stream_nodes import (
    MIB,
    Row,
    folder_at,
    keepers,
    load,
    put_memory,
    timed_send,
    tokens_of,
    touch,
)

from kvnet.identity.keys import NodeKey
from kvnet.paths import Home
from kvnet.transport.limits import PortLimits
from kvnet.transport.security import Credentials

FULL_MIB, QUICK_MIB = 1024, 128
TIMES, QUICK_TIMES = 3, 1
ACKS, QUICK_ACKS = 300, 30
MEMORY_FILES = Path("/dev/shm")  # noqa: S108  # memory, where there is one
_METHOD = "/bench/Stream"


def rows(quick: bool, seed: int) -> list[Row]:
    """The goodput rows, and the time from the first byte to the durable ack."""
    mib = QUICK_MIB if quick else FULL_MIB
    times = QUICK_TIMES if quick else TIMES
    in_memory = MEMORY_FILES if MEMORY_FILES.is_dir() else None
    bare: list[float] = []
    arms: dict[str, list[float]] = {"fsync": [], "no fsync": [], "fsync, sealed at rest": []}
    for _ in range(times):
        bare.append(bare_stream_s(mib))
        arms["fsync"].append(_path_s(mib, seed, where=None, sealed=False))
        bare.append(bare_stream_s(mib))
        arms["no fsync"].append(_path_s(mib, seed, where=in_memory, sealed=False))
        arms["fsync, sealed at rest"].append(_path_s(mib, seed, where=None, sealed=True))
    baseline_s = statistics.median(bare)
    targets: dict[str, float | None] = {"fsync": 0.60, "no fsync": 0.75, "fsync, sealed at rest": None}
    found = [_share(arm, targets[arm], baseline_s, arms[arm], mib) for arm in arms]
    return [*found, _first_ack(QUICK_ACKS if quick else ACKS, seed)]


def _share(arm: str, target: float | None, baseline_s: float, seconds: list[float], mib: int) -> Row:
    share = baseline_s / statistics.median(seconds)
    return Row(
        f"goodput share of a bare stream, {arm}",
        share,
        "" if target is None else f">= {target:.2f}",
        None if target is None else share >= target,
        {
            "mib": mib,
            "gbps": mib * MIB / statistics.median(seconds) / 1e9,
            "bare_gbps": mib * MIB / baseline_s / 1e9,
            "load": load(),
        },
    )


def _path_s(mib: int, seed: int, *, where: Path | None, sealed: bool) -> float:
    with folder_at(where) as folder:
        memory = put_memory(Home(folder / "alice"), tokens_of(mib * MIB), seed=seed, sealed=sealed)
        if where is not None:
            touch(2 * mib * MIB)
        with keepers(folder, "alice", "bob", encrypt_at_rest=sealed) as nodes:
            return timed_send(nodes["alice"], memory, "bob")


def _first_ack(times: int, seed: int) -> Row:
    """Memories of some tokens, sent one after the other over a connection each, between nodes that idle."""
    rng = random.Random(seed)
    with two_hosts(LOOPBACK, traced=True, small=True) as hosts:
        sends = [_first_ack_s(hosts, rng) for _ in range(times + 1)][
            1:
        ]  # the first one of all is no idle node's
    found = [ack_s for ack_s, _ in sends]
    p99 = sorted(found)[int(len(found) * 0.99)]
    return Row(
        "first byte to durable ack, p99, seconds",
        p99,
        "<= 0.020",
        p99 <= 0.020,
        {
            "median_s": statistics.median(found),
            "whole_send_s": statistics.median(whole_s for _, whole_s in sends),
            "n": len(found),
            "load": load(),
        },
    )


def _first_ack_s(hosts: Hosts, rng: random.Random) -> tuple[float, float]:
    """From a memory's first byte to its durable acknowledgement; and the whole send, with its greetings."""
    memory = hosts.alice.remember(f"The {rng.getrandbits(64)} boats.").id
    hosts.stamps()
    whole_s = timed_send(hosts.alice, memory, "bob")
    stamps = hosts.stamps()
    left = min(stamp.began for stamp in stamps if stamp.stage == "wire")
    return min(stamp.ended for stamp in stamps if stamp.stage == "ack") - left, whole_s


def bare_stream_s(mib: int) -> float:
    """Seconds to stream so many MiB from one process to another with mutual TLS, and hear the end."""
    spawned = multiprocessing.get_context("spawn")
    ours, theirs = spawned.Pipe()
    alice, seed = NodeKey.generate(), os.urandom(32)
    server = spawned.Process(target=_serve, args=(theirs, seed, alice.public), daemon=True)
    server.start()
    try:
        port = ours.recv()
        return asyncio.run(_stream(alice, NodeKey(seed).public, port, mib))
    finally:
        ours.send("stop")
        server.join(10)
        server.terminate()


def _serve(pipe: Connection, seed: bytes, caller: bytes) -> None:
    asyncio.run(_serving(pipe, NodeKey(seed), caller))


async def _serving(pipe: Connection, key: NodeKey, caller: bytes) -> None:
    server = grpc.aio.server(options=PortLimits().server_options())

    async def take(messages: AsyncIterator[bytes], context: Any) -> None:
        nbytes = 0
        while (message := await context.read()) is not grpc.aio.EOF:
            nbytes += len(message)
        await context.write(nbytes.to_bytes(8, "little"))

    handler: Any = grpc.stream_stream_rpc_method_handler(take)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", {"Stream": handler}),))
    pipe.send(server.add_secure_port("127.0.0.1:0", Credentials(key).server([caller])))
    await server.start()
    await asyncio.to_thread(pipe.recv)
    await server.stop(0)


async def _stream(key: NodeKey, public: bytes, port: int, mib: int) -> float:
    message = os.urandom(MIB)
    async with Credentials(key).channel(
        f"127.0.0.1:{port}", public, options=PortLimits().client_options()
    ) as channel:
        await channel.channel_ready()
        began = time.perf_counter()
        call: Any = channel.stream_stream(_METHOD)()
        for _ in range(mib):
            await call.write(message)
        await call.done_writing()
        said = await call.read()
        seconds = time.perf_counter() - began
    assert int.from_bytes(said, "little") == mib * MIB
    return seconds
