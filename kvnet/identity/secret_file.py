"""Files of 32 secret bytes, for this user only. Knows files; not what the bytes are a key of."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from kvnet.durable import write_durably
from kvnet.errors import StateCorrupt

SECRET_NBYTES: Final = 32


def load_or_create_secret(path: Path, *, what: str) -> bytes:
    """`load_secret`, or make one with mode 0600."""
    secret = load_secret(path, what=what)
    return create_secret(path) if secret is None else secret


def load_secret(path: Path, *, what: str) -> bytes | None:
    """Read the secret; None where there is no file. `what` says in messages what it is.

    Raises StateCorrupt when the file is no secret or when others can read it.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            secret = file.read()
    except FileNotFoundError:
        return None
    if mode & 0o077:
        raise StateCorrupt(
            f"{what} {path}: mode {mode:04o} lets others read the key, wanted 0600; run chmod 600 {path}"
        )
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
    # Whole or not there: a crash must not leave half a key that blocks the next start, nor may what is sealed
    # with a key outlive it.
    write_durably(path, secret)
    return secret
