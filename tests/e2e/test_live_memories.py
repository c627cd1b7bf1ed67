"""A memory that follows to a peer while it is generated, and can be asked about at any time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvnet.api import Answer
from kvnet.client import Node
from kvnet.errors import RequestError
from tests.e2e.daemons import Daemon, introduce, questions


@pytest.fixture(scope="module")
def listener(rambler: Daemon, homes: Path) -> Iterator[Daemon]:
    """A node with the rambler's model, which knows it."""
    daemon = Daemon(homes / "listener", "listener", model=rambler.flags["model"])
    try:
        daemon.start()
        introduce(rambler, daemon)
        yield daemon
    finally:
        daemon.stop()


@pytest.fixture
def nodes(rambler: Daemon, listener: Daemon) -> Iterator[tuple[Node, Node]]:
    """Connections to the rambler and the listener."""
    with rambler.node() as speaker, listener.node() as hearer:
        yield speaker, hearer


PROMPT = "Tell me all that you know."
DELIVERED_S = 60.0
MORE = "And what is the code of the north gate?"


@pytest.mark.parametrize("codec", ["exact", "int8"])
@pytest.mark.parametrize("behind", ["memory", "text", "nothing"])
def test_peer_goes_on_where_the_answer_ended_as_its_own_node_does(
    nodes: tuple[Node, Node], behind: str, codec: str
) -> None:
    speaker, hearer = nodes
    text, _ = questions(1, seed=91)[0]
    memory = speaker.remember(text) if behind == "memory" else ""
    context = text if behind == "text" else ""
    name = f"talk-{behind}-{codec}"
    answer = speaker.ask(
        PROMPT, memory, context=context, stream_to="listener", name=name, codec=codec, max_tokens=50
    )
    assert (answer.tokens, answer.live_problem) == (50, "")
    plain = speaker.ask(PROMPT, memory, context=context, max_tokens=50)
    assert answer.text == plain.text
    assert speaker.show(name).id == answer.memory
    there = hearer.show(f"rambler/{name}")
    assert there.start_pos + there.tokens == answer.kv.reused_tokens + answer.kv.recomputed_tokens + 50
    ours, theirs = speaker.ask(MORE, name), hearer.ask(MORE, f"rambler/{name}")
    assert theirs.text == ours.text
    assert (ours.kv.untrusted_source, theirs.kv.untrusted_source) == ("", "rambler")


def test_peer_joins_while_it_is_generated_and_only_the_end_is_a_message(
    nodes: tuple[Node, Node],
) -> None:
    speaker, hearer = nodes
    before = len(hearer.inbox())
    heard: list[int] = []
    for step in speaker.ask_stream(PROMPT, stream_to="listener", name="joined", max_tokens=400):
        if isinstance(step, Answer):
            answer = step
        elif len(heard) < 3 and any(one.name == "rambler/joined" for one in hearer.memories()):
            assert len(hearer.inbox()) == before
            found = hearer.show("rambler/joined")
            heard.append(found.start_pos + found.tokens)
    assert answer.live_problem == ""
    last = hearer.show("rambler/joined")
    assert len(heard) == 3
    assert heard[0] < last.start_pos + last.tokens
    assert [message.memory for message in hearer.inbox()[before:]] == [last.id]


def test_peer_that_is_off_gets_all_of_it_later(rambler: Daemon, listener: Daemon) -> None:
    with listener.node() as hearer:
        before = len(hearer.inbox())
    with rambler.node() as speaker:
        listener.stop()
        try:
            answer = speaker.ask(PROMPT, stream_to="listener", name="off", max_tokens=40)
            assert "outbox" in answer.live_problem
            waiting = speaker.outbox()
            assert [(entry.label, entry.quiet) for entry in waiting] == [
                ("off", entry is not waiting[-1]) for entry in waiting
            ]
        finally:
            listener.start()
        for entry in speaker.outbox():
            speaker.retry_outbox_entry(entry)
        deadline = time.monotonic() + DELIVERED_S
        while speaker.outbox():
            assert time.monotonic() < deadline, speaker.outbox()
            time.sleep(0.1)
        with listener.node() as hearer:
            (newest,) = [message.memory for message in hearer.inbox()[before:]]
            assert hearer.show("rambler/off").id == newest
            assert hearer.ask(MORE, newest).text == speaker.ask(MORE, "off").text


def test_name_of_ones_own_is_not_moved_by_a_peer(nodes: tuple[Node, Node]) -> None:
    speaker, hearer = nodes
    own = hearer.remember("Mine is mine.", name="rambler/mine")
    speaker.ask(PROMPT, stream_to="listener", name="mine", max_tokens=8)
    assert hearer.show("rambler/mine").id == own.id


def test_what_cannot_be_streamed_is_refused_in_a_sentence(nodes: tuple[Node, Node]) -> None:
    speaker, _ = nodes
    memories = [speaker.remember(text) for text, _ in questions(6, seed=92)[::5]]
    with pytest.raises(RequestError, match="behind one memory"):
        speaker.ask(PROMPT, memories, stream_to="listener")
    with pytest.raises(RequestError, match="contradict"):
        speaker.ask(PROMPT, context="x", peer="listener", stream_to="listener")
    with pytest.raises(RequestError, match="printable"):
        speaker.ask(PROMPT, stream_to="listener", name="mem_x")
