"""What a checkpoint folder is: digests over its config, tokenizer and weights. Knows files; no torch."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from pathlib import Path
from typing import Any, Final

from kvnet.errors import UnsupportedModel
from kvnet.types import Fingerprint, canonical_json, sha256_hex

_log = logging.getLogger(__name__)

# Say who wrote the file, where and for which loading dtype; not what the model is.
_VOLATILE_CONFIG_KEYS: Final = frozenset(
    {"_commit_hash", "_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache"}
)
# What decides which token an id is. Chat templates and the like change prompts, not ids.
_TOKENIZER_JSON: Final = "tokenizer.json"
_OTHER_TOKENIZER_FILES: Final = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
)
_WEIGHTS: Final = "model.safetensors"
_WEIGHTS_INDEX: Final = "model.safetensors.index.json"
_PICKLED: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def fingerprint_of(folder: Path, *, model: str, quantization: str, cache_dir: Path) -> Fingerprint:
    """Fingerprint of a checkpoint folder as it is loaded with `quantization`.

    Weight files are read once: their digests are remembered in `cache_dir` until they change.
    """
    config = read_config(folder)
    hashes = HashCache(cache_dir / "file_digests.json")
    fingerprint = Fingerprint(
        model=model,
        architecture=str((config.get("architectures") or [config.get("model_type")])[0]),
        config_digest=sha256_hex(canonical_json(_semantic(config))),
        tokenizer_digest=_digest_files(tokenizer_files(folder), hashes),
        weights_digest=_digest_files(weight_files(folder), hashes),
        quantization=quantization,
    )
    hashes.save()
    return fingerprint


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises UnsupportedModel if there is none that can be read."""
    return _read_json_object(folder / "config.json")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers loads, by name.

    Raises UnsupportedModel for a folder without them; pickled weights are never opened.
    """
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if (folder / _WEIGHTS_INDEX).is_file():
        weight_map = _read_json_object(folder / _WEIGHTS_INDEX).get("weight_map")
        names = sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
        if names and all(_is_plain_name(name) and (folder / name).is_file() for name in names):
            return [folder / name for name in names]
        raise UnsupportedModel(
            f"{folder.name}: {_WEIGHTS_INDEX} names files that are not there; copy it again"
        )
    if any(path for pattern in _PICKLED for path in folder.glob(pattern)):
        raise UnsupportedModel(
            f"{folder.name} holds only pickled weights, which can run code when they are loaded; "
            f"kvnet reads {_WEIGHTS}, convert them with save_pretrained(..., safe_serialization=True)"
        )
    raise UnsupportedModel(f"{folder.name} holds no weights; it needs {_WEIGHTS}")


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that decide which token an id is, by name."""
    if (folder / _TOKENIZER_JSON).is_file():
        return [folder / _TOKENIZER_JSON]
    found = sorted(folder / name for name in _OTHER_TOKENIZER_FILES if (folder / name).is_file())
    if not found:
        raise UnsupportedModel(f"{folder.name} holds no tokenizer; it needs {_TOKENIZER_JSON}")
    return found


class HashCache:
    """SHA-256 of files, remembered by path, size, mtime and inode. A broken cache file is ignored."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = self._load()
        self._changed = False

    def sha256(self, path: Path) -> str:
        """Hex digest of a file, from memory if the file is the one that was hashed then."""
        real = path.resolve()
        stat = real.stat()
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        entry = self._entries.get(str(real))
        if entry is not None and entry[:-1] == state:
            return str(entry[-1])
        with real.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._entries[str(real)] = [*state, digest]
        self._changed = True
        return digest

    def save(self) -> None:
        """Replace the cache file in one step. Not being able to only costs time at the next start."""
        if not self._changed:
            return
        temporary = None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._path.parent, delete=False) as file:
                temporary = Path(file.name)
                file.write(canonical_json(self._entries))
            temporary.replace(self._path)
        except OSError as exc:
            _log.warning("hash_cache.failed error=%s", exc)
            if temporary is not None:
                temporary.unlink(missing_ok=True)

    def _load(self) -> dict[str, list[Any]]:
        try:
            entries = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return (
            {path: entry for path, entry in entries.items() if _is_entry(entry)}
            if isinstance(entries, dict)
            else {}
        )


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, list)
        and [type(item) for item in entry] == [int, int, int, str]
        and len(entry[-1]) == hashlib.sha256().digest_size * 2
    )


def _digest_files(paths: list[Path], hashes: HashCache) -> str:
    return sha256_hex(canonical_json([[path.name, hashes.sha256(path)] for path in paths]))


def _semantic(config: Any) -> Any:
    """`config` without volatile keys, at every depth."""
    if isinstance(config, dict):
        return {key: _semantic(value) for key, value in config.items() if key not in _VOLATILE_CONFIG_KEYS}
    return [_semantic(item) for item in config] if isinstance(config, list) else config


def _is_plain_name(name: Any) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes(), parse_constant=str)  # canonical JSON has no Infinity
    except (OSError, ValueError) as exc:
        raise UnsupportedModel(
            f"{path.parent.name}: {path.name} cannot be read ({type(exc).__name__})"
        ) from exc
    if not isinstance(value, dict):
        raise UnsupportedModel(f"{path.parent.name}: {path.name} holds no JSON object")
    return value
