"""Transfer engines of others that run on a CPU over TCP, as rivals; each in an environment of its own.

`stream --engine mooncake=PYTHON` names an interpreter that has it and NumPy. What was tried, on Debian 12
without a GPU or its drivers:

| package | what happened |
|---|---|
| mooncake-transfer-engine 0.3.13.post1 | no import: libcudart.so.12, libibverbs.so.1, then libcuda.so.1 |
| mooncake-transfer-engine-non-cuda 0.3.13.post1 | runs over TCP once libibverbs1 and libnl-3 are installed |
| nixl 1.5.1 | runs over TCP (backend UCX, `UCX_TLS=tcp,self`); its package brings torch for CUDA along |
| lmcache | not installed after 4 minutes of downloading CUDA's libraries; not tried further |

They move registered memory: nothing is signed, encrypted, verified or kept, and no cache is built of it. The
seconds are of one read of a float16 cache, connected before. As a program: one end,
`ENGINE serve|take HOST NBYTES [ADDRESS]`.
"""

from __future__ import annotations

import base64
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TIMES = 5
_PORTS = {"serve": 17812, "take": 17813}
_DEADLINE_S = 120.0


def engine_seconds(link: Any, engine: str, python: str, nbytes: int) -> float:
    """Median seconds of reading so many bytes over a `stream_link.Link`."""
    command = [python, str(Path(__file__).resolve()), engine]
    environment = {**os.environ, "UCX_TLS": "tcp,self", "GLOG_minloglevel": "2"}
    serving = subprocess.Popen(
        [*link.inside[0], *command, "serve", link.hosts[0], str(nbytes)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        lines = serving.stdout or ()
        address = next((line.strip() for line in lines if line.startswith('{"at"')), "")
        take = [*link.inside[1], *command, "take", link.hosts[1], str(nbytes), address]
        took = subprocess.run(
            take, env=environment, capture_output=True, check=True, text=True, timeout=_DEADLINE_S
        )
    finally:
        serving.terminate()
        serving.wait()
    return float(statistics.median(json.loads(took.stdout.splitlines()[-1])))


def _mooncake(role: str, host: str, buffer: Any, address: dict[str, Any]) -> Any:
    from mooncake.engine import TransferEngine

    engine = TransferEngine()
    if engine.initialize(f"{host}:{_PORTS[role]}", "P2PHANDSHAKE", "tcp", ""):
        raise SystemExit("mooncake: was not initialised")
    engine.register_memory(buffer.ctypes.data, buffer.nbytes)
    if role == "serve":
        return {"at": f"{host}:{engine.get_rpc_port()}", "pointer": buffer.ctypes.data, "engine": engine}

    def read() -> None:
        if engine.transfer_sync_read(address["at"], buffer.ctypes.data, address["pointer"], buffer.nbytes):
            raise SystemExit("mooncake: the read failed")

    return read


def _nixl(role: str, host: str, buffer: Any, address: dict[str, Any]) -> Any:
    from nixl._api import nixl_agent, nixl_agent_config

    agent = nixl_agent(role, nixl_agent_config(backends=["UCX"]))
    agent.register_memory([(buffer.ctypes.data, buffer.nbytes, 0, "")], "DRAM")
    if role == "serve":
        at = base64.b64encode(agent.get_agent_metadata()).decode()
        return {"at": at, "pointer": buffer.ctypes.data, "engine": agent}
    peer = agent.add_remote_agent(base64.b64decode(address["at"]))
    peer = peer.decode() if isinstance(peer, bytes) else peer

    def read() -> None:
        here = agent.get_xfer_descs([(buffer.ctypes.data, buffer.nbytes, 0)], "DRAM")
        there = agent.get_xfer_descs([(address["pointer"], buffer.nbytes, 0)], "DRAM")
        handle = agent.initialize_xfer("READ", here, there, peer)
        state = agent.transfer(handle)
        while state not in ("DONE", "ERR"):
            state = agent.check_xfer_state(handle)
        if state == "ERR":
            raise SystemExit("nixl: the read failed")
        agent.release_xfer_handle(handle)

    return read


ENGINES: dict[str, Callable[..., Any]] = {"mooncake": _mooncake, "nixl": _nixl}


def _main(engine: str, role: str, host: str, nbytes: str, address: str = "{}") -> None:
    pattern = np.arange(int(nbytes), dtype=np.uint32).astype(np.uint8)
    buffer = pattern.copy() if role == "serve" else np.zeros_like(pattern)
    made = ENGINES[engine](role, host, buffer, json.loads(address))
    if role == "serve":
        print(json.dumps({"at": made["at"], "pointer": made["pointer"]}), flush=True)
        time.sleep(_DEADLINE_S)
        return
    made()  # connects
    if not np.array_equal(buffer, pattern):
        raise SystemExit(f"{engine}: other bytes came than were there")
    seconds = []
    for _ in range(TIMES):
        began = time.perf_counter()
        made()
        seconds.append(time.perf_counter() - began)
    print("\n" + json.dumps(seconds), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
