"""What every bench shares: flags, the machine's description, two daemons, a table and its JSON."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import own_venv  # noqa: F401  # before what only .venv has
import platformdirs

from kvnet.cli import spawn
from kvnet.cli.output import table_lines
from kvnet.client import Node
from kvnet.paths import Home

SHOWN_VERSIONS = ("kvnet", "torch", "transformers", "bitsandbytes", "grpcio")


def parser(description: str) -> argparse.ArgumentParser:
    """The flags of DESIGN's benches."""
    flags = argparse.ArgumentParser(description=description)
    flags.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    flags.add_argument("--quick", action="store_true", help="smaller n, at most 50 seconds")
    flags.add_argument("--seed", type=int, default=0, help="changes every random choice")
    flags.add_argument("--plots", type=Path, help="write PNGs into this folder")
    return flags


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    versions = {name: importlib.metadata.version(name) for name in SHOWN_VERSIONS}
    return {"cores": os.cpu_count(), "python": platform.python_version(), "versions": versions}


def report(
    rows: Sequence[dict[str, Any]],
    *,
    n: int,
    seed: int,
    as_json: bool,
    quick: bool,
    notes: Sequence[str] = (),
) -> None:
    """Print the rows as a table, or as one JSON object."""
    where = machine()
    if as_json:
        print(json.dumps({"rows": list(rows), "n": n, "seed": seed, "quick": quick, **where}))
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = table_lines(columns, [[_cell(row.get(column, "")) for column in columns] for row in rows])
    print("\n".join(lines))
    for note in notes:
        print(note)
    listed = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    shortened = " (quick)" if quick else ""
    print(f"n {n}, seed {seed}{shortened}, {where['cores']} cores, python {where['python']}, {listed}")


@contextmanager
def two_nodes(sender: dict[str, str], receiver: dict[str, str]) -> Iterator[tuple[Node, Node]]:
    """Two daemons as processes of their own, introduced to each other; flags are those of `kvnet up`."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvnet-bench-")))
        starts = {"alice": sender, "bob": receiver}
        with ThreadPoolExecutor(2) as pool:  # loading is slow, and there are cores for both
            homes = list(pool.map(lambda name: _start(folder / name, name, starts[name]), starts))
        for home in homes:
            stack.callback(spawn.stop, home)
        alice, bob = (stack.enter_context(Node(home=home.root)) for home in homes)
        a, b = alice.status(), bob.status()
        alice.add_peer(b.grpc, node_id=b.node_id, name="bob")
        bob.add_peer(a.grpc, node_id=a.node_id, name="alice")
        yield alice, bob


def random_checkpoint(geometry: str) -> str:
    """A folder with random weights of a real geometry, made once on this machine."""
    from kvnet.model.random_weights import materialise
    from kvnet.model.reference.catalog import reference_path

    cache = Path(platformdirs.user_cache_dir("kvnet")) / "bench"
    cache.mkdir(parents=True, exist_ok=True)
    return str(materialise(geometry, tokenizer_folder=reference_path("ref-a"), cache_dir=cache))


def new_figure(title: str) -> tuple[Any, Any]:
    """A figure that needs no screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    axes.set_title(title)
    return figure, axes


def save_figure(figure: Any, path: Path) -> None:
    """Write a PNG and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    say(f"plot: {path}")


def _start(folder: Path, name: str, flags: dict[str, str]) -> Home:
    home = Home(folder)
    spawn.start(home, {"name": name, "listen": "127.0.0.1:0", "mdns": "0", **flags})
    return home


def median(measure: Callable[[], float], times: int) -> float:
    """The median of several measurements."""
    return sorted(measure() for _ in range(times))[times // 2]


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
