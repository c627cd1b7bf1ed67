"""explain: how a memory would reach a model, why so, and what would change that."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvnet.api import Explanation, MapSummary
from kvnet.cli.output import Json, print_json, print_table
from kvnet.client import Node


def explain(
    memory: Annotated[str, typer.Argument(help="Id, start of an id, or name.")],
    model: Annotated[str, typer.Option(help="A model on this machine; the hosted one if not given.")] = "",
    as_json: Json = False,
) -> None:
    """Say which tier a memory reaches a model by, what differs, and what would change that."""
    folder = Path(model).expanduser()
    if "/" in model and folder.is_dir():
        model = str(folder.resolve())  # the daemon stands elsewhere
    with Node() as node:
        found = node.explain(memory, model=model)
    if as_json:
        print_json(found)
        return
    _print(found)


def _print(found: Explanation) -> None:
    print(f"{found.memory[:16]} in {found.model}: {found.tier} (policy {found.policy})")
    rows = [(one.field, one.memory, one.model) for one in found.differences]
    print_table(("field", "memory", "model"), rows, empty="every field agrees")
    if found.map:
        print(_map_text(found.map))
    print(f"text: {'attached' if found.has_text else 'none'}")
    print(f"advice: {found.advice}")


def _map_text(found: MapSummary) -> str:
    gate, gap = found.gate, found.gate.gap_recovered
    return (
        f"map: {found.id[:16]} ({found.method}), gap recovered {gap.value:.2f} "
        f"({gap.low:.2f} to {gap.high:.2f}; shuffled {gate.gap_shuffled:.2f}), "
        f"recall {gate.recall_mapped:.2f} ({gate.recall_text:.2f} by text, {gate.recall_none:.2f} without), "
        f"KL {gate.kl:.3f} nats, attention cosine {gate.attention_cosine:.2f}, {gate.num_questions} questions"
    )
