"""remember, mem ls|show|rm, inbox: memories on this node."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvnet.api import MemoryInfo
from kvnet.cli.output import Json, nbytes_text, print_json, print_table
from kvnet.cli.progress import layer_bar
from kvnet.client import Node
from kvnet.identity.keys import short_id
from kvnet.texts import read_text

mem = typer.Typer(help="Memories in this node's store.", no_args_is_help=True)
inbox = typer.Typer(help="Memories that peers sent.", no_args_is_help=True)

Agent = Annotated[str | None, typer.Option(help="Only this agent's messages.")]


def remember(
    text: Annotated[str | None, typer.Argument(help="The text; - reads it from stdin.")] = None,
    file: Annotated[Path | None, typer.Option(help="Read this file instead.")] = None,
    name: Annotated[str, typer.Option(help="A name for the memory; it moves if already in use.")] = "",
    compression: Annotated[str, typer.Option(help="none or lz4; the daemon's setting if not given.")] = "",
    as_json: Json = False,
) -> None:
    """Let the model read a text and keep what it read as a memory."""
    if text == "-":
        text = read_text("-")
    memory: MemoryInfo | None = None
    with Node() as node, layer_bar("reading") as show:
        for step in node.remember_stream(text, file=file, name=name, compression=compression):
            if isinstance(step, MemoryInfo):
                memory = step
            else:
                show(step.done, step.total)
    _print_memory(memory, as_json=as_json)


@mem.command("ls")
def mem_ls(as_json: Json = False) -> None:
    """List the memories of this node."""
    with Node() as node:
        found = node.memories()
    if as_json:
        print_json(found)
        return
    rows = [
        (m.id[:16], m.name, m.tokens, nbytes_text(m.nbytes), m.model, _origin(m), m.created_at or "damaged")
        for m in found
    ]
    columns = ("id", "name", "tokens", "size", "model", "from", "made at")
    print_table(columns, rows, empty="no memories yet; make one with `kvnet remember`")


@mem.command("show")
def mem_show(memory: str, as_json: Json = False) -> None:
    """Show a memory by id, start of an id, or name."""
    with Node() as node:
        found = node.show(memory)
    _print_memory(found, as_json=as_json)


@mem.command("rm")
def mem_rm(memory: str, as_json: Json = False) -> None:
    """Remove a memory from the store."""
    with Node() as node:
        gone = node.forget(memory)
    if as_json:
        print_json(gone)
    else:
        print(f"removed {gone.id}")


@inbox.command("ls")
def inbox_ls(
    agent: Agent = None,
    everything: Annotated[bool, typer.Option("--all", help="Acknowledged ones too.")] = False,
    as_json: Json = False,
) -> None:
    """List messages that wait to be acknowledged."""
    with Node(agent=agent or "") as node:
        found = node.inbox(all=everything, every_agent=agent is None)
    if as_json:
        print_json(found)
        return
    rows = [
        (m.id[:16], m.sender_name, m.agent or "-", m.memory[:16], m.note[:40], m.received_at) for m in found
    ]
    print_table(("id", "from", "to", "memory", "note", "received at"), rows, empty="the inbox is empty")


@inbox.command("ack")
def inbox_ack(message: str, as_json: Json = False) -> None:
    """Acknowledge a message by its id, or the start of it."""
    with Node() as node:
        found = node.acknowledge(message)
    if as_json:
        print_json(found)
    else:
        print(f"acknowledged {found.id}")


def _print_memory(memory: MemoryInfo | None, *, as_json: bool) -> None:
    if memory is None:
        raise AssertionError("the daemon ended the reading without a memory")
    if as_json:
        print_json(memory)
        return
    named = f" ({memory.name})" if memory.name else ""
    print(f"{memory.id}{named}")
    if memory.header is None:
        print(f"damaged: {memory.problem}; remove it with `kvnet mem rm` and have it made or sent again")
        return
    geometry = memory.header.geometry
    print(
        f"{memory.tokens} tokens, {memory.layers} layers of [1, {geometry.num_kv_heads}, {memory.tokens}, "
        f"{geometry.head_dim}] {geometry.dtype}, {nbytes_text(memory.nbytes)}, read by {memory.model}"
    )


def _origin(memory: MemoryInfo) -> str:
    return short_id(memory.origin) if memory.origin else "here"
