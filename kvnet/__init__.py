"""kvnet: one language model hands what it has read to another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvnet.client import AsyncNode, Node

__all__ = ["AsyncNode", "Node"]


def __getattr__(name: str) -> Any:
    # Late, so that `import kvnet.types` does not pay for gRPC.
    if name in __all__:
        import kvnet.client

        return getattr(kvnet.client, name)
    raise AttributeError(f"module 'kvnet' has no attribute {name!r}")
