"""inspect-model: the structure of a model's cache, captured while it generates."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import typer

from kvnet.extras import require_node_extra
from kvnet.paths import find_home


def inspect_model(
    model: Annotated[str, typer.Option(help="As for `kvnet up`.")] = "ref-a",
    quantization: Annotated[str, typer.Option(help="none, int8 or nf4.")] = "none",
    dtype: Annotated[str, typer.Option("--dtype", help="auto, float32, float16 or bfloat16.")] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Always so: the answer is one JSON document.")
    ] = True,
) -> None:
    """Print, as JSON, the shapes and sizes of a cache captured during generation."""
    require_node_extra()
    # A process of its own: only the model side may import torch.
    command = [sys.executable, "-m", "kvnet.model.inspect_main", "--model", model]
    command += ["--quantization", quantization, "--dtype", dtype, "--cache-dir", str(find_home().cache)]
    ended = subprocess.run(command, check=False)
    raise typer.Exit(ended.returncode)
