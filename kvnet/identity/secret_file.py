"""Files of 32 secret bytes, for this user only. Knows files; not what the bytes are a key of."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from kvnet.errors import StateCorrupt

SECRET_NBYTES: Final = 32


def load_or_create_secret(path: Path, *, what: str) -> bytes:
    """Read the secret, or make one with mode 0600; `what` says in messages what it is.

    Raises StateCorrupt when the file is no secret or when others can read it.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return create_secret(path)
    if mode & 0o077:
        raise StateCorrupt(
            f"{what} {path}: mode {mode:04o} lets others read the key, wanted 0600; run chmod 600 {path}"
        )
    secret = path.read_bytes()
    if len(secret) != SECRET_NBYTES:
        raise StateCorrupt(
            f"{what} {path}: {len(secret)} bytes, a key has {SECRET_NBYTES}; "
            f"restore it from a backup, or move it away to get a new {what}"
        )
    return secret


def create_secret(path: Path) -> bytes:
    """Make a secret; it is durable, and whole or not there."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    secret = os.urandom(SECRET_NBYTES)
    # Written beside and renamed: a crash must not leave half a key that blocks the next start.
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as out:
        out.write(secret)
        out.flush()
        os.fsync(out.fileno())
    fresh.rename(path)
    _sync(path.parent)  # what is sealed with a key must not outlive it
    return secret


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
