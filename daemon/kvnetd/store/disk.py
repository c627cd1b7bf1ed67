"""Small disk habits: room left, durable writes, ENOSPC as StoreFull."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvnet.errors import StoreFull
from kvnet.files.durable import sync_folder

RESERVE_NBYTES = 1 << 30
RESERVE_SHARE = 0.10


def free_nbytes(folder: Path) -> int:
    """Bytes that may still be stored: free space less a reserve of 1 GiB or 10 %, whichever is less."""
    usage = shutil.disk_usage(folder)
    reserve = min(RESERVE_NBYTES, int(usage.total * RESERVE_SHARE))
    return max(0, usage.free - reserve)


def require_room(folder: Path, nbytes: int, *, what: str) -> None:
    """Raise StoreFull where `nbytes` more would eat into the reserve."""
    free = free_nbytes(folder)
    if nbytes > free:
        raise StoreFull(
            f"{what}: needs {nbytes} bytes, the store has room for {free}; "
            "forget some memories or free the disk"
        )


@contextmanager
def full_disk_refused(what: str) -> Iterator[None]:
    """Turn ENOSPC and EDQUOT into StoreFull."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(f"{what}: the disk is full; free some space and try again") from exc
        raise


def write_durably(path: Path, data: bytes | memoryview) -> None:
    """Replace `path` with `data`, for this user only, or leave it as it was."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with open(fresh, "xb", opener=_open_private) as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(path)
    sync_folder(path.parent)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
