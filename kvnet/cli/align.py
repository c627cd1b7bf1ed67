"""align ls, show, export, import, rm, port, fit, eval: maps and ports on this node and as files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from kvnet.alignment import GateResult
from kvnet.api import AlignmentInfo, ArmReport, Evaluation
from kvnet.cli.output import Json, nbytes_text, print_json, print_table, printable, table_lines
from kvnet.cli.progress import layer_bar, waiting
from kvnet.client import Node
from kvnet.identity.keys import grouped, short_id

align = typer.Typer(help="Maps and ports: what makes a memory work in another model.", no_args_is_help=True)

AlignmentId = Annotated[str, typer.Argument(metavar="ID", help="Id of a map or port, or the start of it.")]
Peer = Annotated[str, typer.Option(help="The peer whose model reads the texts.")]
Source = Annotated[str, typer.Option(help="Or a second model, loaded here for it.", metavar="MODEL")]
_SHORT_ID_CHARS = 16
_SHORT_DIGEST_CHARS = 19
_LABEL_WIDTH = 9


@align.command("ls")
def align_ls(as_json: Json = False) -> None:
    """List the maps and ports of this node."""
    with Node() as node:
        found = node.alignments()
    if as_json:
        print_json(found)
        return
    columns = ("id", "kind", "from -> to", "gap recovered", "admitted", "signed by", "age")
    rows = [_row(info) for info in found]
    print_table(
        columns, rows, empty="no maps and no ports yet; fit one, or take one in with `kvnet align import`"
    )


@align.command("show")
def align_show(alignment: AlignmentId, as_json: Json = False) -> None:
    """Show a map or port, and what its gate measured."""
    with Node() as node:
        found = node.show_alignment(alignment)
    if as_json:
        print_json(found)
    else:
        print("\n".join(map(printable, _lines(found))))


@align.command("export")
def align_export(
    alignment: AlignmentId,
    path: Annotated[Path, typer.Argument(help="A new file, usually NAME.safetensors.")],
    as_json: Json = False,
) -> None:
    """Write a map or port to a file, under the signature of the node that made it."""
    with Node() as node:
        report = node.export_alignment(alignment, path.absolute())
    if as_json:
        print_json(report)
    else:
        print(f"{report.id} in {path}: {nbytes_text(report.nbytes)}, signed by {grouped(report.signed_by)}")


@align.command("import")
def align_import(
    path: Annotated[Path, typer.Argument(help="A file that `kvnet align export` wrote.")],
    trust: Annotated[
        bool, typer.Option("--trust", help="Take it in although its signer is no peer of this node.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Verify a map's or port's file and keep it on this node."""
    with Node() as node:
        found = node.import_alignment(path, trust=trust)
    if as_json:
        print_json(found)
        return
    print(
        printable(
            f"{found.id}: {_way(found)}, {nbytes_text(found.nbytes)}, signed by {grouped(found.signed_by)}"
        )
    )
    if found.gate is not None and not found.gate.admitted:
        print(printable(f"its gate did not admit it, so it is kept but never chosen: {found.gate.reason}"))
    if found.problem:
        print(found.problem)


@align.command("rm")
def align_rm(alignment: AlignmentId, as_json: Json = False) -> None:
    """Remove a map or port from this node."""
    with Node() as node:
        gone = node.remove_alignment(alignment)
    if as_json:
        print_json(gone)
    else:
        print(f"removed {gone.id}")


@align.command("port")
def align_port(
    rank: Annotated[int | None, typer.Option(min=1, help="Coordinates a slot; 64 if not given.")] = None,
    as_json: Json = False,
) -> None:
    """Make the hosted model's port: the few coordinates in which it takes what others mapped."""
    with Node() as node, waiting("making a port"):
        made = node.make_port(rank=rank or 0)
    if as_json:
        print_json(made)
        return
    print(
        printable(f"{made.id}: port of {made.receiver}, {made.rank} coordinates, {nbytes_text(made.nbytes)}")
    )


@align.command("fit")
def align_fit(
    peer: Peer = "",
    source: Source = "",
    corpus: Annotated[
        Path | None, typer.Option(help="A text file, blank lines between paragraphs; else shipped texts.")
    ] = None,
    lessons: Annotated[int | None, typer.Option(min=1, help="At most so many texts.")] = None,
    no_anchors: Annotated[
        bool, typer.Option("--no-anchors", help="Map every slot, not only those that answers read.")
    ] = False,
    rows: Annotated[bool, typer.Option("--rows", help="End in the model's rows, not in its port.")] = False,
    as_json: Json = False,
) -> None:
    """Fit a map from another model to the hosted one; broken off, the same command goes on from there."""
    made: AlignmentInfo | None = None
    with Node() as node, layer_bar("fitting") as show:
        steps = node.fit_alignment_stream(
            peer=peer,
            source=source,
            corpus=corpus or "",
            lessons=lessons or 0,
            no_anchors=no_anchors,
            rows=rows,
        )
        try:
            for step in steps:
                if isinstance(step, AlignmentInfo):
                    made = step
                else:
                    show(step.done, step.total)
        except KeyboardInterrupt:
            print("broken off; the same command goes on from there", file=sys.stderr)
            raise
    if made is None:
        raise AssertionError("the daemon ended the fit without a map")
    if as_json:
        print_json(made)
    else:
        print("\n".join(map(printable, _lines(made))))


