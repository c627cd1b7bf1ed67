"""`python -m kvnet.protocols.run_main`: measure a recipe's cells into a run folder.

One job on stdin, JSON lines on stdout (`kvnet.experiments.job`), an error that keeps the run from beginning
among them. The command line starts it as a process, since it imports no torch itself, and tells people.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from kvnet.errors import KvnetError, RequestError
from kvnet.experiments.folder import RunFolder
from kvnet.experiments.job import CellDone, Job, RunDone
from kvnet.experiments.recipe import Cell, Recipe
from kvnet.experiments.record import Closed, Summary
from kvnet.experiments.tracker import default_runs_dir
from kvnet.paths import find_home
from kvnet.protocols.cells import CellJob, Outcome
from kvnet.protocols.manifest import fingerprints_of, manifest_of
from kvnet.protocols.pool import run_cells
from kvnet.protocols.protocol import Setting
from kvnet.protocols.registry import find_protocol


def main() -> int:
    """Exit status: 0, 1 if cells failed, or that of the error that kept the run from beginning."""
    try:
        job = Job.parse(sys.stdin.buffer.read())
        return run(job, sys.stdout, cache_dir=find_home().cache)
    except KvnetError as error:
        _say(sys.stdout, json.dumps({"error": {"code": error.code, "message": error.message}}))
        return error.exit_status


def run(job: Job, out: TextIO, *, cache_dir: Path) -> int:
    """Measure what is left of a run. Raises what keeps it from beginning."""
    folder, recipe, cells, swept = _begin(job, cache_dir)
    with folder:
        if folder.torn:
            print(folder.torn, file=sys.stderr)
        done = folder.done_cells()
        protocol = find_protocol(recipe.protocol, recipe.version)
        jobs = [
            CellJob(
                protocol.name,
                protocol.version,
                Setting(cell.id, cell.parameters, cell.seed, swept),
                cache_dir,
            )
            for cell in cells
            if cell.id not in done
        ]
        num_failed = _write(folder, _outcomes(job, jobs), len(cells) - len(jobs), len(cells), out)
        folder.finish("failed" if num_failed else "finished", failed_cells=num_failed)
    _say(out, RunDone(str(folder.path), num_failed).to_json())
    return 1 if num_failed else 0


def _begin(job: Job, cache_dir: Path) -> tuple[RunFolder, Recipe, Sequence[Cell], tuple[str, ...]]:
    """(the folder, open for writing; its recipe; every cell, done or not; what is swept)."""
    if job.resume:
        folder = RunFolder.open(Path(job.resume), write=True)
        manifest = folder.manifest
        recipe = Recipe.from_plain(manifest.recipe, where=folder.path.name)
        sweep, seeds = dict(manifest.sweep), manifest.seeds
    else:
        recipe = Recipe.load(job.recipe)
        recipe = recipe.quickened() if job.quick else recipe
        sweep = {**(recipe.sweep or {}), **job.sweep}
        seeds = tuple(job.seeds) if job.seeds is not None else tuple(range(recipe.seeds))
    find_protocol(recipe.protocol, recipe.version)
    fingerprints = fingerprints_of(recipe, sweep, cache_dir)
    cells = recipe.cells(sweep, seeds, fingerprints=fingerprints)
    if not job.resume:
        manifest = manifest_of(recipe, sweep, seeds, len(cells), command=job.command, cache_dir=cache_dir)
        folder = RunFolder.create(Path(job.runs_dir) if job.runs_dir else default_runs_dir(), manifest)
    swept = tuple(name for name, values in sweep.items() if len(values) > 1)
    return folder, recipe, cells, swept


def _outcomes(job: Job, jobs: Sequence[CellJob]) -> Iterator[Outcome]:
    if job.on == "processes":
        return run_cells(jobs, job.workers)
    if job.on == "ray":
        from kvnet.protocols.on_ray import run_on_ray  # an extra, which most do without

        return run_on_ray(jobs)
    raise RequestError(f"--on {job.on!r:.40}; cells run on processes or on ray")


def _write(folder: RunFolder, outcomes: Iterator[Outcome], done: int, total: int, out: TextIO) -> int:
    """Append every outcome as it comes; how many failed."""
    num_failed = 0
    summary = dict(last.values) if (last := folder.summary()) else {}
    for outcome in outcomes:
        if isinstance(outcome.end, Closed):
            folder.append_cell(outcome.events, outcome.end)
        else:
            folder.append(outcome.end)
            num_failed += 1
        if outcome.summary:
            summary |= outcome.summary
            folder.append(Summary(summary))
        done += 1
        _say(out, CellDone(done, total, outcome.end.cell, outcome.seconds).to_json())
    return num_failed


def _say(out: TextIO, line: str) -> None:
    out.write(line + "\n")
    out.flush()


if __name__ == "__main__":
    # Whatever a library prints must not be taken for an answer.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
