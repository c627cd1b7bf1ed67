"""A package as a folder: names, sizes and bytes, no link followed. Knows no signatures and no documents."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import Final

from kvnet.errors import MalformedPackage, RequestError
from kvnet.files.package.names import FOLDERS, MAX_FILES, check_paths

BLOCK_NBYTES: Final = 1 << 20
_OPEN_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not blocking: between the listing and the opening someone may have put a FIFO there.
_OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class FolderContainer:
    """The files of a package folder; `sizes` maps each path to its bytes on disk."""

    def __init__(self, path: Path) -> None:
        """Raises RequestError where the folder cannot be read, MalformedPackage for anything else in it."""
        self.path = path
        self._stack = ExitStack()
        self._folders: dict[str, int] = {}
        try:
            self._open_folder("", path, None)
            self.sizes: Mapping[str, int] = self._list()
        except OSError as exc:
            self.close()
            raise RequestError(f"package {path}: cannot be read ({exc.strerror})") from exc
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the folder."""
        self._stack.close()

    def read(self, path: str) -> Iterator[bytes]:
        """The bytes of one of `sizes`, in blocks of at most 1 MiB."""
        folder, _, name = path.rpartition("/")
        try:
            handle = os.open(name, _OPEN_FILE, dir_fd=self._folders[folder])
        except OSError as exc:
            raise MalformedPackage(f"{path}: cannot be opened as a file ({exc.strerror})") from exc
        with FileIO(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise MalformedPackage(f"{path}: is no regular file")
            while block := self._read_block(path, file):
                yield block

    def _read_block(self, path: str, file: FileIO) -> bytes:
        try:
            return file.read(BLOCK_NBYTES)
        except OSError as exc:
            raise RequestError(f"package {self.path}: {path} cannot be read ({exc.strerror})") from exc

    def _open_folder(self, name: str, path: Path | str, parent: int | None) -> None:
        handle = os.open(path, _OPEN_FOLDER, dir_fd=parent)
        self._stack.callback(os.close, handle)
        self._folders[name] = handle

    def _list(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for name, info in self._entries(""):
            if not stat.S_ISDIR(info.st_mode):
                sizes[name] = _regular_nbytes(name, info)
                continue
            if name not in FOLDERS:
                raise MalformedPackage(f"package: the folder {name!r:.120} does not belong in it")
            self._open_folder(name, name, self._folders[""])
            for inner, inner_info in self._entries(name):
                sizes[f"{name}/{inner}"] = _regular_nbytes(f"{name}/{inner}", inner_info)
        check_paths(sizes, what="package")
        return sizes

    def _entries(self, folder: str) -> Iterator[tuple[str, os.stat_result]]:
        with os.scandir(self._folders[folder]) as entries:
            for count, entry in enumerate(entries):
                if count > MAX_FILES:
                    raise MalformedPackage(f"package: more than {MAX_FILES} files in one folder")
                yield entry.name, entry.stat(follow_symlinks=False)


def _regular_nbytes(path: str, info: os.stat_result) -> int:
    if not stat.S_ISREG(info.st_mode):
        raise MalformedPackage(
            f"package: {path!r:.120} is no regular file; links and the like are not followed"
        )
    return info.st_size
