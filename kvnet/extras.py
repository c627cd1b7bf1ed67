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
