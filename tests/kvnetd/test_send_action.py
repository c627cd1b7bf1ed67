"""send: what the peer cannot decode is not even encoded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from kvnetd import encoding
from kvnetd.actions.send import say_hello
from kvnetd.parties import this_receiver
from kvnetd.services import Services

from kvnet.errors import IncompatibleModel, PeerNotAdded
from kvnet.transfer.admission import Receiver
from tests.kvnetd.exchange import send_memory
from tests.kvnetd.nodes import MEMORY, Node


@pytest.mark.parametrize(
    ("codec", "limits", "told"),
    [
        ("int8", {"schemes": ("raw",)}, "int8, only exact;"),
        ("", {"schemes": ("raw",)}, "int8, only exact;"),
        ("compact", {"schemes": ("raw", "grouped")}, "compact, only exact, int8, k8v4, int4, int4-hadamard;"),
        ("int4", {"schemes": ()}, "int4, only nothing;"),
        ("compact", {"compressions": ("none",)}, "zstd, only none;"),
    ],
)
async def test_peer_that_could_not_decode_it_is_known_before_anything_is_encoded(
    alice: Node, bob: Node, monkeypatch: pytest.MonkeyPatch, codec: str, limits: dict[str, Any], told: str
) -> None:
    alice.remember()

    def narrow(services: Services, **options: Any) -> Receiver:
        receiver = this_receiver(services, **options)
        return replace(receiver, limits=replace(receiver.limits, **limits))

    async def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it was encoded")

    monkeypatch.setattr("kvnetd.transfers.this_receiver", narrow)
    monkeypatch.setattr(encoding, "encode", refuse)
    with pytest.raises(IncompatibleModel, match=f"bob: does not decode {told}"):
        await send_memory(alice, memory=MEMORY.header.id, codec=codec)


async def test_address_where_nobody_answers_neither_delays_nor_hides_what_the_peer_says_at_another(
    alice: Node, bob: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = replace(alice.services.peers.find("bob"), address="127.0.0.1:1")
    monkeypatch.setattr(alice.services.directory, "seen", lambda node_id: (bob.address,))
    hello, address, _ = await say_hello(alice.services, peer)
    assert (hello.name, address) == (bob.services.config.name, bob.address)
    bob.services.peers.remove(alice.services.key.node_id)
    with pytest.raises(PeerNotAdded):
        await say_hello(alice.services, peer)
