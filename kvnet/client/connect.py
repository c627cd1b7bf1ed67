"""How a client finds its daemon: the socket and the token in the state folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from kvnet import wire
from kvnet.api import AlignmentInfo, MemoryInfo
from kvnet.errors import CapacityError, KvnetError, NotRunning
from kvnet.files.package import PACKAGE_TYPE
from kvnet.identity.signing import SignedMessage
from kvnet.paths import Home, find_home
from kvnet.texts import require_text
from kvnet.v1 import control_pb2, control_pb2_grpc

CALL_DEADLINE_S = 30.0
TOKEN_METADATA_KEY = "kvnet-token"  # noqa: S105  # a header's name
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.use_local_subchannel_pool", 1),
)


def locate(home: str | Path | None) -> tuple[Home, str]:
    """The home and its daemon's token. Raises NotRunning when there is none."""
    where = find_home() if home is None else Home(Path(home).expanduser().absolute())
    where.check()
    try:
        token = where.token.read_bytes().decode("ascii", "replace")
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise not_running(where) from exc
    if not (token.isascii() and token.isprintable()):
        raise wrong_token(where)  # gRPC would refuse to carry it, and say so in its own words
    return where, token


def not_running(home: Home) -> NotRunning:
    """The error for a daemon that does not answer."""
    return NotRunning(f"no daemon answers for {home.root}; start one with `kvnet up`")


def wrong_token(home: Home) -> NotRunning:
    """The error for a daemon that answers, but not to this token."""
    return NotRunning(
        f"control token {home.token}: not that of the daemon that runs; "
        "it was restarted meanwhile, or the file was changed: try again, or restart the daemon"
    )


def sign_package(home: Home, metadata: tuple[tuple[str, str], ...], body: bytes) -> SignedMessage:
    """The daemon's signature under a package's list of files.

    On a channel of its own and blocking: it is asked for from within the writing of a package.
    """
    with grpc.insecure_channel(f"unix:{home.socket}", options=CHANNEL_OPTIONS) as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        try:
            reply = stub.SignPackage(
                control_pb2.SignPackageRequest(body=body), metadata=metadata, timeout=CALL_DEADLINE_S
            )
        except grpc.RpcError as exc:
            raise translated(home, exc) from exc
    return SignedMessage(PACKAGE_TYPE, body, reply.signer, reply.signature)


def translated(home: Home, failure: grpc.RpcError) -> KvnetError:
    """The error for a call that failed."""
    if wire.carries_error(failure):
        return wire.status_to_error(failure, peer="daemon")
    # An unreachable peer is told by the daemon; an unreachable daemon tells nothing.
    call: Any = failure
    return explain(home, call.code().name, call.details() or "")


def explain(home: Home, status: str, details: str) -> KvnetError:
    """The error for a call that ended without one of kvnet's own: the daemon is gone, or has a bug."""
    if status in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"):
        return not_running(home)
    if status == "UNAUTHENTICATED":
        return wrong_token(home)
    said = " ".join(details.split())
    if status == "RESOURCE_EXHAUSTED":
        return CapacityError(f"daemon: {said}; send less at once")
    return KvnetError(f"daemon: {status.lower()}: {said:.200}; see {home.daemon_log}")


def alignment_id_of(alignment: str | AlignmentInfo) -> str:
    """The id, or start of an id, that a caller means."""
    if isinstance(alignment, AlignmentInfo):
        return alignment.id
    return require_text(alignment, what="alignment")


def id_of(memory: str | MemoryInfo) -> str:
    """The id, start of an id, or name that a caller means."""
    return memory.id if isinstance(memory, MemoryInfo) else require_text(memory, what="memory")


def ids_of(memory: str | MemoryInfo | Sequence[str | MemoryInfo]) -> list[str]:
    """`id_of` each memory that a caller means: one, several, or none for ""."""
    several = [memory] if isinstance(memory, str | MemoryInfo) else memory
    return [id_of(one) for one in several if one != ""]
