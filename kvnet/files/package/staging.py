"""A package on its way to disk: built beside its place, synced, then renamed; nothing half-written stays.

Knows paths and bytes; no signatures and no documents. Modes are private (0700, 0600): who has a memory has
what its text said.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from kvnet.durable import sync_folder
from kvnet.errors import RequestError, StoreFull

_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# The same package makes the same zip, whenever it is made.
_ZIP_TIME: Final = (1980, 1, 1, 0, 0, 0)
_FILE_MODE: Final = stat.S_IFREG | 0o600


class Staging(Protocol):
    """Where a package's files go until it is whole."""

    def add(self, path: str, nbytes: int, blocks: Iterable[bytes]) -> None:
        """Store one file of `nbytes`."""


def is_zip_target(target: Path) -> bool:
    """Whether a package under this name is a zip."""
    return target.suffix.lower() == ".zip"


@contextmanager
def stage(target: Path) -> Iterator[tuple[Staging, Path]]:
    """Yields a Staging and where it lies for now; `target` is there once the block ends without an exception.

    Raises RequestError where `target` exists (an empty folder may) or cannot be written, and StoreFull.
    """
    target = target.absolute()  # "." has no name of its own
    is_folder_there = _require_free(target)
    # An empty folder may be a mount point or someone's working directory: filled, not replaced.
    staged = (target / ".part") if is_folder_there else target.with_name(f".{target.name}.{_unique()}.part")
    try:
        if is_zip_target(target):
            with os.fdopen(os.open(staged, _NEW_FILE, 0o600), "wb") as out:
                with zipfile.ZipFile(out, "w") as archive:
                    yield _ZipStaging(archive), staged
                out.flush()
                os.fsync(out.fileno())
        else:
            staged.mkdir(mode=0o700)
            yield _FolderStaging(staged), staged
            for folder in (*(path for path in staged.iterdir() if path.is_dir()), staged):
                sync_folder(folder)
        _settle(staged, target, is_folder_there=is_folder_there)
    except OSError as exc:
        kind = StoreFull if exc.errno in _NO_ROOM else RequestError
        raise kind(f"{target}: cannot be written ({exc.strerror or exc}); choose another place") from exc
    finally:
        _remove(staged)


class _FolderStaging:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, path: str, nbytes: int, blocks: Iterable[bytes]) -> None:
        place = self._folder / path
        place.parent.mkdir(mode=0o700, exist_ok=True)
        with os.fdopen(os.open(place, _NEW_FILE, 0o600), "wb") as out:
            out.writelines(blocks)
            out.flush()
            os.fsync(out.fileno())


class _ZipStaging:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def add(self, path: str, nbytes: int, blocks: Iterable[bytes]) -> None:
        entry = zipfile.ZipInfo(path, _ZIP_TIME)
        entry.external_attr = _FILE_MODE << 16
        entry.create_system = 3  # Unix, whose modes these are
        entry.file_size = nbytes  # decides whether the sizes take 64 bits
        # Memories are compressed already, alignments are noise; only text gains.
        entry.compress_type = zipfile.ZIP_DEFLATED if path.endswith(".json") else zipfile.ZIP_STORED
        with self._archive.open(entry, "w") as out:
            for block in blocks:
                out.write(block)


def _require_free(target: Path) -> bool:
    """Whether `target` is an empty folder already; RequestError if it is anything else."""
    try:
        info = target.lstat()
        if stat.S_ISDIR(info.st_mode) and not is_zip_target(target) and not any(target.iterdir()):
            return True
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise RequestError(f"{target}: cannot be looked at ({exc.strerror})") from exc
    wanted = "a name that is free" if is_zip_target(target) else "a folder that is new or empty"
    raise RequestError(f"{target}: exists already, wanted {wanted}")


def _settle(staged: Path, target: Path, *, is_folder_there: bool) -> None:
    if is_folder_there:
        # Folders first, so that the last file to appear is one without which there is no package.
        for path in sorted(staged.iterdir(), key=lambda path: (path.is_file(), path.name)):
            path.rename(target / path.name)
        sync_folder(target)
    else:
        staged.rename(target)
    sync_folder(target.parent)


def _unique() -> str:
    return secrets.token_hex(4)


def _remove(staged: Path) -> None:
    if staged.is_dir():
        shutil.rmtree(staged, ignore_errors=True)
    else:
        staged.unlink(missing_ok=True)
