"""Reading and sending in one go, and an answer that begins while the memory arrives."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from kvnet.api import LayerProgress, SendReport
from kvnet.client import Node
from kvnet.errors import NotPermitted, RequestError
from kvnet.identity.peers import Permission
from tests.e2e.daemons import Pair, long_text, questions


@pytest.fixture
def nodes(pair: Pair) -> Iterator[tuple[Node, Node]]:
    """Connections to alice and bob."""
    with pair.alice.node() as alice, pair.bob.node() as bob:
        yield alice, bob


@pytest.mark.parametrize("codec", ["exact", "int8", "compact"])
def test_text_sent_in_one_go_is_the_memory_that_reading_it_first_gives(
    nodes: tuple[Node, Node], codec: str
) -> None:
    alice, bob = nodes
    text, question = questions(3)[["exact", "int8", "compact"].index(codec)]
    steps = list(alice.send_stream("", "bob", text=text, name=f"live-{codec}", codec=codec))
    report = steps[-1]
    assert isinstance(report, SendReport)
    assert [step.layer_idx for step in steps[:-1] if isinstance(step, LayerProgress)] == [0, 1, 2, 3]
    assert report.codec == codec
    assert bob.show(report.memory).id == alice.show(f"live-{codec}").id
    assert bob.ask(question.prompt, report.memory).text == bob.ask(question.prompt, context=text).text


def test_exact_text_sent_in_one_go_has_the_id_that_reading_it_gives(nodes: tuple[Node, Node]) -> None:
    alice, _ = nodes
    text = long_text(71)
    assert alice.send_text(text, "bob", codec="exact").memory == alice.remember(text).id


@pytest.mark.parametrize("codec", ["exact", "int8"])
def test_peer_reads_and_this_node_answers(nodes: tuple[Node, Node], codec: str) -> None:
    alice, bob = nodes
    for text, question in questions(4):
        answer = bob.ask(question.prompt, context=text, peer="alice", codec=codec)
        assert answer.text == alice.ask(question.prompt, context=text).text
        assert (answer.kv.tier, answer.kv.codec, answer.kv.fallback) == ("exact", codec, "none")
        assert answer.kv.reused_tokens > answer.kv.recomputed_tokens > 0
        assert answer.kv.untrusted_source == "alice"


def test_what_is_read_for_a_peer_does_not_stay_unless_it_was_asked_for_here(nodes: tuple[Node, Node]) -> None:
    alice, bob = nodes
    before = {memory.id for memory in alice.memories(all=True)}
    bob.ask("What?", context=long_text(73), peer="alice", codec="exact", max_tokens=1)
    asked_for = alice.remember(long_text(74))
    bob.ask("What?", context=long_text(74), peer="alice", codec="exact", max_tokens=1)
    deadline = time.monotonic() + 10  # the last step of a transfer is logged after the answer
    while (new := {memory.id for memory in alice.memories(all=True)} - before) != {asked_for.id}:
        assert time.monotonic() < deadline, new
        time.sleep(0.05)
    assert alice.ask("What?", asked_for, max_tokens=1).tokens == 1


def test_peers_memory_is_answered_from_while_it_arrives(nodes: tuple[Node, Node]) -> None:
    alice, bob = nodes
    text, question = questions(1)[0]
    memory = alice.remember("Before that, nothing. " + text)
    answer = bob.ask(question.prompt, memory.id, peer="alice")
    assert answer.text == alice.ask(question.prompt, memory).text
    assert bob.show(memory.id).origin != ""


def test_what_a_peer_sends_is_not_compared_with_a_text_while_it_arrives(nodes: tuple[Node, Node]) -> None:
    _, bob = nodes
    with pytest.raises(RequestError, match="pull the memory first"):
        bob.ask("What?", context="The key of Ada is red.", peer="alice", verify_text=True)


def test_peer_is_told_to_read_or_to_send_and_not_both(nodes: tuple[Node, Node]) -> None:
    _, bob = nodes
    with pytest.raises(RequestError, match="give a text"):
        bob.ask("What?", peer="alice")


def test_peer_without_the_permission_has_nothing_read_for_it(pair: Pair) -> None:
    with pair.alice.node() as alice, pair.bob.node() as bob:
        alice.trust_peer("bob", permissions=("send", "pull"))
        try:
            with pytest.raises(NotPermitted):
                bob.ask("What?", context="The key of Ada is red.", peer="alice")
        finally:
            alice.trust_peer("bob", permissions=tuple(Permission))
