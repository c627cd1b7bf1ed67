"""Imported first by the scripts in Python: goes on with the Python of .venv, which scripts/setup makes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_PYTHON = _ROOT / ".venv" / "bin" / "python"

if Path(sys.prefix).resolve() != _PYTHON.parent.parent:
    subprocess.run([_ROOT / "scripts" / "setup"], check=True)
    os.execv(_PYTHON, [str(_PYTHON), *sys.argv])  # noqa: S606  # our own interpreter, arguments as a list
