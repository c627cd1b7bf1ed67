"""What strangers and a hostile peer do to a peer port; run as a program it is many of them at once."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import grpc

from kvnet.identity.certificates import LeafCertificate, issue_leaf, pin, server_name
from kvnet.identity.keys import NodeKey
from kvnet.transport.doorman import NAMESPACE_KEY
from kvnet.v1 import peer_pb2, peer_pb2_grpc

Attempt = Callable[[int], None]
NAMESPACE = ((NAMESPACE_KEY, b"default"),)
LORIS, CALLS_AT_ONCE = 56, 16
_RESET = struct.pack("ii", 1, 0)


def attempts() -> dict[str, Attempt]:
    """By kind: what a stranger does once, at this port of 127.0.0.1, until it is hung up on."""
    return {
        "TCP connect and reset": reset,
        "garbage": lambda port: _say(port, os.urandom(4096)),
        "HTTP/2 without TLS": lambda port: _say(port, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64)),
        "TLS without a certificate": lambda port: _shake_hands(port, _context()),
        "TLS with an unknown certificate": _stranger(),
    }


def dial(port: int) -> socket.socket:
    """A connection to the port."""
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def reset(port: int) -> None:
    """Connect, and break off without a word."""
    dialled = dial(port)
    dialled.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    dialled.close()


def _say(port: int, data: bytes) -> None:
    with dial(port) as dialled:
        try:
            dialled.sendall(data)
            while dialled.recv(4096):
                pass
        except OSError:  # hung up on, which is what is measured
            pass


def _shake_hands(port: int, context: ssl.SSLContext) -> None:
    with dial(port) as dialled:
        try:
            with context.wrap_socket(dialled) as wrapped:
                while wrapped.recv(4096):
                    pass
        except OSError:
            pass


def _stranger() -> Attempt:
    context = _context(issue_leaf(NodeKey.generate()))
    return lambda port: _shake_hands(port, context)


def _context(leaf: LeafCertificate | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if leaf is not None:
        with tempfile.TemporaryDirectory() as folder:
            key, chain = Path(folder) / "key", Path(folder) / "chain"
            key.write_bytes(leaf.key_pem)
            chain.write_bytes(leaf.chain_pem)
            context.load_cert_chain(chain, key)
    return context


def slow_hands(port: int, count: int) -> list[socket.socket]:
    """Connections that begin a TLS hello and never end it."""
    dialled = [dial(port) for _ in range(count)]
    for one in dialled:
        one.sendall(b"\x16\x03\x01\x02\x00")
    return dialled


async def _keep_slow(port: int) -> None:
    while True:
        dialled = await asyncio.to_thread(slow_hands, port, LORIS)
        await asyncio.sleep(5.0)
        for one in dialled:
            one.close()


async def _keep_resetting(port: int) -> None:
    while True:
        await asyncio.to_thread(reset, port)


async def _keep_calling(port: int, key: NodeKey, public: bytes) -> None:
    leaf = issue_leaf(key)
    credentials = grpc.ssl_channel_credentials(pin(public, by=key), leaf.key_pem, leaf.chain_pem)
    options = (("grpc.ssl_target_name_override", server_name(public)), ("grpc.use_local_subchannel_pool", 1))
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        stub = peer_pb2_grpc.PeerStub(channel)

        async def call() -> None:
            while True:
                request = peer_pb2.HelloRequest(protocol=3, nonce=b"n" * 16)
                try:
                    await stub.Hello(request, metadata=NAMESPACE, timeout=10)
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0)

        await asyncio.gather(*(call() for _ in range(CALLS_AT_ONCE)))


async def _all(port: int, key: NodeKey, public: bytes) -> None:
    os.nice(19)
    print("ready", flush=True)
    callers = (_keep_calling(port, key, public) for _ in range(4))
    resetting = (_keep_resetting(port) for _ in range(4))
    await asyncio.gather(_keep_slow(port), *resetting, *callers)


def main() -> None:
    """PORT, the identity file of a paired peer, and the node id it calls, in hex."""
    port, identity, public = sys.argv[1:]
    asyncio.run(_all(int(port), NodeKey.load_or_create(Path(identity)), bytes.fromhex(public)))


if __name__ == "__main__":
    main()
