"""Places where a test can have the process killed: off unless KVNET_FAILPOINT names one.

CONTRIBUTING.md says how. Knows signals; no files.
"""

from __future__ import annotations

import os
import signal
from itertools import count
from typing import Final

VARIABLE: Final = "KVNET_FAILPOINT"  # a name of `NAMES`, or NAME:3 for the third time it is reached

# In the order in which a memory on its way passes them.
NAMES: Final = (
    "offer.kept",  # sender: it may be resumed under the very same offer
    "chunk.written",  # receiver: in the file, not synced, not in the log
    "chunk.synced",  # synced, not in the log
    "chunk.logged",  # durable, not acknowledged
    "memory.laid-out",  # beside the memories, every byte; not in its place
    "memory.aside",  # what lay in its place was moved aside
    "memory.in-place",  # a memory; no receipt yet
    "ledger.completing",  # receipt and message written, their transaction not committed
    "ledger.completed",  # committed; the sender does not know yet
    "outbox.queued",  # sender: it waits, whoever asked does not know yet
)
_name, _, _wanted = os.environ.get(VARIABLE, "").partition(":")
_visits = count(1)


def reach(name: str) -> None:
    """Kill this process by SIGKILL if `name` is the failpoint that was asked for."""
    if name == _name and next(_visits) == int(_wanted or 1):
        os.kill(os.getpid(), signal.SIGKILL)