@align.command("eval")
def align_eval(
    alignment: AlignmentId,
    peer: Peer = "",
    source: Source = "",
    questions: Annotated[int | None, typer.Option(min=1, help="About so many; 320 if not given.")] = None,
    as_json: Json = False,
) -> None:
    """Examine a map on facts it never saw, beside the text, nothing, and memories that carry nothing."""
    found: Evaluation | None = None
    with Node() as node, layer_bar("examining") as show:
        for step in node.evaluate_alignment_stream(
            alignment, peer=peer, source=source, questions=questions or 0
        ):
            if isinstance(step, Evaluation):
                found = step
            else:
                show(step.done, step.total)
    if found is None:
        raise AssertionError("the daemon ended the examination without a table")
    if as_json:
        print_json(found)
        return
    print(printable(f"{found.alignment}: {found.source} -> {found.receiver}"))
    columns = ("arm", "recall", "gap recovered", "95 % interval", "KL, nats", "questions")
    rows = [*map(_arm_row, found.arms), *((arm, "n/a", "-", "-", "-", "-") for arm in found.not_applicable)]
    print_table(columns, rows, empty="nothing was asked")


def age_text(created_at: str, now: datetime) -> str:
    """How long ago a time of the form YYYY-MM-DDThh:mm:ssZ was, for people: 5 min, 3 h, 2 d."""
    minutes = max(0, int((now - datetime.fromisoformat(created_at)).total_seconds())) // 60
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // (24 * 60)} d"


def _arm_row(arm: ArmReport) -> tuple[str, ...]:
    gap = arm.gap_recovered
    return (
        arm.arm,
        f"{arm.recall:.3f}",
        f"{gap.value:.3f}",
        f"{gap.low:.3f} to {gap.high:.3f}",
        f"{arm.kl:.4f}",
        str(arm.num_questions),
    )


def _row(info: AlignmentInfo) -> tuple[str, ...]:
    if not info.kind:
        return (info.id[:_SHORT_ID_CHARS], "damaged", info.problem, "-", "-", "-", "-")
    return (
        info.id[:_SHORT_ID_CHARS],
        info.kind,
        _way(info),
        f"{info.gate.gap_recovered.value:.2f}" if info.gate else "-",
        ("yes" if info.gate.admitted else "no") if info.gate else "-",
        "kvnet" if info.packaged else short_id(info.signed_by),
        age_text(info.created_at, datetime.now(UTC)),
    )


def _way(info: AlignmentInfo) -> str:
    return f"{info.source or 'any'} -> {info.receiver}"


def _lines(info: AlignmentInfo) -> Iterator[str]:
    yield info.id
    if not info.kind:
        yield f"damaged: {info.problem}; remove it with `kvnet align rm` and import it again"
        return
    if info.source:
        yield _fact("from", f"{info.source}, {_short(info.source_digest)}")
    yield _fact("to", f"{info.receiver}, {_short(info.receiver_digest)}")
    if info.gate is None:
        yield _fact("rank", f"{info.rank} coordinates a slot")
    else:
        yield from _map_lines(info)
    yield _fact("corpus", f"{_short(info.corpus_digest)}, {_corpus_size(info)}")
    made_by = "comes with kvnet" if info.packaged else f"signed by {grouped(info.signed_by)}"
    yield _fact("made", f"{info.created_at}, {made_by}, {nbytes_text(info.nbytes)}")
    if info.problem:
        yield _fact("problem", info.problem)
    if info.gate is not None:
        yield from _gate_lines(info.gate)


def _map_lines(info: AlignmentInfo) -> Iterator[str]:
    ends_in = f"{info.port}, {info.rank} coordinates a slot" if info.port else "none, it ends in rows"
    yield _fact("port", ends_in)
    yield _fact("method", f"{info.method}, lambda {info.relative_lambda:g}, slots paired by {info.pairing}")
    closing = f", after the closing text {info.closing!r}" if info.closing else ""
    yield _fact("window", f"slots {info.window[0]:+d} to {info.window[1]:+d}{closing}")
    yield _fact("layers", f"{info.layer_strategy}: {' '.join(map(str, info.source_layers)) or 'all'}")


def _gate_lines(gate: GateResult) -> Iterator[str]:
    yield _fact("gate", f"{'admitted' if gate.admitted else 'not admitted'}: {gate.reason}")
    gap = gate.gap_recovered
    rows = (
        ("recall, text read", f"{gate.recall_text:.3f}"),
        ("recall, mapped memory", f"{gate.recall_mapped:.3f}"),
        ("recall, no memory", f"{gate.recall_none:.3f}"),
        ("gap recovered", f"{gap.value:.3f} ({gap.low:.3f} to {gap.high:.3f})"),
        ("gap of other texts' memories", f"{gate.gap_shuffled:.3f}"),
        ("KL to text read, nats", f"{gate.kl:.4f}"),
        ("attention cosine", f"{gate.attention_cosine:.4f}"),
        ("questions, facts", f"{gate.num_questions}, {gate.num_facts}"),
    )
    for line in table_lines(("measured on held-out facts", ""), rows):
        yield f"  {line}"


def _corpus_size(info: AlignmentInfo) -> str:
    return (
        f"{info.num_contexts} texts, {info.num_rows} rows" if info.num_contexts else f"{info.num_rows} rows"
    )


def _short(digest: str) -> str:
    return f"{digest[:_SHORT_DIGEST_CHARS]}…"


def _fact(label: str, value: str) -> str:
    return f"{label:{_LABEL_WIDTH}}{value}"
