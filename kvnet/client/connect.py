"""How a client finds its daemon: the socket and the token in the state folder."""

from __future__ import annotations

from pathlib import Path

from kvnet.errors import CapacityError, KvnetError, NotRunning
from kvnet.paths import Home, find_home

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
