"""A receipt is lost, and one of the two nodes has another key by the next attempt: still one message."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from kvnetd.actions.send import send
from kvnetd.parties import take_rotation
from kvnetd.services import Services
from kvnetd.transfers import Transfers
from kvnetd.trust import make_gate

from kvnet.api import SendReport
from kvnet.errors import PeerUnreachable, ReplayedMessage
from kvnet.identity.keys import NodeKey
from kvnet.identity.rotation import make_statement
from kvnet.transfer.messages import Receipt, open_sealed, seal
from tests.builders import RECEIVER, SENDER, make_memory
from tests.kvnetd.nodes import MEMORY, Node, complete, inbox, offer

NEW = NodeKey(b"\x04" * 32)


def with_key(services: Services, key: NodeKey) -> Services:
    """The same node, started again after a rotation."""
    gate = make_gate(
        key,
        services.peers,
        namespace=services.config.namespace,
        limits=services.config.limits,
        log=services.log,
        trust_thread=services.trust_thread,
    )
    return replace(services, key=key, gate=gate)


def statement(old: NodeKey) -> bytes:
    return make_statement(old, NEW, rotated_at=int(time.time()))


async def delivered(services: Services, transfers: Transfers, memory: str, note: str) -> SendReport:
    reports: list[Any] = []
    steps = send(services, transfers, memory=memory, to="bob", note=note, agent="")
    async with aclosing(steps):
        reports += [step async for step in steps]
    assert isinstance(reports[-1], SendReport)
    return reports[-1]


def losing(failures: int, act: Callable[..., None]) -> Callable[..., None]:
    """As if the receipt never came, so many times."""

    def complete_it(*arguments: Any) -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise PeerUnreachable("the link broke")
        act(*arguments)

    return complete_it


async def test_sender_that_rotated_gets_a_receipt_and_leaves_no_second_message(
    alice: Node, bob: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = alice.remember()
    ledger = alice.services.ledger
    monkeypatch.setattr(ledger, "complete", losing(1, ledger.complete))
    with pytest.raises(PeerUnreachable):
        await delivered(alice.services, alice.transfers, record.id, "once")
    assert [message.note for message in inbox(bob.services)] == ["once"]
    await take_rotation(bob.services, statement(SENDER))
    services = with_key(alice.services, NEW)
    await delivered(services, Transfers(services), record.id, "once")
    assert [message.note for message in inbox(bob.services)] == ["once"]
    await delivered(services, Transfers(services), record.id, "twice")
    assert [message.note for message in inbox(bob.services)] == ["once", "twice"]


async def test_receiver_that_rotated_signs_for_what_its_old_key_received(
    transfers: Transfers, services: Services
) -> None:
    sent = offer()
    before = await complete(await transfers.open_inbound(seal(SENDER, sent)))
    rotated = with_key(services, NEW)
    again = replace(sent, receiver=NEW.node_id)
    receipt = await complete(await Transfers(rotated).open_inbound(seal(SENDER, again)))
    said, verified = open_sealed(Receipt, receipt, signer=NEW.public)
    was, _ = open_sealed(Receipt, before, signer=RECEIVER.public)
    assert verified.signer == NEW.node_id
    assert (said.chunks_digest, said.memory) == (was.chunks_digest, was.memory)
    assert said.offer_digest != was.offer_digest
    assert len(inbox(services)) == 1


async def test_another_memory_under_an_id_that_is_done_is_refused_from_a_new_key_too(
    transfers: Transfers, services: Services
) -> None:
    await complete(await transfers.open_inbound(seal(SENDER, offer())))
    await take_rotation(services, statement(SENDER))
    other = offer(memory=make_memory(1), sender=NEW.node_id)
    with pytest.raises(ReplayedMessage):
        await transfers.open_inbound(seal(NEW, other))
    assert [record.id for record in services.memories.all()] == [MEMORY.header.id]
