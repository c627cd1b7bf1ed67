"""send, pull, ask: memories that go to other nodes, come from them, and are asked about."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kvnet.api import Answer, KvReport, SendReport
from kvnet.cli.output import Json, nbytes_text, print_json, print_table, printable, seconds_text
from kvnet.cli.progress import layer_bar
from kvnet.client import Node
from kvnet.codec.presets import CODECS
from kvnet.errors import RequestError
from kvnet.texts import read_text


def send(
    to: Annotated[
        str, typer.Option(help="A peer, an agent there, or several: bob, bob/reviewer, bob,carol.")
    ],
    memory: Annotated[str, typer.Argument(help="Id, start of an id, or name.")] = "",
    text: Annotated[
        Path | None,
        typer.Option(help="Read this file (- is stdin) and send each layer as soon as it is read."),
    ] = None,
    name: Annotated[str, typer.Option(help="With --text: what its memory is called here.")] = "",
    note: Annotated[str, typer.Option(help="A few words that arrive with it.")] = "",
    agent: Annotated[str, typer.Option(help="Which agent here sends it.")] = "",
    codec: Annotated[
        str,
        typer.Option(
            help=f"One of {', '.join(CODECS)}, or port8 or port4, mapped here into the port of the peer's "
            "model; the daemon's setting if not given."
        ),
    ] = "",
    mode: Annotated[
        str,
        typer.Option(
            help="transfer; text, which the peer reads; split: it reads the head while the tail arrives; "
            "or auto, as `kvnet estimate` says."
        ),
    ] = "",
    with_text: Annotated[
        bool, typer.Option("--with-text", help="Send the kept text too, for a model that needs it.")
    ] = False,
    wait_for_peer: Annotated[
        bool, typer.Option("--wait-for-peer", help="Where the peer is off, return once it was delivered.")
    ] = False,
    no_queue: Annotated[
        bool, typer.Option("--no-queue", help="Where the peer is off, fail: nothing waits in the outbox.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Send a memory to a peer as signed chunks; returns when it is durable there.

    Where the peer is off, or others wait for it, the memory waits in the outbox, which sends it in its turn.
    """
    if bool(memory) is (text is not None):
        raise RequestError("send: give a memory, or --text FILE to read, and not both")
    if_off = _if_off(wait=wait_for_peer, fail=no_queue)
    words = read_text(str(text)) if text else ""
    reports: list[SendReport] = []
    with Node(agent=agent) as node, layer_bar(f"sending to {to}") as show:
        steps = node.send_stream(
            memory,
            to,
            note=note,
            codec=codec,
            with_text=with_text,
            if_off=if_off,
            text=words,
            name=name,
            mode=mode,
        )
        for step in steps:
            if isinstance(step, SendReport):
                reports.append(step)
            else:
                show(step.chunks_done, step.chunks_total)
    if "," in to:
        _print_reports(reports, as_json=as_json)
    else:
        _print_report(reports[0] if reports else None, "to", as_json=as_json)


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
    peer: Annotated[
        str,
        typer.Option(
            help="Let this peer read the --text, or send its --memory, and answer while that arrives."
        ),
    ] = "",
    codec: Annotated[str, typer.Option(help="With --peer: in which codec it sends.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="At most so many new tokens.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Sample from this share of the probability.")
    ] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; repeatable.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="For sampling.")] = 0,
    stream_to: Annotated[
        str, typer.Option(help="Let this peer have what comes of it, while it is generated.")
    ] = "",
    name: Annotated[
        str, typer.Option(help="With --stream-to: what the newest of it is called here, and NODE/NAME there.")
    ] = "",
    verify_text: Annotated[
        bool,
        typer.Option("--verify-text", help="Refuse a memory that is not what the model makes of its text."),
    ] = False,
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
            peer=peer,
            codec=codec,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            stop=tuple(stop or ()),
            seed=seed,
            stream_to=stream_to,
            name=name,
            verify_text=verify_text,
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
    if answer.kv.untrusted_source:
        print(f"[untrusted: read what came from {printable(answer.kv.untrusted_source)}]", file=sys.stderr)
    if answer.memory:
        lacking = f"; {answer.live_problem}" if answer.live_problem else ""
        print(f"[live memory {answer.memory[:16]} at {stream_to} too{lacking}]", file=sys.stderr)


def kv_text(kv: KvReport) -> str:
    """The kv report on one line."""
    through = f" through {kv.map[:16]}" if kv.map else ""
    return (
        f"[kv {kv.tier}{through}: {kv.reused_tokens} tokens reused, {kv.recomputed_tokens} computed here, "
        f"first token after {seconds_text(kv.ttft_s)}, fallback {kv.fallback}]"
    )


def _if_off(*, wait: bool, fail: bool) -> str:
    if wait and fail:
        raise RequestError("send: --wait-for-peer and --no-queue contradict each other; give one")
    return "wait" if wait else "fail" if fail else "queue"


def _print_reports(reports: list[SendReport], *, as_json: bool) -> None:
    """A line for each of several receivers, and status 1 where one of them was not served."""
    if as_json:
        for report in reports:
            print_json(report)
    else:
        columns = ("peer", "chunks", "there already", "uploaded", "time", "tier", "")
        rows = [
            (
                *(report.peer, report.chunks, report.resumed_chunks, nbytes_text(report.wire_bytes)),
                *(seconds_text(report.seconds), report.tier or "-"),
                f"waits as {report.queued}" if report.queued else printable(report.problem),
            )
            for report in reports
        ]
        print_table(columns, rows, empty="nobody was sent to")
        uploaded = nbytes_text(sum(report.wire_bytes for report in reports))
        print(f"{uploaded} uploaded for {len(reports)} receivers")
    if any(report.problem and not report.queued for report in reports):
        raise typer.Exit(1)


def _print_report(report: SendReport | None, word: str, *, as_json: bool) -> None:
    if report is None:
        raise AssertionError("the daemon ended the transfer without a report")
    if as_json:
        print_json(report)
        return
    if report.queued:
        print(
            f"{report.memory[:16]} waits for {report.peer} as {report.queued}, and is sent as soon as it can "
            f"be (`kvnet outbox ls`): {printable(report.problem)}"
        )
        return
    if report.mode:
        print(f"mode {report.mode}, estimated {seconds_text(report.predicted_s)}")
    resumed = f", {report.resumed_chunks} were there already" if report.resumed_chunks else ""
    print(
        f"{report.memory[:16]} {word} {report.peer}: {report.chunks} signed chunks{resumed}, "
        f"{report.codec}, {nbytes_text(report.wire_bytes)} in {seconds_text(report.seconds)}, "
        f"tier {report.tier}"
    )
