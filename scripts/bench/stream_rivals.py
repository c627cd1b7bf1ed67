"""What a user would pick instead of kvnet to move a cache: float16, nothing signed or verified.

    torch.save over HTTP            http.server and urllib; pickle, hence a rival here and nowhere in kvnet
    safetensors over a socket       one message of the whole cache
    state file, copied              as llama.cpp's and scp: written whole, copied, read back

Each from the request until the layers are tensors of a cache; the question's pass is not part of it, as it is
the same for all. Run as a program this is one end: `serve HOST PORT TOKENS`, or `take HOST PORT TIMES`.
"""

from __future__ import annotations

import io
import json
import pickle
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

LAYERS, KV_HEADS, HEAD_DIM = 22, 4, 64  # TinyLlama's
TORCH_SAVE, SAFETENSORS, STATE_FILE = (
    "torch.save over HTTP",
    "safetensors over a socket",
    "state file, copied",
)
PORT = 7450  # and the next one
_BLOCK = 1 << 20


def cache_nbytes(tokens: int) -> int:
    """Bytes of a float16 cache."""
    return 2 * LAYERS * KV_HEADS * HEAD_DIM * 2 * tokens


def rival_seconds(link: Any, tokens: int, *, times: int) -> dict[str, float]:
    """Median seconds of each way over a `stream_link.Link`, for a cache of so many tokens."""
    me, host = str(Path(__file__).resolve()), link.hosts[0]
    command = [sys.executable, me]
    serving = subprocess.Popen(
        [*link.inside[0], *command, "serve", host, str(PORT), str(tokens)], stdout=subprocess.PIPE
    )
    try:
        if serving.stdout is None or not serving.stdout.readline():
            raise AssertionError("the rivals' sender did not start")
        take = [*link.inside[1], *command, "take", host, str(PORT), str(times)]
        took = subprocess.run(take, capture_output=True, check=True, timeout=300)
    finally:
        serving.terminate()
        serving.wait()
    return {name: statistics.median(seconds) for name, seconds in json.loads(took.stdout).items()}


def _serve(host: str, port: int, tokens: int) -> None:
    import torch

    shape = (1, KV_HEADS, tokens, HEAD_DIM)
    cache = {f"{half}.{layer}": torch.randn(shape).half() for layer in range(LAYERS) for half in ("k", "v")}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = io.BytesIO()
            torch.save(cache, body)
            self.send_response(200)
            self.send_header("Content-Length", str(body.tell()))
            self.end_headers()
            self.wfile.write(body.getbuffer())

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    listener = socket.create_server((host, port + 1))
    threading.Thread(target=_serve_sockets, args=(listener, cache), daemon=True).start()
    server = HTTPServer((host, port), Handler)
    print("ready", flush=True)
    server.serve_forever()


def _serve_sockets(listener: socket.socket, cache: dict[str, Any]) -> None:
    from safetensors.torch import save

    while True:
        connection, _ = listener.accept()
        with connection:
            if connection.recv(1) == b"s":
                connection.sendall(save(cache))
                continue
            with tempfile.TemporaryFile() as state:
                for tensor in cache.values():
                    state.write(tensor.numpy().data)
                state.seek(0)
                connection.sendfile(state)


def _take(host: str, port: int, times: int) -> None:
    import torch
    from safetensors.torch import load

    def over_http() -> dict[str, Any]:
        with urllib.request.urlopen(f"http://{host}:{port}/") as reply:
            body = io.BytesIO(reply.read())
        try:
            return dict(torch.load(body, weights_only=True))
        except pickle.UnpicklingError as exc:
            raise AssertionError("torch.save's own output was refused") from exc

    def over_socket() -> dict[str, Any]:
        return load(b"".join(_blocks(host, port + 1, b"s")))

    def by_file() -> dict[str, Any]:
        with tempfile.TemporaryFile() as state:
            for block in _blocks(host, port + 1, b"f"):
                state.write(block)
            state.seek(0)
            raw = bytearray(state.read())
        halves = torch.frombuffer(raw, dtype=torch.float16).view(2 * LAYERS, 1, KV_HEADS, -1, HEAD_DIM)
        return {str(number): half for number, half in enumerate(halves)}

    ways = {TORCH_SAVE: over_http, SAFETENSORS: over_socket, STATE_FILE: by_file}
    print(json.dumps({name: [_seconds(way) for _ in range(times + 1)][1:] for name, way in ways.items()}))


def _blocks(host: str, port: int, wanted: bytes) -> list[bytes]:
    blocks = []
    with socket.create_connection((host, port)) as connection:
        connection.sendall(wanted)
        while block := connection.recv(_BLOCK):
            blocks.append(block)
    return blocks


def _seconds(way: Callable[[], dict[str, Any]]) -> float:
    began = time.perf_counter()
    cache = [half.clone() for half in way().values()]  # a cache owns what it holds
    if len(cache) != 2 * LAYERS:
        raise AssertionError(f"{len(cache)} halves came")
    return time.perf_counter() - began


if __name__ == "__main__":
    _, act, host, port, number = sys.argv
    (_serve if act == "serve" else _take)(host, int(port), int(number))
