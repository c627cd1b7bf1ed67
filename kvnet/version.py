"""The installed version of kvnet."""

from __future__ import annotations

from importlib.metadata import version

VERSION = version("kvnet")
