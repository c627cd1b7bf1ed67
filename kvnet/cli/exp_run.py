"""exp run: start the process that measures, show how far it is, end as it ends."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from kvnet.cli.output import Json, print_error, print_json
from kvnet.cli.progress import layer_bar
from kvnet.errors import CellsFailed, OperatorError, RequestError, error_from_code
from kvnet.experiments.folder import RunFolder, find_run
from kvnet.experiments.job import CellDone, Job, RunDone, parse_answer, parse_error
from kvnet.experiments.recipe import Recipe
from kvnet.experiments.tracker import default_runs_dir
from kvnet.extras import require_node_extra

_PLACES = ("processes", "ray")


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or a .toml file.")] = "",
    runs: Annotated[
        Path | None, typer.Option("--runs", help="Where runs go; KVNET_RUNS, or ./runs if not given.")
    ] = None,
    sweep: Annotated[
        list[str] | None, typer.Option(metavar="KEY=A,B,C", help="Take each value in turn; repeatable.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=0, help="How many seeds; the recipe's if not given.")] = 0,
    task: Annotated[Path | None, typer.Option(help="Your own (context, question, answer), JSONL.")] = None,
    resume: Annotated[str, typer.Option(metavar="RUN", help="Go on with a run that was cut short.")] = "",
    on: Annotated[str, typer.Option(help="processes, or ray for a cluster that runs.")] = "processes",
    workers: Annotated[int, typer.Option(min=1, help="Cells at a time.")] = 1,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few lessons: whether it runs, not figures.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure what a recipe asks, cell by cell, into a new run; with --json, end with what it found."""
    require_node_extra()
    job = _job(recipe, runs or default_runs_dir(), sweep or [], seeds, task, resume, on, workers, quick)
    done = _measure(job, recipe or resume)
    if as_json:
        print(done.run, file=sys.stderr)
    else:
        print(f"{done.run}; `kvnet exp table {Path(done.run).name}` shows it")
    error = _error_of(done) if done.failed else None
    if error is not None:
        print_error(error, as_json=False)
    if as_json:  # one document and the last line, whatever failed
        summary = RunFolder.open(Path(done.run)).summary()
        found = dict(summary.values) if summary else {"run": done.run, "failed": done.failed}
        told = {"error": {"code": error.code, "message": error.message, "details": {}}} if error else {}
        print_json({**found, **told})
    if error is not None:
        raise typer.Exit(error.exit_status)


def _error_of(done: RunDone) -> CellsFailed:
    return CellsFailed(
        f"{Path(done.run).name}: cells that failed: {done.failed}, the others are measured; "
        "`kvnet exp table` shows why, `kvnet exp run --resume` tries them again"
    )


def _job(
    recipe: str,
    runs_dir: Path,
    sweep: list[str],
    seeds: int,
    task: Path | None,
    resume: str,
    on: str,
    workers: int,
    quick: bool,
) -> Job:
    """What the flags ask, as far as it can be refused without loading a model."""
    if on not in _PLACES:
        raise RequestError(f"--on {on:.40}: wanted {' or '.join(_PLACES)}")
    command = shlex.join(["kvnet", *sys.argv[1:]])
    if resume:
        if recipe or sweep or seeds or task or quick:
            raise RequestError(
                "--resume goes on with what the run's manifest says; leave out the recipe and its flags"
            )
        path = find_run(runs_dir, resume)
        return Job("", runs_dir=str(runs_dir), resume=str(path), on=on, workers=workers, command=command)
    loaded = Recipe.load(recipe)
    points = loaded.parse_sweep(sweep)
    if task is not None:
        points["task"] = [_own_task(loaded, task)]
    loaded.cells(points)
    return Job(
        recipe=recipe,
        sweep=points,
        seeds=tuple(range(seeds)) or None,
        runs_dir=str(runs_dir),
        on=on,
        workers=workers,
        quick=quick,
        command=command,
    )


def _own_task(recipe: Recipe, task: Path) -> str:
    """The file as a value of the parameter `task`."""
    if "task" not in recipe.parameters:
        raise RequestError(f"--task: {recipe.name} has questions of its own; leave it out")
    if task.suffix != ".jsonl" or not task.is_file():
        raise RequestError(f"--task {str(task)!r:.80}: no file that ends in .jsonl; give one that is there")
    return str(task.absolute())


def _measure(job: Job, title: str) -> RunDone:
    """Run the process of kvnet.protocols to its end. Raises what it said it failed of."""
    # A process of its own: only the model side may import torch.
    command = [sys.executable, "-m", "kvnet.protocols.run_main"]
    last, error = None, None
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
        layer_bar(title, with_eta=True) as show,
    ):
        if process.stdin is None or process.stdout is None:
            raise AssertionError("the process was started with pipes")
        process.stdin.write(job.to_json())
        process.stdin.close()
        for line in process.stdout:
            said = parse_answer(line)
            if isinstance(said, CellDone):
                show(said.done, said.total)
            last = said if isinstance(said, RunDone) else last
            error = parse_error(line) or error
    if error is not None:
        raise error_from_code(*error)
    if last is None:
        raise OperatorError(
            f"the process that measures ended with status {process.returncode} before it was done; "
            "what it said is above, and `kvnet exp run --resume last` goes on"
        )
    return last
