"""Lock a run: the digest of every file beside them, everything read-only, and if asked one zip of it.

The zip is the same bytes wherever it is made, so its digest can be cited. A frozen run takes no more lines.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

from kvnet.errors import MalformedRun, RequestError
from kvnet.experiments.folder import DIGESTS, EVENTS, MANIFEST, RunFolder

_EPOCH = (1980, 1, 1, 0, 0, 0)  # a zip's own
_FILES = (MANIFEST, EVENTS)


@dataclass(frozen=True, slots=True)
class Frozen:
    """`digest` is that of the digests' document: one line to cite. `archive` is "" if none was asked for."""

    run: str
    digest: str
    was_frozen: bool
    archive: str = ""
    archive_digest: str = ""


def freeze(path: Path, archive: Path | None = None) -> Frozen:
    """Freeze a run, or check one that is. Raises MalformedRun where a file is not what was frozen."""
    was_frozen = (path / DIGESTS).exists()
    if was_frozen:
        _check(path)
    else:
        with RunFolder.open(path, write=True):  # nobody writes, and a torn line is gone
            found = {name: _digest(path / name) for name in _FILES}
            (path / DIGESTS).write_text(json.dumps({"files": found}, indent=1) + "\n", encoding="utf-8")
    for name in (*_FILES, DIGESTS):
        (path / name).chmod(0o444)
    digest = _digest(path / DIGESTS)
    if archive is None:
        return Frozen(path.name, digest, was_frozen)
    _write_zip(path, archive)
    return Frozen(path.name, digest, was_frozen, str(archive), _digest(archive))


def _check(path: Path) -> None:
    try:
        frozen = json.loads((path / DIGESTS).read_text(encoding="utf-8"))["files"]
        wanted = {name: str(frozen[name]) for name in _FILES}
    except (ValueError, KeyError, TypeError) as exc:
        raise MalformedRun(
            f"{path.name}/{DIGESTS}: is not what freezing wrote; the run proves nothing"
        ) from exc
    for name, digest in wanted.items():
        if _digest(path / name) != digest:
            raise MalformedRun(f"{path.name}/{name}: was changed after the run was frozen; get the run anew")


def _write_zip(path: Path, archive: Path) -> None:
    try:
        with archive.open("xb") as out, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
            for name in (*_FILES, DIGESTS):
                entry = zipfile.ZipInfo(f"{path.name}/{name}", _EPOCH)
                entry.external_attr = 0o100444 << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                with (path / name).open("rb") as file, packed.open(entry, "w", force_zip64=True) as into:
                    while block := file.read(1 << 20):
                        into.write(block)
    except FileExistsError as exc:
        raise RequestError(f"{archive}: is there already; name a new file") from exc
    except OSError as exc:
        raise RequestError(f"{archive}: cannot be written ({exc.strerror})") from exc


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
