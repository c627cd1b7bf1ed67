"""send, pull, ask, peers, peer add|rm: dealing with other nodes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kvnet.api import Answer, KvReport, PeerInfo, SendReport
from kvnet.cli.output import Json, nbytes_text, print_json, print_table, seconds_text
from kvnet.cli.progress import layer_bar
from kvnet.client import Node
from kvnet.codec.presets import CODECS
from kvnet.identity.keys import grouped
from kvnet.texts import read_text

peer = typer.Typer(help="Add and remove the nodes this node deals with.", no_args_is_help=True)


def send(
    memory: Annotated[str, typer.Argument(help="Id, start of an id, or name.")],
    to: Annotated[str, typer.Option(help="A peer, or one agent there: bob or bob/reviewer.")],
    note: Annotated[str, typer.Option(help="A few words that arrive with it.")] = "",
    agent: Annotated[str, typer.Option(help="Which agent here sends it.")] = "",
    codec: Annotated[
        str,
        typer.Option(
            help=f"One of {', '.join(CODECS)}, or port8 or port4, mapped here into the port of the peer's "
            "model; the daemon's setting if not given."
        ),
    ] = "",
    with_text: Annotated[
        bool, typer.Option("--with-text", help="Send the kept text too, for a model that needs it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Send a memory to a peer as signed chunks; returns when it is durable there."""
    report: SendReport | None = None
    with Node(agent=agent) as node, layer_bar(f"sending to {to}") as show:
        for step in node.send_stream(memory, to, note=note, codec=codec, with_text=with_text):
            if isinstance(step, SendReport):
                report = step
            else:
                show(step.chunks_done, step.chunks_total)
    _print_report(report, "to", as_json=as_json)


def pull(
    memory: Annotated[str, typer.Argument(help="The full id of the peer's memory.")],
    source: Annotated[str, typer.Option("--from", help="The peer that has it.")],
    as_json: Json = False,
) -> None:
    """Fetch a memory from a peer."""
    with Node() as node:
        report = node.pull(memory, source)
    _print_report(report, "from", as_json=as_json)


def ask(
    prompt: str,
    memory: Annotated[
        list[str] | None, typer.Option(help="Answer after this memory; repeatable, in this order.")
    ] = None,
    align: Annotated[
        str, typer.Option(help="For memories of other models: align, text or error; else as configured.")
    ] = "",
    text: Annotated[
        Path | None, typer.Option(help="Read this file first (- is stdin), instead of a memory.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="At most so many new tokens.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Sample from this share of the probability.")
    ] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; repeatable.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="For sampling.")] = 0,
    as_json: Json = False,
) -> None:
    """Answer a prompt, after memories, after a text that is read here, or after nothing."""
    answer: Answer | None = None
    with Node() as node:
        steps = node.ask_stream(
            prompt,
            memory or "",
            align=align,
            context=read_text(str(text)) if text else "",
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            stop=tuple(stop or ()),
            seed=seed,
        )
        for step in steps:
            if isinstance(step, Answer):
                answer = step
            elif not as_json:
                print(step, end="", flush=True)
    if answer is None:
        raise AssertionError("the daemon ended the generation without an answer")
    if as_json:
        print_json(answer)
        return
    print()
    print(kv_text(answer.kv), file=sys.stderr)


def peers(
    probe: Annotated[bool, typer.Option("--probe/--no-probe", help="Dial each added peer.")] = True,
    as_json: Json = False,
) -> None:
    """List added peers, and nodes that mDNS shows."""
    with Node() as node:
        found = node.peers(probe=probe)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            info.name or "-",
            info.node_id[:13],
            info.addresses[0] if info.addresses else "-",
            info.source or "-",
            info.model or "-",
            info.tier or "-",
            _state(info),
        )
        for info in found
    ]
    print_table(("name", "id", "address", "known by", "model", "tier", "state"), rows, empty="no peers yet")


@peer.command("add")
def peer_add(
    address: Annotated[str, typer.Argument(help="HOST:PORT; leave out to find it by mDNS.")] = "",
    node_id: Annotated[str, typer.Option("--id", help="The node's id, from `kvnet status` there.")] = "",
    name: Annotated[str, typer.Option(help="What to call it here; its own name if not given.")] = "",
    as_json: Json = False,
) -> None:
    """Add a node by its id, so that memories go to it and are taken from it."""
    with Node() as node:
        info = node.add_peer(address, node_id=node_id, name=name)
    if as_json:
        print_json(info)
    else:
        print(f"added {info.name} {grouped(info.node_id)}: {_state(info)}")


@peer.command("rm")
def peer_rm(peer_name: Annotated[str, typer.Argument(metavar="PEER")], as_json: Json = False) -> None:
    """Remove a peer by name or id; nothing is taken from it any more."""
    with Node() as node:
        info = node.remove_peer(peer_name)
    if as_json:
        print_json(info)
    else:
        print(f"removed {info.name}")


def kv_text(kv: KvReport) -> str:
    """The kv report on one line."""
    through = f" through {kv.map[:16]}" if kv.map else ""
    return (
        f"[kv {kv.tier}{through}: {kv.reused_tokens} tokens reused, {kv.recomputed_tokens} computed here, "
        f"first token after {seconds_text(kv.ttft_s)}, fallback {kv.fallback}]"
    )


def _print_report(report: SendReport | None, word: str, *, as_json: bool) -> None:
    if report is None:
        raise AssertionError("the daemon ended the transfer without a report")
    if as_json:
        print_json(report)
        return
    resumed = f", {report.resumed_chunks} were there already" if report.resumed_chunks else ""
    print(
        f"{report.memory[:16]} {word} {report.peer}: {report.chunks} signed chunks{resumed}, "
        f"{report.codec}, {nbytes_text(report.wire_bytes)} in {seconds_text(report.seconds)}, "
        f"tier {report.tier}"
    )


def _state(info: PeerInfo) -> str:
    return f"answers in {seconds_text(info.latency_s)}" if info.reachable else info.problem or "not probed"
