"""Where the packaged reference models lie. Knows names and folders; loads nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Final

REFERENCE_MODELS: Final[tuple[str, ...]] = ("ref-a", "ref-b", "ref-c")
BASIS_FILE: Final = "basis.safetensors"

_DATA: Final = Path(__file__).parent / "data"
_MAPS: Final = Path(__file__).parent / "maps"


def reference_path(name: str) -> Path | None:
    """The folder of reference model `name` (as `from_pretrained` takes it), or None if unknown."""
    if name not in REFERENCE_MODELS:
        return None
    folder = _DATA / name
    return folder if (folder / "model.safetensors").is_file() else None


def reference_basis(name: str) -> Path | None:
    """The calibration of reference model `name` that scripts/calibrate_reference made, or None."""
    folder = reference_path(name)
    path = folder / BASIS_FILE if folder else None
    return path if path and path.is_file() else None


def packaged_alignments() -> list[Path]:
    """The maps and ports between the reference models, in the order of their names."""
    return sorted(_MAPS.glob("*.safetensors"))
