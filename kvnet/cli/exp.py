"""exp: runs of experiments as folders of logs; everything that is shown is computed from them. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvnet.cli.exp_run import run
from kvnet.cli.exp_text import comparison_lines, diff_lines, failure_lines, rows_lines
from kvnet.cli.output import Json, print_json, print_table, printable
from kvnet.errors import RequestError
from kvnet.experiments.folder import DIGESTS, RunFolder, find_run, find_runs
from kvnet.experiments.tracker import default_runs_dir

# What needs DuckDB, numpy or matplotlib is imported by the command that does: the others start without them.
exp = typer.Typer(help="Run experiments from recipes, and look at what they logged.", no_args_is_help=True)
exp.command("run")(run)

Runs = Annotated[
    Path | None, typer.Option("--runs", help="The folder with the runs; KVNET_RUNS, or ./runs if not given.")
]
OneRun = Annotated[
    str, typer.Argument(help="A run: a folder, its name, how the name starts or ends, or `last`.")
]
SomeRuns = Annotated[list[str] | None, typer.Argument(help="Runs, as for `exp report`; all if not given.")]


@exp.command("ls")
def list_runs(runs: Runs = None, as_json: Json = False) -> None:
    """List runs, oldest first: what each asks and how far it is."""
    listed = []
    for path in find_runs(runs or default_runs_dir()):
        folder = RunFolder.open(path)
        done, failed, status = folder.progress()
        told = folder.manifest
        listed.append(
            {
                "run": path.name,
                "protocol": told.protocol,
                "question": told.question,
                "done": done,
                "total": told.total_cells,
                "failed": failed,
                "status": "frozen" if (path / DIGESTS).exists() else status,
                "created": told.created,
            }
        )
    if as_json:
        print_json(listed)
        return
    columns = ("run", "done", "failed", "status", "question")
    rows = [
        (row["run"], f"{row['done']}/{row['total']}", row["failed"], row["status"], row["question"])
        for row in listed
    ]
    print_table(columns, rows, empty="no runs here; `kvnet exp run structure` makes one")


@exp.command()
def table(
    names: SomeRuns = None,
    metric: Annotated[list[str] | None, typer.Option(help="Only this metric; repeatable.")] = None,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Every arm of the runs, controls included, with n and 95 % intervals."""
    from kvnet.experiments.table import make_table

    made = make_table(_paths(names, runs))
    if as_json:
        print_json(made)
        return
    for note in made.notes:
        print(printable(note))
    if made.fixed:
        print(", ".join(f"{name} {value}" for name, value in made.fixed.items()))
    lines = rows_lines(made, metric or made.metrics)
    print("\n".join(lines) if lines else "no measurements yet")
    for block in (comparison_lines(made), failure_lines(made)):
        if block:
            print("\n" + "\n".join(block))


