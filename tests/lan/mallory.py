"""An attacker on the LAN as a program, one of five; prints a JSON line for each thing that happened.

mallory.py relay HOST:PORT LISTEN_HOST FOLDER         passes everything on, keeps what each side said
mallory.py impersonate HOST:PORT LISTEN_HOST LEAF     ends TLS with her own leaf, passes on what was inside
mallory.py replay HOST:PORT FILE                      says what the file says, counts what she is answered
mallory.py poke HOST:PORT                             asks without a certificate, and without TLS
mallory.py advertise LISTEN_HOST NUM SECONDS ID PORT  floods the LAN with adverts; some claim the id for PORT

LEAF is a PEM file with certificate and key. Knows no kvnet but its adverts.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import sys
from itertools import count
from pathlib import Path

from kvnet.discovery import Advert
from kvnet.transfer.messages import PROTOCOL_VERSION
from tests.discovery.rogue import Rogue, advert_packet, random_short_id

_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)  # and empty SETTINGS
_ANSWER_S = 2.0
_CLAIM_EVERY = 50


def _tell(**said: object) -> None:
    print(json.dumps(said), flush=True)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def _stranger(leaf: str = "") -> ssl.SSLContext:
    """How she dials: believes everybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if leaf:
        context.load_cert_chain(leaf)
    return context


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
    try:
        while chunk := await reader.read(65536):
            kept.extend(chunk)
            writer.write(chunk)
            await writer.drain()
    except (OSError, ssl.SSLError):
        pass
    finally:
        writer.close()


async def _serve(listen_host: str, handle: object, **options: object) -> None:
    server = await asyncio.start_server(handle, listen_host, 0, **options)  # type: ignore[arg-type]
    _tell(port=server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def relay(target: str, listen_host: str, folder: str) -> None:
    numbers = count()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, up, down = next(numbers), bytearray(), bytearray()
        far_reader, far_writer = await asyncio.open_connection(*_split(target))
        await asyncio.gather(_pump(reader, far_writer, up), _pump(far_reader, writer, down))
        for name, kept in (("up", up), ("down", down)):
            (Path(folder) / f"{number:03}.{name}").write_bytes(kept)
        _tell(connection=number, up=len(up), down=len(down))

    await _serve(listen_host, handle)


async def impersonate(target: str, listen_host: str, leaf: str) -> None:
    mine = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    mine.load_cert_chain(leaf)
    mine.set_alpn_protocols(["h2"])

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up, down = bytearray(), bytearray()
        try:
            await writer.start_tls(mine)
        except (OSError, ssl.SSLError):
            _tell(handshake=False, nbytes=0)
            return
        try:
            far = await asyncio.open_connection(*_split(target), ssl=_stranger(leaf), server_hostname="")
        except (OSError, ssl.SSLError):
            far = None
        if far is None:
            up.extend(await reader.read())
        else:
            await asyncio.gather(_pump(reader, far[1], up), _pump(far[0], writer, down))
        writer.close()
        _tell(handshake=True, nbytes=len(up) + len(down))

    await _serve(listen_host, handle)


async def replay(target: str, file: str) -> None:
    recorded = await asyncio.to_thread(Path(file).read_bytes)
    hello_nbytes = 5 + int.from_bytes(recorded[3:5], "big")  # the first record; an answer to it is waited for
    reader, writer = await asyncio.open_connection(*_split(target))
    writer.write(recorded[:hello_nbytes])
    answered = len(await reader.read(65536))
    writer.write(recorded[hello_nbytes:])
    _tell(answered=answered, more=len(await _answer(reader)))
    writer.close()


async def poke(target: str) -> None:
    for context in (_stranger(), None):
        try:
            reader, writer = await asyncio.open_connection(*_split(target), ssl=context)
            writer.write(_HTTP2_PREFACE)
            _tell(tls=context is not None, answer=(await _answer(reader)).hex())
            writer.transport.abort()
        except (OSError, ssl.SSLError) as refused:
            _tell(tls=context is not None, answer="", refused=type(refused).__name__)


async def _answer(reader: asyncio.StreamReader) -> bytes:
    """What comes until the other side ends it, or says nothing for a while."""
    answer = bytearray()
    try:
        while chunk := await asyncio.wait_for(reader.read(65536), _ANSWER_S):
            answer += chunk
    except (OSError, TimeoutError, ssl.SSLError):
        pass
    return bytes(answer)


async def advertise(listen_host: str, num: str, seconds: str, victim: str, port: str) -> None:
    rng = random.Random(1)
    with Rogue(listen_host) as rogue:
        for index in range(int(num)):
            claims = index % _CLAIM_EVERY == 0
            short_id = victim if claims else random_short_id(rng)
            advert = Advert(short_id, "default", PROTOCOL_VERSION, int(port))
            rogue.send(advert_packet(advert, listen_host))
            await asyncio.sleep(float(seconds) / int(num))
    _tell(sent=int(num))


if __name__ == "__main__":
    _WHAT = {call.__name__: call for call in (relay, impersonate, replay, poke, advertise)}
    asyncio.run(_WHAT[sys.argv[1]](*sys.argv[2:]))
