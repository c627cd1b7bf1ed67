"""The `kvnet` command: the table of commands, and where errors become exit statuses."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from kvnet.cli import (
    align,
    demo,
    doctor,
    estimate,
    exchange,
    exp,
    explain,
    files,
    inspect_model,
    log,
    memory,
    node,
    outbox,
    pair,
    peers,
)
from kvnet.cli.output import print_error
from kvnet.errors import KvnetError
from kvnet.version import VERSION

app = typer.Typer(
    name="kvnet",
    help="One language model hands what it has read to another.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(VERSION)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """One language model hands what it has read to another."""


app.command()(node.up)
app.command()(node.down)
app.command()(node.status)
app.command()(node.serve)
app.command()(memory.remember)
memory.mem.command("export")(files.mem_export)
memory.mem.command("import")(files.mem_import)
app.add_typer(memory.mem, name="mem")
app.add_typer(memory.inbox, name="inbox")
app.command()(exchange.send)
app.command()(exchange.pull)
app.command()(estimate.estimate)
app.add_typer(outbox.outbox, name="outbox")
app.add_typer(outbox.receipt, name="receipt")
app.command()(exchange.ask)
app.command()(explain.explain)
app.command()(peers.peers)
app.add_typer(peers.peer, name="peer")
app.command()(pair.pair)
app.command()(files.pack)
app.command()(files.unpack)
app.command()(files.verify)
app.command()(files.inspect)
app.command()(memory.calibrate)
app.add_typer(align.align, name="align")
app.add_typer(exp.exp, name="exp")
app.command()(log.log)
app.command()(doctor.doctor)
app.command()(demo.demo)
app.command("inspect-model")(inspect_model.inspect_model)


def main() -> None:
    """Run a command; what kvnet raises on purpose is one sentence and a status, never a traceback."""
    try:
        app()
    except KvnetError as error:
        print_error(error, as_json="--json" in sys.argv)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


if __name__ == "__main__":
    main()
