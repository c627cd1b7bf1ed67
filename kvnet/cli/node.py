"""up, down, status, serve: the daemon's life."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from kvnet.cli import spawn
from kvnet.cli.output import Json, nbytes_text, print_json
from kvnet.cli.progress import waiting
from kvnet.client import Node
from kvnet.codec.presets import CODECS
from kvnet.errors import AlreadyRunning
from kvnet.identity.keys import grouped
from kvnet.paths import find_home

Model = Annotated[
    str | None,
    typer.Option(
        help="ref-a, ref-b, ref-c, a folder, random:tinyllama, a hub id, or none: keep and pass on."
    ),
]
Quantization = Annotated[
    str | None, typer.Option("--quantization", "--quant", help="Weights as none, int8 or nf4.")
]
DTypeOption = Annotated[str | None, typer.Option("--dtype", help="auto, float32, float16 or bfloat16.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda.")]
Name = Annotated[str | None, typer.Option(help="What this node calls itself.")]
Listen = Annotated[
    str | None, typer.Option(help="HOST:PORT of the peer port; a free one on all interfaces if not given.")
]
Namespace = Annotated[str | None, typer.Option(help="Nodes of other namespaces are not seen.")]
Interfaces = Annotated[
    list[str] | None, typer.Option("--interface", help="Where to advertise and look; repeatable.")
]
Mdns = Annotated[bool | None, typer.Option("--mdns/--no-mdns", help="Advertise and look on the LAN.")]
Compression = Annotated[str | None, typer.Option(help="none, lz4, zstd or split, for memories kept here.")]
Codec = Annotated[str | None, typer.Option(help=f"For memories sent: {', '.join(CODECS)}.")]


def up(
    model: Model = None,
    quantization: Quantization = None,
    dtype: DTypeOption = None,
    device: Device = None,
    name: Name = None,
    listen: Listen = None,
    namespace: Namespace = None,
    interfaces: Interfaces = None,
    mdns: Mdns = None,
    codec: Codec = None,
    compression: Compression = None,
    as_json: Json = False,
) -> None:
    """Start the daemon, detached; returns when it is ready. Doing it again changes nothing."""
    home = find_home()
    flags = _flags(locals())
    status = spawn.running(home)
    if status is None:
        with waiting("starting the daemon"):
            status = spawn.start(home, flags)
    _refuse_other(status.settings, flags)  # it may not be ours
    if as_json:
        print_json(status)
    else:
        print(f"{status.name} is up: {status.model} on {status.grpc} (pid {status.pid})")
        print(f"node id {grouped(status.node_id)}")


def serve(
    model: Model = None,
    quantization: Quantization = None,
    dtype: DTypeOption = None,
    device: Device = None,
    name: Name = None,
    listen: Listen = None,
    namespace: Namespace = None,
    interfaces: Interfaces = None,
    mdns: Mdns = None,
    codec: Codec = None,
    compression: Compression = None,
    as_json: Json = False,
) -> None:
    """Run the daemon in the foreground, for service managers; one line says that it is ready."""
    command = spawn.daemon_command(find_home(), _flags(locals()))
    command += ["--json"] if as_json else []
    sys.stdout.flush()
    os.execv(command[0], command)  # noqa: S606  # our own interpreter, arguments as a list


def down(as_json: Json = False) -> None:
    """Stop the daemon and wait until it has."""
    pid = spawn.stop(find_home())
    if as_json:
        print_json({"pid": pid, "stopped": True})
    else:
        print(f"stopped (pid {pid})")


def status(as_json: Json = False) -> None:
    """Show what this node is and what it holds."""
    with Node() as node:
        found = node.status()
    if as_json:
        print_json(found)
        return
    geometry = found.geometry
    rows = {
        "node": f"{found.name}  {grouped(found.node_id)}",
        "peers": f"{found.peers} added, listening on {found.grpc}, mdns {'on' if found.mdns else 'off'}",
        "model": f"{found.model}, weights {found.fingerprint.quantization}, {found.max_seq_len} tokens",
        "cache": (
            f"{geometry.num_layers} layers of [1, {geometry.num_kv_heads}, n, {geometry.head_dim}] "
            f"{geometry.dtype}, {geometry.token_nbytes} bytes a token"
        ),
        "store": (
            f"{found.memories} memories, {nbytes_text(found.store_nbytes)}, {found.unread} unread messages"
            + (f", {found.outbox} waiting in the outbox" if found.outbox else "")
            + (f", {found.damaged} damaged" if found.damaged else "")
        ),
        "daemon": f"pid {found.pid}, kvnet {found.version}, up {found.uptime_s:.0f} s, {found.home}",
    }
    for label, text in rows.items():
        print(f"{label:<7} {text}")


def _flags(given: dict[str, object]) -> dict[str, str]:
    found = {k: v for k, v in given.items() if v is not None and k not in ("as_json", "home")}
    return {key: _flag_text(value) for key, value in found.items()}


def _flag_text(value: object) -> str:
    if isinstance(value, bool):
        return "01"[value]
    return ",".join(value) if isinstance(value, list | tuple) else str(value)


def _refuse_other(settings: Mapping[str, Any], flags: dict[str, str]) -> None:
    """A running daemon keeps its settings; silence about another wish would be a lie."""
    for what, wanted in flags.items():
        now = _flag_text(settings.get(what, ""))
        if wanted != now:
            raise AlreadyRunning(
                f"the daemon already runs with {what} {now or 'unset'}, not {wanted}; "
                "stop it first with `kvnet down`"
            )
