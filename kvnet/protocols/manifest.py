"""What a run says of itself before it begins: models, maps, versions. Knows checkpoints; loads no weights."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, Final

from kvnet.alignment import MapManifest
from kvnet.errors import KvnetError
from kvnet.experiments.recipe import Recipe
from kvnet.experiments.record import Manifest, ModelRecord
from kvnet.files.alignments import read_alignment_file
from kvnet.model.checkpoint import resolve
from kvnet.model.fingerprint import fingerprint_of, read_config
from kvnet.model.reference.catalog import packaged_alignments
from kvnet.protocols.registry import find_protocol
from kvnet.types import Fingerprint, sha256_hex
from kvnet.version import VERSION

_MODEL_KEYS: Final = ("model", "other", "path")  # parameters that name models, a path several: a+b+c
_PACKAGES: Final = ("torch", "transformers", "tokenizers", "numpy")


def fingerprints_of(recipe: Recipe, sweep: Mapping[str, Sequence[Any]], cache_dir: Path) -> dict[str, str]:
    """What names stand for, so that a cell's id changes with it: weights of models, contents of task files.

    A name that stands for nothing is left out: its cell will say so.
    """
    found = {name: one.digest for name, one in _models(recipe, sweep, cache_dir).items()}
    for path in _values(recipe, sweep, ("path",)):
        found[path] = "+".join(found.get(name, name) for name in path.split("+"))
    for task in _values(recipe, sweep, ("task",)):
        if task.endswith(".jsonl"):
            with suppress(OSError):
                found[task] = sha256_hex(Path(task).expanduser().read_bytes())
    return found


def manifest_of(
    recipe: Recipe,
    sweep: Mapping[str, Sequence[Any]],
    seeds: tuple[int, ...],
    total_cells: int,
    *,
    command: str,
    cache_dir: Path,
) -> Manifest:
    """The manifest of a run that has not begun."""
    protocol = find_protocol(recipe.protocol, recipe.version)
    models = _models(recipe, sweep, cache_dir)
    digests = {one.digest for one in models.values()}
    codecs = recipe.parameters.get("codecs", recipe.parameters.get("codec", ""))
    return Manifest(
        name=recipe.name,
        protocol=protocol.name,
        protocol_version=protocol.version,
        question=recipe.question,
        controls=protocol.controls,
        metrics=dict(protocol.metrics),
        margins=recipe.margins,
        models=tuple(_record(name, one, cache_dir) for name, one in models.items()),
        maps=tuple(_maps_between(digests)),
        codec=codecs if isinstance(codecs, str) else ", ".join(map(str, codecs)),
        recipe=recipe.to_plain(),
        sweep={name: list(values) for name, values in sweep.items()},
        seeds=seeds,
        total_cells=total_cells,
        versions=_versions(),
        git=_git_revision(),
        command=command,
    )


def _values(recipe: Recipe, sweep: Mapping[str, Sequence[Any]], names: Sequence[str]) -> Iterator[str]:
    """The words that these parameters take, each once."""
    given = (chain([recipe.parameters.get(name)], sweep.get(name, ())) for name in names)
    seen: dict[str, None] = {}
    for value in chain.from_iterable(given):
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str) and one:
                seen[one] = None
    return iter(seen)


def _models(recipe: Recipe, sweep: Mapping[str, Sequence[Any]], cache_dir: Path) -> dict[str, Fingerprint]:
    found = {}
    for name in dict.fromkeys(n for value in _values(recipe, sweep, _MODEL_KEYS) for n in value.split("+")):
        with suppress(KvnetError):
            folder = resolve(name, cache_dir=cache_dir)
            found[name] = fingerprint_of(folder, model=name, quantization="none", cache_dir=cache_dir)
    return found


def _record(name: str, fingerprint: Fingerprint, cache_dir: Path) -> ModelRecord:
    config = read_config(resolve(name, cache_dir=cache_dir))
    rope = config.get("rope_parameters") or {}
    return ModelRecord(
        name=name,
        fingerprint=fingerprint.digest,
        tokenizer=fingerprint.tokenizer_digest,
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
        quantization=fingerprint.quantization,
        rope=f"{rope.get('rope_type', 'none')} theta {rope.get('rope_theta', 0):g}",
    )


def _maps_between(digests: set[str]) -> Iterator[str]:
    for path in packaged_alignments():
        manifest = read_alignment_file(path).manifest
        if (
            isinstance(manifest, MapManifest)
            and {manifest.source.digest, manifest.receiver.digest} <= digests
        ):
            yield manifest.id


def _versions() -> dict[str, str]:
    found = {"kvnet": VERSION, "python": sys.version.split()[0]}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _git_revision() -> str:
    """The revision of the checkout that this code runs from, "" outside of one."""
    folder = Path(__file__).parent
    try:
        asked = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip() if asked.returncode == 0 else ""
