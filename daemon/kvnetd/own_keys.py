"""Every id that this node has had: what one of its earlier keys signed is its own still.

A rotation leaves its statement beside the key, signed by both (FORMAT.md §14). Knows files of the identity
folder; no peers, no memories.
"""

from __future__ import annotations

from kvnet.errors import KvnetError
from kvnet.identity.keys import NodeKey
from kvnet.identity.rotation import MAX_STATEMENT_NBYTES, verify_statement
from kvnet.paths import Home
from kvnet.types import NodeId


def own_ids(home: Home, key: NodeKey) -> frozenset[NodeId]:
    """The id of this key and of those before it, as far as their statements are here. Blocks."""
    before: dict[NodeId, NodeId] = {}
    for path in home.identity.parent.glob("rotation-*.json"):
        try:
            with path.open("rb") as file:
                said = verify_statement(file.read(MAX_STATEMENT_NBYTES + 1))
        except (OSError, KvnetError):
            continue  # somebody else's file, or damaged: it names nobody
        before[said.new] = said.old
    found = {key.node_id}
    newest = key.node_id
    while (newest := before.get(newest, key.node_id)) not in found:
        found.add(newest)
    return frozenset(found)
