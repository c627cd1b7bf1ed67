"""The key under which maps and ports are packaged with kvnet. Knows no files.

It is made from a phrase, so that anyone can rebuild the very same files; hence its signature says that a file
is whole, and nothing of who made it. A packaged file is trusted for where it lies.
"""

from __future__ import annotations

import hashlib
from typing import Final

from kvnet.identity.keys import NodeKey
from kvnet.types import NodeId

PACKAGED_SIGNER: Final = NodeId("yhzz5ssvri5vzqdnar22pexgm2cqusn257kqziltvbgp7m4cn4kq")
_SEED_PHRASE: Final = b"kvnet: maps and ports between the reference models"


def packaged_key() -> NodeKey:
    """The key whose public half is PACKAGED_SIGNER."""
    return NodeKey(hashlib.sha256(_SEED_PHRASE).digest())
