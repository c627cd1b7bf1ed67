"""What a hand-over is estimated to take, and the ways it can go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from kvnetd.rates import Rates

from kvnet.client import Node
from kvnet.errors import NotPermitted, RequestError
from kvnet.identity.peers import Permission
from tests.e2e.daemons import MakeDaemon, Pair, dialled_at, introduce, long_text, questions
from tests.lan.proxy import FaultProxy, Faults

STALLS_AFTER_NBYTES = 300_000  # hellos and a text pass, a memory does not


@pytest.fixture
def nodes(pair: Pair) -> Iterator[tuple[Node, Node]]:
    """Connections to alice and bob."""
    with pair.alice.node() as alice, pair.bob.node() as bob:
        yield alice, bob


def test_estimate_prices_every_way_and_names_the_fastest(nodes: tuple[Node, Node]) -> None:
    alice, _ = nodes
    memory = alice.remember(long_text(81), keep_text=True)
    found = alice.estimate(memory, "bob", codec="int8")
    prices = {"transfer": found.transfer_s, "text": found.text_s, "split": found.split_s}
    assert found.why_no_text == ""
    assert all(price is not None and price > 0 for price in prices.values())
    assert 1 <= found.split_tokens < memory.tokens
    assert found.choice in prices
    assert (found.codec, found.tokens, found.peer) == ("int8", memory.tokens, "bob")


@pytest.mark.parametrize("keep_text", [True, False])
@pytest.mark.parametrize("mode", ["text", "split"])
def test_peer_reads_the_head_and_holds_both_parts(
    nodes: tuple[Node, Node], mode: str, keep_text: bool
) -> None:
    alice, bob = nodes
    text, question = questions(16, seed=82)[["text", "split"].index(mode) * 10 + keep_text * 5]
    memory = alice.remember(text, keep_text=keep_text)
    report = alice.send(memory, "bob", mode=mode, codec="exact")
    tail = bob.show(report.memory)
    assert (report.mode, report.predicted_s > 0) == (mode, True)
    assert tail.start_pos + tail.tokens == memory.tokens
    assert (tail.tokens == 1) is (mode == "text")
    assert bob.show(tail.behind).tokens == tail.start_pos
    assert bob.ask(question.prompt, tail.id).text == alice.ask(question.prompt, memory).text
    assert tail.id in [message.memory for message in bob.inbox()]


def test_same_message_in_parts_again_is_read_no_second_time(nodes: tuple[Node, Node]) -> None:
    alice, bob = nodes
    memory = alice.remember(long_text(83))
    alice.send(memory, "bob", mode="text")
    before = bob.memories()
    alice.send(memory, "bob", mode="text", note="again")
    assert bob.memories() == before


def test_auto_does_what_the_estimate_says_and_logs_it_beside_the_outcome(
    nodes: tuple[Node, Node], pair: Pair
) -> None:
    alice, bob = nodes
    text, question = questions(1, seed=84)[0]
    memory = alice.remember(text)
    choice = alice.estimate(memory, "bob").choice
    report = alice.send(memory, "bob", mode="auto")
    assert report.mode == choice
    assert bob.ask(question.prompt, report.memory).text == alice.ask(question.prompt, memory).text
    last = pair.alice.events("transfer.completed")[-1]
    assert (last["mode"], last["predicted_s"]) == (choice, report.predicted_s)
    assert last["duration_s"] > 0


def test_mode_that_is_closed_says_why(nodes: tuple[Node, Node]) -> None:
    alice, _ = nodes
    text, _ = questions(1, seed=85)[0]
    memory = alice.remember(text)
    rest = alice.remember("And that is all.", after=memory)
    with pytest.raises(RequestError, match="goes on behind another"):
        alice.send(rest, "bob", mode="text")
    with pytest.raises(RequestError, match="none of transfer, text, split, auto"):
        alice.send(memory, "bob", mode="pigeon")
    with pytest.raises(RequestError, match="leave --with-text out"):
        alice.send(memory, "bob", mode="auto", with_text=True)
    with pytest.raises(RequestError, match="leave --mode out"):
        alice.send_text(text, "bob", mode="split")


def test_peer_that_reads_no_texts_for_this_one_gets_a_transfer(nodes: tuple[Node, Node]) -> None:
    alice, bob = nodes
    memory = alice.remember(long_text(86))
    bob.trust_peer("alice", permissions=("send", "pull"))
    try:
        with pytest.raises(NotPermitted):
            alice.send(memory, "bob", mode="text")
        assert alice.send(memory, "bob", mode="auto").mode == "transfer"
    finally:
        bob.trust_peer("alice", permissions=tuple(Permission))


async def test_transfer_whose_link_stalls_ends_and_the_text_goes(daemon: MakeDaemon) -> None:
    alice, bob = daemon("alice"), daemon("bob")
    alice.start()
    fingerprint = bob.start().fingerprint.digest
    bob.stop()
    measured = Rates(
        bob.home.store / "rates.json"
    )  # as if bob read slowly, so that a transfer is tried first
    for _ in range(8):
        measured.read(fingerprint, 100, 1.0)
        measured.read(fingerprint, 600, 2.0)
    bob.start()
    async with alice.async_node() as node:
        await asyncio.to_thread(introduce, alice, bob)
        before = await node.remember(long_text(87))
        await node.send(before, "bob", codec="exact")  # the link is known as a fast one
        stalls = Faults(stall_after_nbytes=STALLS_AFTER_NBYTES)
        async with (
            FaultProxy("127.0.0.1", int(bob.grpc.rpartition(":")[2]), to_server=stalls) as proxy,
            dialled_at(alice, bob, proxy.port),
        ):
            memory = await node.remember(long_text(88))
            report = await asyncio.wait_for(node.send(memory, "bob", codec="exact", mode="auto"), 90)
    assert report.mode == "text"
    (failed,) = alice.events("transfer.failed")
    assert (failed["mode"], failed["error"]) == ("transfer", "cancelled")
    with bob.node() as node:
        assert node.show(report.memory).tokens == 1
