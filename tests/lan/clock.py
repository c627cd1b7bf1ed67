"""A wall clock that a test can set, for one process: a preloaded library (clock_shift.c) moves it."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

_SOURCE = Path(__file__).with_name("clock_shift.c")


class Clock:
    """The clock of the processes that are started inside `wrapper`. Needs a C compiler."""

    def __init__(self, folder: Path) -> None:
        """`folder` must outlive those processes."""
        self._compiler = shutil.which("cc")
        self._shift = folder / "clock.shift"
        self._shift.write_bytes(bytes(mmap.PAGESIZE))
        self._library = folder / "clock_shift.so"
        if self._compiler is not None:
            build = [self._compiler, "-shared", "-fPIC", "-O1", "-o", str(self._library), str(_SOURCE)]
            subprocess.run(build, check=True, timeout=60)

    @property
    def wrapper(self) -> tuple[str, ...]:
        """A command that runs the rest under this clock; none without a compiler."""
        if self._compiler is None:
            return ()
        return ("env", f"LD_PRELOAD={self._library}", f"CLOCK_SHIFT_FILE={self._shift}")

    def set(self, shift_s: int) -> None:
        """Move the clock so far from the true time, now and for what runs already."""
        if self._compiler is None:
            pytest.skip("no C compiler here; a clock is moved by a preloaded library")
        with self._shift.open("r+b") as file, mmap.mmap(file.fileno(), mmap.PAGESIZE) as page:
            page[:8] = struct.pack("=q", shift_s)
