"""Checkpoints with the exact geometry of real models and random weights. For speed and size, not sense."""

from __future__ import annotations

import shutil
import tempfile
import zlib
from importlib import resources
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from kvnet.errors import UnknownModel
from kvnet.model.fingerprint import tokenizer_files

# Part of the folder's name: change it whenever the same name must mean other weights.
_RECIPE: Final = 1
_GEOMETRIES: Final = resources.files("kvnet.model") / "geometries"
_SCALE: Final = 0.035  # uniform in +-0.035 has the usual standard deviation of 0.02


def geometry_names() -> tuple[str, ...]:
    """Names that may follow `random:`."""
    return tuple(sorted(file.name[:-5] for file in _GEOMETRIES.iterdir() if file.name.endswith(".json")))


def materialise(name: str, *, tokenizer_folder: Path | None, cache_dir: Path) -> Path:
    """Folder of a bfloat16 checkpoint of geometry `name`, written at first use under `cache_dir`.

    Every machine writes the same weights. Raises UnknownModel for a geometry that is not shipped.
    """
    if name not in geometry_names():
        raise UnknownModel(f"no geometry {name!r}; random: knows {', '.join(geometry_names())}")
    if tokenizer_folder is None:
        raise UnknownModel(f"random:{name} borrows ref-a's tokenizer, which is missing; reinstall kvnet")
    folder = cache_dir / "random" / f"{name}-{_RECIPE}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        unfinished = Path(temporary) / name
        unfinished.mkdir()
        config = _GEOMETRIES.joinpath(f"{name}.json").read_bytes()
        (unfinished / "config.json").write_bytes(config)
        for file in (*tokenizer_files(tokenizer_folder), tokenizer_folder / "tokenizer_config.json"):
            shutil.copy(file, unfinished / file.name)
        _write_weights(unfinished)
        unfinished.rename(folder)  # only a complete checkpoint ever has the final name
    return folder


def _write_weights(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    tensors = {name: _fill(name, parameter.shape) for name, parameter in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _fill(name: str, shape: torch.Size) -> torch.Tensor:
    """Ones for norms, zeros for biases, noise seeded by the parameter's name for the rest."""
    if len(shape) == 1:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.empty(shape, dtype=torch.bfloat16).uniform_(-_SCALE, _SCALE, generator=generator)
