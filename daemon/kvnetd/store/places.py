"""Folders moved into place and taken away: after a crash the old one is there, or the new one, whole.

Knows names and renames, not what is in a folder.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from kvnet.durable import sync_folder
from kvnetd.store.failpoints import reach

_OLD, _GONE = ".old", ".gone"


def put_in_place(fresh: Path, place: Path) -> None:
    """Move a complete folder to its place; what lay there is removed once that is durable.

    Where it fails, what lay there lies there still, and so does `fresh`.
    """
    old = _aside(place, _OLD)
    was_there = _move_aside(place, old)
    reach("memory.aside")
    try:
        fresh.rename(place)
        sync_folder(place.parent)
    except BaseException:
        if not fresh.exists():
            place.rename(fresh)
        if was_there:
            old.rename(place)
        raise
    if was_there:
        _discard(old)


def take_away(place: Path) -> bool:
    """Remove what lies at a place, for good; False if nothing does."""
    gone = _aside(place, _GONE)
    if not _move_aside(place, gone):
        return False
    sync_folder(place.parent)  # what was forgotten must not come back after a power cut
    _discard(gone)
    return True


def restore(root: Path) -> None:
    """Put back what a crash left moved aside before the new one was in its place."""
    for old in root.glob(f".*{_OLD}"):
        place = root / old.name.removeprefix(".").removesuffix(_OLD)
        if not place.exists():
            old.rename(place)
            sync_folder(root)


def identity(place: Path) -> tuple[int, int] | None:
    """Which folder lies at a place now; None if none does."""
    try:
        found = place.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _aside(place: Path, how: str) -> Path:
    return place.with_name(f".{place.name}{how}")


def _move_aside(place: Path, aside: Path) -> bool:
    if not place.exists():
        return False
    _discard(aside)  # of an earlier removal that did not finish
    place.rename(aside)
    return True


def _discard(path: Path) -> None:
    """Remove what was moved aside, as far as that goes: what stays is cleared away at the next start."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)  # a stray file, listed as damaged
