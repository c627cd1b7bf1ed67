"""align ls, show, export, import, rm, port, fit, train, eval: maps and ports on this node and as files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from kvnet.api import AlignmentInfo, ArmReport, Evaluation, TrainProgress, TrainReport
from kvnet.cli.alignment_text import info_lines, info_row, way_of
from kvnet.cli.output import Json, nbytes_text, print_json, print_table, printable
from kvnet.cli.progress import last_of, layer_bar, waiting
from kvnet.client import Node
from kvnet.identity.keys import grouped

align = typer.Typer(help="Maps and ports: what makes a memory work in another model.", no_args_is_help=True)

AlignmentId = Annotated[str, typer.Argument(metavar="ID", help="Id of a map or port, or the start of it.")]
Peer = Annotated[str, typer.Option(help="The peer whose model reads the texts.")]
Source = Annotated[str, typer.Option(help="Or a second model, loaded here for it.", metavar="MODEL")]
Corpus = Annotated[
    Path | None, typer.Option(help="A text file, blank lines between paragraphs; else shipped texts.")
]
Lessons = Annotated[int | None, typer.Option(min=1, help="At most so many texts.")]


@align.command("ls")
def align_ls(as_json: Json = False) -> None:
    """List the maps and ports of this node."""
    with Node() as node:
        found = node.alignments()
    if as_json:
        print_json(found)
        return
    columns = ("id", "kind", "from -> to", "gap recovered", "admitted", "signed by", "age")
    rows = [info_row(info) for info in found]
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
        print("\n".join(map(printable, info_lines(found))))


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
            f"{found.id}: {way_of(found)}, {nbytes_text(found.nbytes)}, signed by {grouped(found.signed_by)}"
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
    corpus: Corpus = None,
    lessons: Lessons = None,
    no_anchors: Annotated[
        bool, typer.Option("--no-anchors", help="Map every slot, not only those that answers read.")
    ] = False,
    rows: Annotated[bool, typer.Option("--rows", help="End in the model's rows, not in its port.")] = False,
    layers: Annotated[
        str, typer.Option(help="Source layers: linear, learned or skip; all if not given.", metavar="NAME")
    ] = "",
    head_local: Annotated[
        bool, typer.Option("--head-local", help="With --rows: predict a head from its namesake alone.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fit a map from another model to the hosted one; broken off, the same command goes on from there."""
    with Node() as node, layer_bar("fitting") as show, _telling_of_resume():
        steps = node.fit_alignment_stream(
            peer=peer,
            source=source,
            corpus=corpus or "",
            lessons=lessons or 0,
            no_anchors=no_anchors,
            rows=rows,
            layers=layers,
            head_local=head_local,
        )
        made = last_of(steps, AlignmentInfo, show)
    if as_json:
        print_json(made)
    else:
        print("\n".join(map(printable, info_lines(made))))


@align.command("train")
def align_train(
    alignment: AlignmentId,
    peer: Peer = "",
    source: Source = "",
    corpus: Corpus = None,
    lessons: Lessons = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Up to this step; 150 if not given.")] = None,
    plots: Annotated[
        Path | None, typer.Option(help="A folder for a picture of the curve; needs matplotlib.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train what a map's closed form lacks; broken off, the same command goes on from there."""
    with Node() as node, layer_bar("training") as show, _telling_of_resume():
        taken = node.train_alignment_stream(
            alignment,
            peer=peer,
            source=source,
            corpus=corpus or "",
            lessons=lessons or 0,
            steps=steps or 0,
            plots=plots or "",
        )
        report = last_of(taken, TrainReport, show, _curve_teller())
    if plots and not report.plot:
        print(f"no picture could be written to {plots}; the daemon's log tells why", file=sys.stderr)
    if as_json:
        print_json(report)
    else:
        print("\n".join(map(printable, _outcome(report))))


@align.command("eval")
def align_eval(
    alignment: AlignmentId,
    peer: Peer = "",
    source: Source = "",
    questions: Annotated[int | None, typer.Option(min=1, help="About so many; 320 if not given.")] = None,
    as_json: Json = False,
) -> None:
    """Examine a map on facts it never saw, beside the text, nothing, and memories that carry nothing."""
    with Node() as node, layer_bar("examining") as show:
        steps = node.evaluate_alignment_stream(alignment, peer=peer, source=source, questions=questions or 0)
        found = last_of(steps, Evaluation, show)
    if as_json:
        print_json(found)
        return
    print(printable(f"{found.alignment}: {found.source} -> {found.receiver}"))
    columns = ("arm", "recall", "gap recovered", "95 % interval", "KL, nats", "questions")
    rows = [*map(_arm_row, found.arms), *((arm, "n/a", "-", "-", "-", "-") for arm in found.not_applicable)]
    print_table(columns, rows, empty="nothing was asked")


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


def _outcome(report: TrainReport) -> Iterator[str]:
    if report.trained is None:
        yield f"training did not beat the closed form {report.closed_form}, which stays; nothing was signed"
    else:
        yield from info_lines(report.trained)
    if report.plot:
        yield f"curve in {report.plot}"


def _curve_teller() -> Callable[[TrainProgress], None]:
    """Tells each point of the curve once, on stderr."""
    told: set[int] = set()

    def tell(step: TrainProgress) -> None:
        point = step.point
        if point is None or point.step in told:
            return
        told.add(point.step)
        line = (
            f"step {point.step}: held-out recall {point.held_out_recall:.3f}, KL {point.held_out_kl:.4f} nats"
        )
        print(line, file=sys.stderr, flush=True)

    return tell


@contextmanager
def _telling_of_resume() -> Iterator[None]:
    """Around what the daemon can take up again: Ctrl-C loses nothing, and that is said."""
    try:
        yield
    except KeyboardInterrupt:
        print("broken off; the same command goes on from there", file=sys.stderr)
        raise
