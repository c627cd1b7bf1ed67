"""remember, mem ls|show|rm, inbox: memories on this node."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvnet.api import MemoryCheck, MemoryInfo
from kvnet.cli.output import Json, nbytes_text, print_json, print_table, printable, seconds_text
from kvnet.cli.progress import layer_bar, waiting
from kvnet.client import Node
from kvnet.codec.presets import CODECS
from kvnet.errors import TextMismatch
from kvnet.identity.keys import short_id
from kvnet.texts import read_text

mem = typer.Typer(help="Memories in this node's store.", no_args_is_help=True)
inbox = typer.Typer(help="Memories that peers sent.", no_args_is_help=True)

Agent = Annotated[str | None, typer.Option(help="Only this agent's messages.")]


def remember(
    text: Annotated[str | None, typer.Argument(help="The text; - reads it from stdin.")] = None,
    file: Annotated[Path | None, typer.Option(help="Read this file instead.")] = None,
    name: Annotated[str, typer.Option(help="A name for the memory; it moves if already in use.")] = "",
    codec: Annotated[
        str, typer.Option(help=f"Keep it as one of {', '.join(CODECS)}; exact if not given.")
    ] = "",
    dtype: Annotated[str, typer.Option(help="Cast to float32, float16 or bfloat16 first.")] = "",
    compression: Annotated[
        str, typer.Option(help="none, lz4, zstd or split; the daemon's setting if not given.")
    ] = "",
    level: Annotated[int, typer.Option(min=0, max=19, help="Of zstd and split; 0 is the usual one.")] = 0,
    attention: Annotated[bool, typer.Option("--attention", help="Compute attention metadata too.")] = False,
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Zero heads of low entropy. They are the focused ones: it does damage."),
    ] = False,
    domain: Annotated[str, typer.Option(help="A word for people.")] = "",
    topic: Annotated[str, typer.Option(help="A word for people.")] = "",
    language: Annotated[str, typer.Option(help="A word for people, such as en.")] = "",
    keep_text: Annotated[
        bool | None,
        typer.Option(help="Keep the text beside the memory, here alone; the daemon's setting if not given."),
    ] = None,
    after: Annotated[
        str, typer.Option(help="Read on behind this memory, and keep the new text's part alone.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Let the model read a text and keep what it read as a memory."""
    if text == "-":
        text = read_text("-")
    memory: MemoryInfo | None = None
    with Node() as node, layer_bar("reading") as show:
        steps = node.remember_stream(
            text,
            file=file,
            name=name,
            codec=codec,
            dtype=dtype,
            compression=compression,
            level=level,
            attention=attention,
            prune=prune,
            domain=domain,
            topic=topic,
            language=language,
            keep_text=keep_text,
            after=after,
        )
        for step in steps:
            if isinstance(step, MemoryInfo):
                memory = step
            else:
                show(step.done, step.total)
    _print_memory(memory, as_json=as_json)


def calibrate(
    files: Annotated[list[Path], typer.Argument(help="Texts like those that will be remembered.")],
    as_json: Json = False,
) -> None:
    """Learn how to code this model's memories with `compact`; a few thousand tokens of text are enough."""
    with Node() as node, waiting("calibrating"):
        found = node.calibrate(*(read_text(str(file)) for file in files))
    if as_json:
        print_json(found)
        return
    how = "weighted by what its predictions depend on" if found.weighted else "by variance alone"
    print(
        f"{found.model}: {found.components} components from {found.tokens} tokens, {how}, "
        f"{nbytes_text(found.nbytes)} in {seconds_text(found.seconds)}"
    )


@mem.command("ls")
def mem_ls(
    everything: Annotated[bool, typer.Option("--all", help="Other codings made for sending, too.")] = False,
    as_json: Json = False,
) -> None:
    """List the memories of this node."""
    with Node() as node:
        found = node.memories(all=everything)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            *(m.id[:16], m.name, m.tokens, m.codec, nbytes_text(m.stored_nbytes), m.model, _origin(m)),
            m.created_at or "damaged",
            _behind(m),
        )
        for m in found
    ]
    columns = ("id", "name", "tokens", "codec", "size", "model", "from", "made at", "")
    print_table(columns, rows, empty="no memories yet; make one with `kvnet remember`")


@mem.command("show")
def mem_show(memory: str, as_json: Json = False) -> None:
    """Show a memory by id, start of an id, or name."""
    with Node() as node:
        found = node.show(memory)
    _print_memory(found, as_json=as_json)


@mem.command("check")
def mem_check(
    memory: str,
    text: Annotated[
        Path | None, typer.Option(help="The text (- is stdin), if it is not the one kept or told by it.")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=0, help="Compare so many slots, chosen at random; all of them if 0.")
    ] = 0,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the choice.")] = None,
    as_json: Json = False,
) -> None:
    """Compare a memory with what this node's model makes of its text, read now; exit status 5 if it differs.

    A slot is one position in one layer. An edit below what arithmetic and coding change is not found.
    """
    given = read_text(str(text)) if text else ""
    with Node() as node, waiting("reading its text"):
        found = node.check_memory(memory, text=given, samples=samples, seed=seed)
    if as_json:
        print_json(found)
    else:
        _print_check(found)
    if found.verdict != "agrees":
        raise typer.Exit(TextMismatch.exit_status)


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
    if memory.start_pos:
        print(_behind(memory))
    geometry = memory.header.geometry
    print(
        f"{memory.tokens} tokens, {memory.layers} layers of [1, {geometry.num_kv_heads}, {memory.tokens}, "
        f"{geometry.head_dim}] {geometry.dtype}, {nbytes_text(memory.nbytes)}, "
        f"stored as {memory.codec} in {nbytes_text(memory.stored_nbytes)}, read by {memory.model}"
    )


def _behind(memory: MemoryInfo) -> str:
    if memory.behind:
        return f"behind {memory.behind[:16]}"
    lacking = f"behind {memory.start_pos} tokens whose memory is not here"
    return lacking if memory.start_pos else ""


def _print_check(found: MemoryCheck) -> None:
    whose = f", from {printable(found.untrusted_source)}" if found.untrusted_source else ""
    print(f"{found.memory[:16]}{whose}: {found.verdict} (text {found.text_from})")
    if not found.samples:
        return
    agreeing = round(found.agreement * found.samples)
    print(
        f"{agreeing} of {found.samples} slots agree, worst error {found.worst_error:.2g}, "
        f"at most {found.tolerance:.2g} allowed"
    )
    if found.samples < found.slots:
        found_with = 1 - 0.99**found.samples
        print(
            f"of {found.slots} slots, seed {found.seed}; had one in a hundred been changed, this would have "
            f"met one with a chance of {found_with:.0%}"
        )


def _origin(memory: MemoryInfo) -> str:
    return short_id(memory.origin) if memory.origin else "here"
