"""How a client finds its daemon: the socket and the token in the state folder."""

from __future__ import annotations

from pathlib import Path

from kvnet.errors import NotRunning
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
        return where, where.token.read_text(encoding="ascii")
    except FileNotFoundError as exc:
        raise not_running(where) from exc


def not_running(home: Home) -> NotRunning:
    """The error for a daemon that does not answer."""
    return NotRunning(f"no daemon answers for {home.root}; start one with `kvnet up`")
