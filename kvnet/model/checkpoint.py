"""Find the checkpoint folder that a model's name means. Knows files and the Hugging Face hub; no torch."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Final

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from kvnet.errors import UnknownModel, UnsupportedModel
from kvnet.model.fingerprint import weight_files
from kvnet.model.random_weights import materialise
from kvnet.model.reference.catalog import reference_path

_log = logging.getLogger(__name__)

RANDOM_PREFIX: Final = "random:"
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")
# Neither pickled weights nor code are fetched, so neither can be loaded.
_HUB_FILES: Final = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_WANTED: Final = "a reference model (ref-a), a folder, random:tinyllama, or a Hugging Face id (owner/name)"


def resolve(model: str, *, cache_dir: Path) -> Path:
    """The folder of a checkpoint: reference model, folder, random weights, or Hugging Face id.

    Raises UnknownModel if nothing has this name, UnsupportedModel for a checkpoint without safetensors.
    """
    folder = reference_path(model)
    if folder is not None:
        return folder
    path = Path(model).expanduser()
    if model and path.is_dir():
        return path
    if model.startswith(RANDOM_PREFIX):
        return materialise(
            model.removeprefix(RANDOM_PREFIX),
            tokenizer_folder=reference_path("ref-a"),
            cache_dir=cache_dir,
        )
    if not _HUB_ID.fullmatch(model):
        raise UnknownModel(f"no folder {model!r} here; name {_WANTED}")
    return _from_hub(model)


def _from_hub(repo_id: str) -> Path:
    """A complete snapshot from the local hub cache, else downloaded."""
    try:
        folder = Path(snapshot_download(repo_id, allow_patterns=list(_HUB_FILES), local_files_only=True))
        weight_files(folder)
    except (LocalEntryNotFoundError, UnsupportedModel):
        pass  # absent, or only some of its files are there: ask the hub
    except HFValidationError as exc:
        raise UnknownModel(f"{repo_id!r} is no Hugging Face id; name {_WANTED}") from exc
    else:
        return folder
    _log.info("model_download.started model=%s", repo_id)
    try:
        folder = Path(snapshot_download(repo_id, allow_patterns=list(_HUB_FILES)))
    except GatedRepoError as exc:
        raise UnknownModel(
            f"{repo_id} is gated; accept its licence on huggingface.co and run `hf auth login`"
        ) from exc
    except RepositoryNotFoundError as exc:
        raise UnknownModel(f"no model {repo_id!r} on huggingface.co or here; name {_WANTED}") from exc
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as exc:
        raise UnknownModel(
            f"{repo_id} is not in the local Hugging Face cache and could not be downloaded "
            f"({type(exc).__name__}); go online, or name a folder"
        ) from exc
    weight_files(folder)
    _log.info("model_download.completed model=%s", repo_id)
    return folder