@exp.command()
def plot(
    names: SomeRuns = None,
    metric: Annotated[list[str] | None, typer.Option(help="Only this metric; repeatable.")] = None,
    out: Annotated[Path, typer.Option(help="The folder for the PNGs.")] = Path("plots"),
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Draw each metric over what varies, with intervals, as PNGs."""
    from kvnet.experiments.plot import make_figures
    from kvnet.experiments.table import make_table

    paths = [str(figure.save(out)) for figure in make_figures(make_table(_paths(names, runs)), metric or ())]
    if as_json:
        print_json(paths)
        return
    print("\n".join(paths) if paths else "nothing to compare: no metric has two rows")


@exp.command()
def sql(
    query: Annotated[str, typer.Argument(help="DuckDB's SQL; tables are measurements, marks, cells, runs.")],
    names: SomeRuns = None,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Query the logs themselves: marks has a row for every number that was measured."""
    from kvnet.experiments.sql import query as ask

    columns, rows = ask(_paths(names, runs), query)
    if as_json:
        print_json([{name: _plain(value) for name, value in zip(columns, row, strict=True)} for row in rows])
        return
    print_table(columns, rows, empty="no rows")


@exp.command()
def diff(
    first: OneRun,
    second: OneRun,
    everything: Annotated[bool, typer.Option("--all", help="Also the figures that do not differ.")] = False,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Compare two runs: how they were made, and the figures whose difference is not noise."""
    from kvnet.experiments.diff import diff_runs

    found = diff_runs(_path(first, runs), _path(second, runs))
    if as_json:
        print_json(found)
        return
    print("\n".join(diff_lines(found, everything=everything)))


@exp.command()
def report(
    names: Annotated[
        list[str] | None, typer.Argument(help="Runs, each as for `exp diff`; the last if not given.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All runs that are there.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Where the page goes; RUN.html, or runs.html for several.")
    ] = None,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Write one page that holds everything: figures, tables to sort, and the command under each."""
    from kvnet.experiments.report import make_page
    from kvnet.experiments.table import make_table

    if everything and names:
        raise RequestError("--all is every run; leave out the names")
    paths = _paths([] if everything else names or ["last"], runs)
    target = html or Path(f"{paths[0].name if len(paths) == 1 else 'runs'}.html")
    page = make_page([make_table([path]) for path in paths])
    try:
        target.write_text(page, encoding="utf-8")
    except OSError as exc:
        raise RequestError(f"{target}: cannot be written ({exc.strerror}); name another with --html") from exc
    if as_json:
        print_json({"runs": [path.name for path in paths], "html": str(target)})
        return
    print(target)


@exp.command()
def export(
    names: SomeRuns = None,
    to: Annotated[str, typer.Option(help="parquet or notebook.")] = "parquet",
    out: Annotated[Path | None, typer.Option(help="A new file; named after the run if not given.")] = None,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Write runs as Parquet, one row a number, or as a notebook that reads their logs."""
    from kvnet.experiments.export import write_notebook, write_parquet

    paths = _paths(names, runs)
    if to not in ("parquet", "notebook"):
        raise RequestError(f"--to {to:.40}: wanted parquet or notebook")
    suffix = "parquet" if to == "parquet" else "ipynb"
    target = out or Path(f"{paths[0].name if len(paths) == 1 else 'runs'}.{suffix}")
    if to == "parquet":
        write_parquet(paths, target)
    else:
        write_notebook(paths, target)
    if as_json:
        print_json({"runs": [path.name for path in paths], "file": str(target)})
        return
    print(target)


@exp.command()
def freeze(
    name: OneRun,
    archive: Annotated[
        Path | None, typer.Option("--to", help="Also a zip, the same bytes each time.")
    ] = None,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Lock a run under its digest; a run that is locked already is checked."""
    from kvnet.experiments.freeze import freeze as lock

    done = lock(_path(name, runs), archive)
    if as_json:
        print_json(done)
        return
    print(f"{done.run}: {'as it was frozen' if done.was_frozen else 'frozen'}, sha256 {done.digest}")
    if done.archive:
        print(f"{done.archive}: sha256 {done.archive_digest}")


@exp.command()
def join(
    first: Annotated[Path, typer.Argument(help="The log/events.jsonl of one node.")],
    second: Annotated[Path, typer.Argument(help="That of the other.")],
    name: Annotated[str, typer.Option(help="What the run is called.")] = "transfers",
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Make one run of two nodes' event logs, joined by transfer id."""
    from kvnet.experiments.join import join_logs

    command = f"kvnet exp join {first} {second}"
    made = join_logs((first, second), runs or default_runs_dir(), name=name, command=command)
    if as_json:
        print_json({"run": str(made)})
        return
    print(made)


def _path(name: str, runs: Path | None) -> Path:
    return find_run(runs or default_runs_dir(), name)


def _paths(names: list[str] | None, runs: Path | None) -> list[Path]:
    found = [_path(name, runs) for name in names] if names else find_runs(runs or default_runs_dir())
    if not found:
        raise RequestError(
            f"{runs or default_runs_dir()}: no runs are there; "
            "`kvnet exp run` makes one, --runs names another folder"
        )
    return found


def _plain(value: object) -> object:
    return value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)
