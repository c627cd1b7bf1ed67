"""What a checkpoint on this machine would be if it were hosted: told by its files, no weights loaded."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from transformers import AutoConfig

from kvnet.errors import UnknownModel, UnsupportedModel
from kvnet.model.cache import geometry_of, refuse_unsupported
from kvnet.model.fingerprint import fingerprint_of
from kvnet.model.reference.catalog import reference_path
from kvnet.types import DType, Fingerprint, Geometry


def prospect(model: str, *, cache_dir: Path) -> tuple[Fingerprint, Geometry]:
    """Fingerprint and geometry of a model in its own precision, as far as its config tells.

    Its weight files are hashed, once. Raises UnknownModel for one that is not on this machine, and
    UnsupportedModel.
    """
    folder = _folder_of(model)
    fingerprint = fingerprint_of(
        folder, model=folder.name if Path(model).is_dir() else model, quantization="none", cache_dir=cache_dir
    )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as exc:
        raise UnsupportedModel(f"transformers cannot read the config of {folder.name}: {exc}") from exc
    refuse_unsupported(config)
    stored = config.get_text_config(decoder=True).dtype or "float32"
    return fingerprint, geometry_of(config, DType(str(stored).removeprefix("torch.")))


def _folder_of(model: str) -> Path:
    path = reference_path(model) or Path(model).expanduser()
    if model and path.is_dir():
        return path.resolve()
    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as exc:
        raise UnknownModel(
            f"model {model!r:.80}: no reference model, no folder, and not in the local Hugging Face cache; "
            "to compare with it, host it with `kvnet up --model`"
        ) from exc
