"""Maps decide what is taken: the receiver's own, known to the sender from its hello."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from kvnetd.actions import memories, peers

from kvnet.errors import IncompatibleModel
from kvnet.files.alignments import read_alignment
from kvnet.types import Fingerprint
from tests.builders import RECEIVER, make_fingerprint, make_geometry
from tests.files.alignment_files import GATE, make_map_file
from tests.kvnetd.exchange import pull_memory, send_memory
from tests.kvnetd.nodes import MEMORY, Node, events

OTHER = make_fingerprint(model="other", architecture="Other")
OTHER_TOKENS = make_fingerprint(model="other", tokenizer_digest="other")


def host(node: Node, fingerprint: Fingerprint) -> None:
    """Let the node host another model of the same geometry."""
    hosted: Any = node.services.host
    hosted.fingerprint = fingerprint


def add_map(node: Node, receiver: Fingerprint, **changes: Any) -> str:
    """A map from the model of MEMORY; its id."""
    encoded = make_map_file(
        key=RECEIVER,
        source=make_fingerprint(),
        source_geometry=make_geometry(),
        receiver=receiver,
        source_layers=(0, 1, 2),
        **changes,
    )
    return node.services.alignments.put(read_alignment(encoded)).id


@pytest.mark.parametrize(("model", "tier"), [(OTHER, "mapped"), (OTHER_TOKENS, "mapped+tokens")])
async def test_memory_is_taken_where_the_receiver_has_a_map(
    alice: Node, bob: Node, model: Fingerprint, tier: str
) -> None:
    alice.remember()
    host(bob, model)
    known = add_map(bob, model)
    assert (await send_memory(alice)).tier == tier
    assert (await pull_memory(bob, "alice")).tier == tier
    for line in events(bob.services):
        if line["event"] == "transfer.completed":
            assert (line["tier"], line["map"]) == (tier, known)
    (info,) = await memories.list_memories(bob.services)
    assert info.tier == tier
    (peer,) = await peers.list_peers(alice.services, probe=True)
    assert peer.tier == tier


async def test_map_of_the_sender_alone_changes_nothing(alice: Node, bob: Node) -> None:
    alice.remember()
    host(bob, OTHER)
    add_map(alice, OTHER)
    with pytest.raises(IncompatibleModel, match="architecture"):
        await send_memory(alice)
    assert events(bob.services) == []


async def test_map_that_its_gate_did_not_admit_changes_nothing(alice: Node, bob: Node) -> None:
    alice.remember()
    host(bob, OTHER)
    add_map(bob, OTHER, gate=replace(GATE, admitted=False))
    with pytest.raises(IncompatibleModel, match="architecture"):
        await send_memory(alice)
    with pytest.raises(IncompatibleModel, match="architecture"):
        await pull_memory(bob, "alice")
    assert bob.services.memories.all() == ()


async def test_map_to_another_model_changes_nothing(alice: Node, bob: Node) -> None:
    alice.remember()
    host(bob, OTHER)
    add_map(bob, OTHER_TOKENS)
    with pytest.raises(IncompatibleModel):
        await send_memory(alice)
    assert MEMORY.header.id not in {record.id for record in bob.services.memories.all()}
