"""Which parts of kvnet are installed. Looks, imports nothing."""

from __future__ import annotations

import importlib.util

from kvnet.errors import MissingExtra


def require_node_extra() -> None:
    """Raise MissingExtra where models cannot be hosted."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
        raise MissingExtra(
            "this installation is the client only; to host a model install the node: "
            "pip install 'kvnet[node]'"
        )


def require_experiments_extra() -> None:
    """Raise MissingExtra where logs can be written, but not shown."""
    if any(importlib.util.find_spec(name) is None for name in ("duckdb", "matplotlib", "nbformat")):
        raise MissingExtra(
            "this installation writes logs but does not read them; to see tables, figures and reports "
            "install the experiments extra: pip install 'kvnet[experiments]'"
        )
