"""Memories that go on behind others: read in two goes, sent in parts, and used as one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvnet.api import MemoryInfo
from kvnet.client import Node
from kvnet.errors import AlignmentRefused, MissingPrefix, RequestError
from tests.e2e.daemons import Pair, questions


@pytest.fixture
def nodes(pair: Pair) -> Iterator[tuple[Node, Node]]:
    """Connections to alice and bob."""
    with pair.alice.node() as alice, pair.bob.node() as bob:
        yield alice, bob


def halves(text: str) -> tuple[str, str]:
    """A text cut between two sentences."""
    at = text.index(". ", len(text) // 2) + 1
    return text[:at], text[at:].lstrip()


def in_two_goes(node: Node, text: str, **options: str) -> tuple[MemoryInfo, MemoryInfo]:
    """The memory of the first half, and the one behind it."""
    first, second = halves(text)
    base = node.remember(first)
    return base, node.remember(second, after=base, **options)


@pytest.mark.parametrize("codec", ["exact", "int8"])
def test_text_read_in_two_goes_is_answered_from_as_one_read_in_one(
    nodes: tuple[Node, Node], codec: str
) -> None:
    alice, _ = nodes
    text, question = questions(3, seed=61)[0 if codec == "exact" else 1]
    base, rest = in_two_goes(alice, text, codec=codec)
    whole = alice.remember(text)
    assert (rest.start_pos, rest.behind) == (base.tokens, base.id)
    assert rest.tokens + base.tokens == whole.tokens
    answer = alice.ask(question.prompt, rest)
    assert answer.text == alice.ask(question.prompt, whole).text
    assert answer.kv.reused_tokens == whole.tokens


def test_send_brings_first_what_the_peer_lacks(nodes: tuple[Node, Node]) -> None:
    alice, bob = nodes
    text, question = questions(1, seed=62)[0]
    base, rest = in_two_goes(alice, text)
    report = alice.send(rest, "bob", codec="int8")
    unread = [message.memory for message in bob.inbox()]
    assert report.memory in unread
    assert bob.show(report.memory).behind != ""
    assert base.id not in unread  # what came along is no message
    ours, theirs = alice.ask(question.prompt, rest), bob.ask(question.prompt, report.memory)
    assert theirs.text == ours.text
    assert (ours.kv.untrusted_source, theirs.kv.untrusted_source) == ("", "alice")


def test_own_reading_behind_a_received_memory_names_who_sent_that(nodes: tuple[Node, Node]) -> None:
    alice, bob = nodes
    text, question = questions(1, seed=67)[0]
    first, second = halves(text)
    base = alice.send(alice.remember(first), "bob", codec="exact").memory
    rest = bob.remember(second, after=base)
    assert bob.ask(question.prompt, rest).kv.untrusted_source == "alice"


def test_base_that_the_peer_holds_in_any_coding_is_not_sent_again(nodes: tuple[Node, Node]) -> None:
    alice, bob = nodes
    text, question = questions(1, seed=63)[0]
    base, rest = in_two_goes(alice, text)
    alice.send(base, "bob", codec="int8")
    before = len(bob.memories())
    report = alice.send(rest, "bob", codec="exact")
    assert len(bob.memories()) == before + 1
    assert bob.ask(question.prompt, report.memory).text == alice.ask(question.prompt, rest).text


def test_pull_and_ask_fetch_what_is_before(nodes: tuple[Node, Node]) -> None:
    alice, bob = nodes
    for number, (text, question) in enumerate(questions(6, seed=64)[::5]):  # two texts
        _, rest = in_two_goes(alice, text)
        if number:
            bob.pull(rest.id, "alice")
            answer = bob.ask(question.prompt, rest.id)
        else:
            answer = bob.ask(question.prompt, rest.id, peer="alice")
        assert answer.text == alice.ask(question.prompt, rest).text


def test_forgotten_base_leaves_a_memory_that_says_what_it_lacks(nodes: tuple[Node, Node]) -> None:
    alice, _ = nodes
    text, question = questions(1, seed=65)[0]
    base, rest = in_two_goes(alice, text)
    alice.forget(base)
    shown = alice.show(rest.id)
    assert (shown.tier, shown.behind, shown.start_pos) == ("refused", "", base.tokens)
    with pytest.raises(MissingPrefix, match=f"{base.tokens} tokens"):
        alice.ask(question.prompt, rest)
    with pytest.raises(MissingPrefix, match="send or read that one first"):
        alice.send(rest, "bob")
    alice.remember(halves(text)[0])  # the same tokens again are as good
    assert alice.ask(question.prompt, rest).text == alice.ask(question.prompt, context=text).text


def test_memory_behind_another_is_asked_alone_and_has_no_text_of_its_own(nodes: tuple[Node, Node]) -> None:
    alice, _ = nodes
    text, question = questions(1, seed=66)[0]
    base, rest = in_two_goes(alice, text)
    with pytest.raises(RequestError, match="comes along by itself"):
        alice.ask(question.prompt, [base, rest])
    with pytest.raises(RequestError, match="send it without"):
        alice.send(rest, "bob", with_text=True)
    with pytest.raises(AlignmentRefused, match="have the whole text read"):
        alice.ask(question.prompt, rest, align="text")
    with pytest.raises(RequestError, match="only whole memories are compared"):
        alice.ask(question.prompt, rest, verify_text=True)
    with pytest.raises(RequestError, match="leave --attention"):
        alice.remember(" More.", after=base, attention=True)
