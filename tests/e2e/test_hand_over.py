"""One node reads, the other answers: the same reply as on the node that read, and as from the text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from kvnet.api import Answer, LayerProgress, MemoryInfo, Progress, SendReport
from kvnet.client import Node
from kvnet.errors import UnknownMemory, UnknownMessage
from kvnet.types import DType
from tests.e2e.daemons import Daemon, Pair, long_text, questions, reply, spooled

NUM_QUESTIONS = 40


@dataclass(frozen=True, slots=True)
class Asked:
    """One question, answered in every way."""

    memory: MemoryInfo
    expected: str
    at_sender: Answer
    at_receiver: Answer
    from_text: Answer
    without: Answer


@pytest.fixture(scope="module")
def asked(pair: Pair) -> list[Asked]:
    """Every question put to alice, to bob, to the text, and to nothing."""
    found: list[Asked] = []
    with pair.alice.node() as alice, pair.bob.node() as bob:
        assert alice.status().geometry.dtype is DType.FLOAT32
        memories: dict[str, MemoryInfo] = {}
        for text, question in questions(NUM_QUESTIONS):
            if text not in memories:
                memories[text] = alice.remember(text)
                alice.send(memories[text], "bob", codec="exact")
            memory, prompt = memories[text], question.prompt
            found.append(
                Asked(
                    memory,
                    question.expected,
                    alice.ask(prompt, memory),
                    bob.ask(prompt, memory),
                    bob.ask(prompt, context=text),
                    bob.ask(prompt),
                )
            )
    return found


@pytest.fixture
def nodes(pair: Pair) -> Iterator[tuple[Node, Node]]:
    """Connections to alice and bob."""
    with pair.alice.node() as alice, pair.bob.node() as bob:
        yield alice, bob


def _digest_of(daemon: Daemon, memory: MemoryInfo) -> dict[str, str]:
    folder = daemon.home.store / "memories" / memory.id
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_the_receiver_replies_as_the_sender_does_to_every_question(asked: list[Asked]) -> None:
    assert len(asked) == NUM_QUESTIONS
    assert [reply(one.at_receiver) for one in asked] == [reply(one.at_sender) for one in asked]


def test_a_memory_replies_as_its_text_does_to_every_question(asked: list[Asked]) -> None:
    assert [reply(one.at_receiver) for one in asked] == [reply(one.from_text) for one in asked]


def test_nine_in_ten_replies_are_right_with_the_memory_and_chance_without(asked: list[Asked]) -> None:
    right = sum(one.at_receiver.text.strip() == one.expected for one in asked)
    guessed = sum(one.without.text.strip() == one.expected for one in asked)
    assert right >= 0.9 * len(asked)
    assert guessed <= 0.1 * len(asked)


def test_without_the_memory_the_replies_are_others(asked: list[Asked]) -> None:
    same = sum(one.without.text == one.at_receiver.text for one in asked)
    assert same <= 0.1 * len(asked)


def test_the_kv_report_counts_the_memory_as_reused_and_the_question_as_computed(asked: list[Asked]) -> None:
    for one in asked:
        question_tokens = one.from_text.kv.recomputed_tokens - one.memory.tokens
        assert question_tokens > 0
        for answer in (one.at_sender, one.at_receiver):
            assert answer.kv.tier == "exact"
            assert answer.kv.fallback == "none"
            assert answer.kv.reused_tokens == one.memory.tokens
            assert answer.kv.recomputed_tokens == question_tokens
            assert 0 < answer.kv.ttft_s <= answer.seconds
        for answer in (one.from_text, one.without):
            assert (answer.kv.tier, answer.kv.reused_tokens) == ("none", 0)


def test_asking_twice_gives_the_same(asked: list[Asked], nodes: tuple[Node, Node], pair: Pair) -> None:
    _, bob = nodes
    once, twice = bob.ask(pair.prompt, pair.memory), bob.ask(pair.prompt, pair.memory)
    assert reply(once) == reply(twice) == pair.expected
    assert once.kv.reused_tokens == twice.kv.reused_tokens


def test_sending_again_succeeds_and_stores_nothing_new(nodes: tuple[Node, Node], pair: Pair) -> None:
    alice, bob = nodes
    memory = alice.remember(long_text(1))
    first = alice.send(memory, "bob", codec="exact")
    assert first.chunks == 2 * memory.layers == 8
    assert first.raw_bytes == memory.nbytes
    before, held = _digest_of(pair.bob, memory), bob.status()
    again = alice.send(memory, "bob", codec="exact")
    assert (again.memory, again.tier) == (memory.id, "exact")
    assert again.transfer_id != first.transfer_id
    after = bob.status()
    assert (after.memories, after.store_nbytes) == (held.memories, held.store_nbytes)
    assert _digest_of(pair.bob, memory) == before
    for report in (first, again):
        assert not spooled(pair.bob, report.transfer_id)


def test_the_senders_own_file_is_untouched_by_all_of_it(nodes: tuple[Node, Node], pair: Pair) -> None:
    alice, bob = nodes
    memory = alice.remember(long_text(2))
    before = _digest_of(pair.alice, memory)
    sent = alice.send(memory, "bob")
    alice.ask(pair.prompt, memory)
    bob.ask(pair.prompt, sent.memory)
    assert _digest_of(pair.alice, memory) == before
    assert sent.memory != memory.id


def test_a_memory_can_be_pulled(nodes: tuple[Node, Node], pair: Pair) -> None:
    alice, bob = nodes
    memory = bob.remember(long_text(3))
    report = alice.pull(memory.id, "bob")
    assert (report.memory, report.peer, report.tier) == (memory.id, "bob", "exact")
    assert report.raw_bytes == memory.nbytes
    assert alice.show(memory.id).origin == pair.bob.node_id
    assert reply(alice.ask(pair.prompt, memory)) == reply(bob.ask(pair.prompt, memory))


def test_a_text_read_on_both_nodes_is_the_same_memory(nodes: tuple[Node, Node]) -> None:
    alice, bob = nodes
    assert alice.remember("Omar's city is Lisbon.").id == bob.remember("Omar's city is Lisbon.").id


def test_a_compressed_memory_arrives_with_the_same_id_and_contents(nodes: tuple[Node, Node]) -> None:
    alice, bob = nodes
    text = long_text(4)
    memory = alice.remember(text, compression="lz4")
    report = alice.send(memory, "bob", codec="exact")
    assert report.wire_bytes <= report.raw_bytes
    assert bob.remember(text).id == memory.id


def test_progress_is_told_layer_by_layer(nodes: tuple[Node, Node]) -> None:
    alice, _ = nodes
    *read, memory = alice.remember_stream(long_text(5))
    assert isinstance(memory, MemoryInfo)
    assert read == [Progress(done, memory.layers) for done in range(1, memory.layers + 1)]
    *sent, report = alice.send_stream(memory, "bob", codec="exact")
    assert isinstance(report, SendReport)
    layers = [step.layer_idx for step in sent if isinstance(step, LayerProgress)]
    assert layers == list(range(memory.layers))


def test_streamed_pieces_join_to_the_answers_text(nodes: tuple[Node, Node], pair: Pair) -> None:
    _, bob = nodes
    *pieces, answer = bob.ask_stream(pair.prompt, pair.memory)
    assert isinstance(answer, Answer)
    assert len(pieces) > 1
    assert "".join(map(str, pieces)) == answer.text == pair.expected[0]


def test_a_stop_text_ends_the_reply_before_it(nodes: tuple[Node, Node], pair: Pair) -> None:
    _, bob = nodes
    answer = bob.ask(pair.prompt, pair.memory, stop=(".",))
    assert answer.text == pair.expected[0].split(".")[0]
    assert answer.finish_reason == "stop"


def test_a_seed_repeats_a_sampled_reply(nodes: tuple[Node, Node], pair: Pair) -> None:
    alice, bob = nodes
    sampled = [
        node.ask(pair.prompt, pair.memory, temperature=3.0, seed=11, max_tokens=12).text
        for node in (alice, bob, bob)
    ]
    assert sampled[0] == sampled[1] == sampled[2] != pair.expected[0]


async def test_the_asynchronous_node_does_what_the_other_does(pair: Pair) -> None:
    async with pair.alice.async_node("writer") as alice, pair.bob.async_node("async") as bob:
        memory = await alice.remember(long_text(6), name="through async")
        report = await alice.send(memory, "bob/async", note="hello", codec="exact")
        pieces = [step async for step in bob.ask_stream(pair.prompt, memory)]
        status, listed = await bob.status(), await bob.memories()
        message = (await bob.inbox())[0]
        await bob.acknowledge(message)
        assert await bob.inbox() == []
    with pair.alice.node() as alice_sync, pair.bob.node() as bob_sync:
        assert alice_sync.remember(long_text(6)).header == memory.header
        assert alice_sync.show("through async").header == memory.header
        assert bob_sync.status().node_id == status.node_id
        assert bob_sync.memories() == listed
        answer = bob_sync.ask(pair.prompt, memory)
    assert isinstance(pieces[-1], Answer)
    assert reply(pieces[-1]) == reply(answer)
    assert "".join(map(str, pieces[:-1])) == answer.text
    assert (report.memory, message.memory, message.note) == (memory.id, memory.id, "hello")
    assert message.sender_agent == "writer"


def test_an_agents_message_is_seen_by_it_alone_until_acknowledged_across_a_restart(pair: Pair) -> None:
    with pair.alice.node("author") as alice:
        memory = alice.remember(long_text(7))
        alice.send(memory, "bob/reviewer", note="please read", codec="exact")
    with pair.bob.node("reviewer") as reviewer, pair.bob.node("other") as other, pair.bob.node() as plain:
        (message,) = reviewer.inbox()
        assert (message.memory, message.note, message.agent) == (memory.id, "please read", "reviewer")
        assert (message.sender, message.sender_name) == (pair.alice.node_id, "alice")
        assert message.sender_agent == "author"
        assert other.inbox(all=True) == []
        assert message.id not in [one.id for one in plain.inbox(all=True)]
    assert pair.bob.stop() == 0
    pair.bob.start()
    with pair.bob.node("reviewer") as reviewer:
        assert reviewer.inbox() == [message]
        assert reviewer.ask(pair.prompt, message.memory).kv.reused_tokens == memory.tokens
        acknowledged = reviewer.acknowledge(message)
        assert acknowledged.acknowledged_at
        assert reviewer.acknowledge(message) == acknowledged
        assert reviewer.inbox() == []
        assert reviewer.inbox(all=True) == [acknowledged]
        with pytest.raises(UnknownMessage):
            reviewer.acknowledge("msg_nosuch")
    pair.check()


def test_a_forgotten_memory_is_gone_here_and_stays_there(nodes: tuple[Node, Node], pair: Pair) -> None:
    alice, bob = nodes
    memory = alice.remember(long_text(8), name="short-lived")
    alice.send(memory, "bob", codec="exact")
    assert alice.forget("short-lived").id == memory.id
    for wanted in (memory.id, "short-lived"):
        with pytest.raises(UnknownMemory):
            alice.ask(pair.prompt, wanted)
    assert not (pair.alice.home.store / "memories" / memory.id).exists()
    assert memory.id not in [one.id for one in alice.memories()]
    assert bob.ask(pair.prompt, memory).kv.reused_tokens == memory.tokens
    alice.pull(memory.id, "bob")
    assert alice.show(memory.id).nbytes == memory.nbytes


def test_many_connections_at_once_are_served_in_turn(pair: Pair) -> None:
    with ExitStack() as stack:
        nodes = [stack.enter_context(pair.bob.node()) for _ in range(5)]
        streams = [node.ask_stream(pair.prompt, pair.memory) for node in nodes]
        first = [next(stream) for stream in streams]
        whole = [
            "".join(map(str, [piece, *list(stream)[:-1]]))
            for piece, stream in zip(first, streams, strict=True)
        ]
    assert whole == [pair.expected[0]] * len(whole)
