"""The SDK: talk to the daemon on this machine. Imports no torch.

`_sync` is made from `_async` by scripts/unasync; edit only `_async`.
"""

from kvnet.client._async.node import AsyncNode
from kvnet.client._sync.node import Node

__all__ = ["AsyncNode", "Node"]
