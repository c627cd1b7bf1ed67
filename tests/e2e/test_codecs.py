"""A memory in every codec: smaller on the wire, right at the receiver, and told as what it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvnet.api import Answer, MemoryInfo, SendReport
from kvnet.client import Node
from kvnet.codec.presets import PRESETS
from kvnet.errors import RequestError, UnknownBasis
from kvnet.files.reader import MemoryFile
from kvnet.format.attention import unpack_attention
from kvnet.types import Kind
from tests.e2e.daemons import Daemon, Kvnet, Pair, long_text, questions, reply
from tests.e2e.outcomes import assert_refused_both_ways, json_of

pytestmark = pytest.mark.usefixtures("pair_goes_on")

NUM_QUESTIONS = 10
# Of the reference model's float32, on some 60 tokens; a long memory saves more.
WIRE_SHARE = {"exact": 0.85, "int8": 0.28, "k8v4": 0.22, "int4": 0.16, "int4-hadamard": 0.16, "compact": 0.08}


@dataclass(frozen=True, slots=True)
class Sent:
    """A memory that went to bob, and his answer to a question about it."""

    memory: MemoryInfo
    report: SendReport
    answer: Answer
    expected: str


@pytest.fixture
def nodes(pair: Pair) -> Iterator[tuple[Node, Node]]:
    """Connections to alice and bob."""
    with pair.alice.node() as alice, pair.bob.node() as bob:
        yield alice, bob


@pytest.fixture(scope="module")
def sent(pair: Pair) -> dict[str, list[Sent]]:
    """Every codec and every question; codec -> what came of it."""
    found: dict[str, list[Sent]] = {}
    with pair.alice.node() as alice, pair.bob.node() as bob:
        for codec in PRESETS:
            for text, question in questions(NUM_QUESTIONS):
                memory = alice.remember(text)
                report = alice.send(memory, "bob", codec=codec)
                answer = bob.ask(question.prompt, report.memory)
                found.setdefault(codec, []).append(Sent(memory, report, answer, question.expected))
    return found


@pytest.mark.parametrize("codec", PRESETS)
def test_the_receiver_of_a_memory_in_any_codec_answers_right(sent: dict[str, list[Sent]], codec: str) -> None:
    right = sum(one.answer.text.strip() == one.expected for one in sent[codec])
    assert right >= 0.8 * NUM_QUESTIONS
    for one in sent[codec]:
        assert one.answer.kv.codec == one.report.codec == codec
        assert (one.answer.kv.tier, one.answer.kv.reused_tokens) == ("exact", one.memory.tokens)


@pytest.mark.parametrize("codec", PRESETS)
def test_a_codec_saves_what_it_promises_on_the_wire(sent: dict[str, list[Sent]], codec: str) -> None:
    report = sent[codec][-1].report  # by now the receiver has the basis, if there is one
    assert report.raw_bytes == sent[codec][-1].memory.nbytes
    assert 0 < report.wire_bytes < WIRE_SHARE[codec] * report.raw_bytes


@pytest.mark.parametrize("codec", PRESETS)
def test_the_receivers_memory_says_how_it_is_coded_and_from_what(
    sent: dict[str, list[Sent]], nodes: tuple[Node, Node], pair: Pair, codec: str
) -> None:
    one = sent[codec][0]
    for node, origin in zip(nodes, ("", pair.alice.node_id), strict=True):
        found = node.show(one.report.memory)
        assert (found.id, found.codec, found.origin) == (one.report.memory, codec, origin)
        assert found.header is not None
        assert found.header.derived_from == ("" if codec == "exact" else one.memory.id)
    assert (one.report.memory == one.memory.id) is (codec == "exact")


def test_without_a_codec_a_memory_goes_as_int8(nodes: tuple[Node, Node]) -> None:
    alice, bob = nodes
    memory = alice.remember(long_text(101))
    report = alice.send(memory, "bob")
    assert (report.codec, bob.show(report.memory).codec) == ("int8", "int8")


def test_auto_is_a_preset_and_the_same_one_every_time(nodes: tuple[Node, Node]) -> None:
    alice, _ = nodes
    reports = [alice.send(alice.remember(long_text(seed)), "bob", codec="auto") for seed in (102, 103)]
    assert reports[0].codec == reports[1].codec
    assert reports[0].codec in PRESETS


def test_codings_made_for_sending_are_listed_only_when_asked_for(nodes: tuple[Node, Node]) -> None:
    alice, _ = nodes
    memory = alice.remember(long_text(104), name="listed")
    coded = alice.send(memory, "bob", codec="int4").memory
    assert memory.id in {one.id for one in alice.memories()}
    assert coded not in {one.id for one in alice.memories()}
    assert coded in {one.id for one in alice.memories(all=True)}
    assert alice.status().memories == len(alice.memories())
    alice.forget("listed")
    assert coded not in {one.id for one in alice.memories(all=True)}


@pytest.mark.parametrize("codec", ["int8", "compact"])
def test_a_coded_memory_is_passed_on_as_it_is(
    nodes: tuple[Node, Node], pair: Pair, tmp_path: Path, codec: str
) -> None:
    alice, bob = nodes
    coded = alice.send(alice.remember(long_text(105)), "bob", codec=codec).memory
    alice.forget(coded)
    back = bob.send(coded, "alice")
    assert (back.memory, back.codec) == (coded, codec)
    assert alice.show(coded).origin == pair.bob.node_id
    exported = alice.export_memory(coded, tmp_path / "back.awkg")
    assert exported.signed_by == pair.alice.node_id  # who made it, not who sent it last


@pytest.mark.parametrize("codec", PRESETS)
def test_a_memory_may_be_kept_in_any_codec(nodes: tuple[Node, Node], codec: str) -> None:
    alice, bob = nodes
    text, question = questions(1, seed=12)[0]
    memory = alice.remember(text, codec=codec, name=f"kept as {codec}")
    assert memory.codec == codec
    assert memory.stored_nbytes < WIRE_SHARE[codec] * memory.nbytes
    answer = alice.ask(question.prompt, memory)
    assert (answer.text.strip(), answer.kv.codec) == (question.expected, codec)
    report = alice.send(memory, "bob")
    assert (report.memory == memory.id) is (codec != "exact")
    assert reply(bob.ask(question.prompt, report.memory))[0].strip() == question.expected


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_memory_may_be_cast_before_it_is_kept(nodes: tuple[Node, Node], dtype: str) -> None:
    alice, _ = nodes
    text, question = questions(1, seed=12)[0]
    memory = alice.remember(text, dtype=dtype)
    assert memory.header is not None
    assert memory.header.geometry.dtype == dtype
    assert memory.nbytes == memory.tokens * memory.header.geometry.token_nbytes
    assert alice.ask(question.prompt, memory).text.strip() == question.expected


@pytest.mark.parametrize("codec", ["exact", "int8"])
def test_attention_metadata_goes_with_the_memory(
    nodes: tuple[Node, Node], tmp_path: Path, codec: str
) -> None:
    alice, bob = nodes
    memory = alice.remember(long_text(106), attention=True, name="attended")
    assert memory.header is not None
    assert memory.header.attention_heads > 0
    report = alice.send("attended", "bob", codec=codec)
    assert report.chunks == 3 * memory.layers
    path = tmp_path / "attended.awkg"
    bob.export_memory(report.memory, path)
    with MemoryFile.open(path) as file:
        header = file.header.memory
        told = [
            unpack_attention(bytes(file.raw(section.key.index)), header, section.key.layer_idx)
            for section in file.header.sections
            if section.key.kind is Kind.ATTENTION
        ]
    assert [one.layer_index for one in told] == list(range(memory.layers))
    for one in told:
        assert len(one.entropy_per_head) == memory.header.attention_heads
        assert 0 < one.average_attention_score < 1
        assert len(one.important_token_indices) == 16


def test_a_memory_without_attention_metadata_is_another_memory(nodes: tuple[Node, Node]) -> None:
    alice, _ = nodes
    plain, attended = alice.remember(long_text(107)), alice.remember(long_text(107), attention=True)
    assert plain.header is not None
    assert plain.header.attention_heads == 0
    assert plain.id != attended.id


def test_compact_on_a_model_without_a_calibration_is_an_unknown_basis(rambler: Daemon, run: Kvnet) -> None:
    home = rambler.home.root
    arguments = ("remember", "Petra's drink is tea.", "--codec", "compact")
    assert_refused_both_ways(run, home, arguments, "unknown_basis", 4)
    with rambler.node() as node:
        before = {memory.id for memory in node.memories(all=True)}
        with pytest.raises(UnknownBasis, match="kvnet calibrate"):
            node.remember("Petra's drink is tea.", codec="compact")
        assert {memory.id for memory in node.memories(all=True)} == before


def test_a_model_is_calibrated_from_texts_and_then_keeps_memories_compact(
    rambler: Daemon, tmp_path: Path
) -> None:
    texts = []
    for seed in range(3):
        texts.append(str(tmp_path / f"{seed}.txt"))
        Path(texts[-1]).write_text(long_text(seed), encoding="utf-8")
    found = json_of(rambler.home.root, "calibrate", *texts)
    assert (found["model"], found["tokens"] > 1000) == ("rambler", True)
    with rambler.node() as node:
        memory = node.remember(long_text(4), codec="compact")
        assert memory.header is not None
        assert memory.header.coding.basis == found["basis"]
        assert memory.header.coding.basis_nbytes == found["nbytes"]
        assert memory.stored_nbytes < 0.1 * memory.nbytes
        assert node.ask("Who?", memory, max_tokens=1).kv.reused_tokens == memory.tokens


def test_calibrating_without_a_text_is_refused(rambler: Daemon) -> None:
    with rambler.node() as node, pytest.raises(RequestError):
        node.calibrate()
