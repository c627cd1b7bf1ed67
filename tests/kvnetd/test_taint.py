"""A reply says whose word it rests on: a peer, a file's signer, or nobody but this node's own model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kvnetd import encoding
from kvnetd.actions import files, memories
from kvnetd.actions.check import Wanted, check_memory
from kvnetd.parties import require_may_ask, untrusted_source
from kvnetd.services import Services
from kvnetd.store.records import LocalNotes, MemoryRecord
from kvnetd.store.texts import attach_text

from kvnet.errors import IncompatibleModel, NotPermitted, RequestError, TextMismatch
from kvnet.identity.keys import NodeKey
from kvnet.identity.peers import Permission
from kvnet.model.host import ModelHost
from kvnet.model.memory import digest_chunks, encode_memory
from kvnet.types import MemoryId, RawMemory
from tests.builders import RECEIVER, SENDER, STRANGER
from tests.kvnetd.hosting import TEXTS, answer_to, hosting, load_host, read
from tests.kvnetd.nodes import AT, making

PROMPT = "What is Petra's drink?"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> ModelHost:
    return load_host("ref-a", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> ModelHost:
    return load_host("ref-b", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def node(services: Services, ours: ModelHost) -> Services:
    return hosting(services, ours)


def received(
    services: Services, memory: RawMemory, *, text: str = "", origin: str = SENDER.node_id
) -> MemoryRecord:
    """A memory that came from Alice, with a text if she sent one."""
    came = replace(making(), notes=LocalNotes(origin=origin, stored_at=AT))
    record = services.memories.put(memory, came, services.key)
    if text:
        attach_text(services.memories, record.header, text)
    return record


async def source(services: Services, *names: str, **options: str) -> str:
    """What the reply says."""
    return (await answer_to(services, PROMPT, *names, **options)).kv.untrusted_source  # type: ignore[arg-type]


async def imported(services: Services, record: MemoryRecord, key: NodeKey) -> MemoryRecord:
    """A memory that left as a file and comes back, to a node with this key."""
    data = b"".join(services.memories.export(record))
    await memories.forget(services, record.id)

    async def pieces():  # type: ignore[no-untyped-def]
        yield "memory", data

    info = await files.import_(replace(services, key=key), pieces())
    return services.memories.get(MemoryId(info.id))


async def test_own_memory_and_no_memory_taint_nothing(node: Services, ours: ModelHost) -> None:
    own = read(node, ours, TEXTS[0])
    assert await source(node, own.id) == ""
    assert await source(node) == ""
    coded = await encoding.record_to_send(node, own, "int8")
    assert coded.id != own.id
    assert await source(node, coded.id) == ""


async def test_received_memory_taints_the_reply_under_the_peers_name(node: Services, ours: ModelHost) -> None:
    theirs = received(node, ours.capture(TEXTS[0]))
    own = read(node, ours, TEXTS[1])
    assert await source(node, theirs.id) == "alice"
    assert await source(node, own.id, theirs.id) == "alice"
    stranger = received(node, ours.capture(TEXTS[2]), origin=STRANGER.node_id)
    assert await source(node, theirs.id, own.id, stranger.id) == f"alice,{STRANGER.node_id}"
    node.peers.remove("alice")
    assert await source(node, theirs.id) == SENDER.node_id


async def test_what_was_encoded_here_from_a_received_memory_taints_and_stays_tainted_without_it(
    node: Services, ours: ModelHost
) -> None:
    theirs = received(node, ours.capture(TEXTS[0]))
    coded = await encoding.record_to_send(node, theirs, "int8")
    assert (coded.origin, coded.head.signed_by) == ("", node.key.node_id)
    assert await source(node, coded.id) == "alice"
    again = await imported(node, coded, node.key)  # home, by its signature, while its source is here
    assert (again.origin, await source(node, again.id)) == ("", "alice")
    await memories.forget(node, theirs.id)
    node.memories.get(again.id)
    assert await source(node, again.id) == "alice"
    last = await imported(node, again, node.key)  # nobody can tell any more
    assert await source(node, last.id) == node.key.node_id


async def test_what_was_encoded_from_a_memory_may_be_asked_no_more_than_the_memory(
    node: Services, ours: ModelHost
) -> None:
    coded = await encoding.record_to_send(node, received(node, ours.capture(TEXTS[0])), "int8")
    require_may_ask(node, coded)
    node.peers.trust("alice", permissions=(Permission.SEND,))
    with pytest.raises(NotPermitted):
        await source(node, coded.id)


async def test_file_of_a_stranger_taints_and_a_file_of_ones_own_does_not(
    node: Services, ours: ModelHost
) -> None:
    own = read(node, ours, TEXTS[0])
    home = await imported(node, own, node.key)
    assert untrusted_source(node, home) == ""
    elsewhere = await imported(node, home, STRANGER)
    assert await source(node, elsewhere.id) == RECEIVER.node_id


async def test_text_that_a_peer_attached_taints_as_its_memory_does(
    node: Services, ours: ModelHost, other: ModelHost
) -> None:
    theirs = received(node, other.capture(TEXTS[0]), text=TEXTS[0])
    answer = await answer_to(node, PROMPT, theirs.id)
    assert (answer.kv.tier, answer.kv.untrusted_source) == ("text", "alice")
    own = read(node, other, TEXTS[1])
    attach_text(node.memories, own.header, TEXTS[1])
    assert await source(node, own.id) == ""


# What a memory says, beside what its text says


def forged(ours: ModelHost, text: str = TEXTS[0], *, of: str = TEXTS[1]) -> RawMemory:
    """What the model makes of another text, under the tokens of this one; as long as both are."""
    mine, lied = ours.capture(text), ours.capture(of)
    count = mine.header.seq_len
    assert lied.header.seq_len >= count
    geometry = mine.header.geometry
    wanted = len(mine.chunks[0])
    row = wanted // (count * geometry.num_kv_heads)

    def cut(chunk: bytes | memoryview) -> bytes:
        head = len(chunk) // geometry.num_kv_heads
        return b"".join(bytes(chunk[i * head : i * head + count * row]) for i in range(geometry.num_kv_heads))

    chunks = tuple(map(cut, lied.chunks))
    return RawMemory(replace(mine.header, content_digest=digest_chunks(chunks)), chunks)


async def test_received_memory_agrees_with_its_text_kept_recovered_or_given(
    node: Services, ours: ModelHost
) -> None:
    theirs = received(node, ours.capture(TEXTS[0]))
    found = await check_memory(node, Wanted(theirs.id, samples=9, seed=4))
    assert (found.verdict, found.text_from, found.untrusted_source) == ("agrees", "recovered", "alice")
    assert (found.samples, found.seed, found.agreement) == (9, 4, 1.0)
    assert (await check_memory(node, Wanted(theirs.id, TEXTS[0]))).text_from == "given"
    assert (await check_memory(node, Wanted(theirs.id, TEXTS[1]))).verdict == "other text"
    attach_text(node.memories, theirs.header, TEXTS[0])
    whole = await check_memory(node, Wanted(theirs.id))
    assert (whole.verdict, whole.text_from, whole.samples) == ("agrees", "kept", whole.slots)
    answer = await answer_to(node, PROMPT, theirs.id, verify_text=True)
    assert (answer.kv.tier, answer.kv.untrusted_source) == ("exact", "alice")


async def test_forged_memory_is_told_and_kept_from_a_verified_reply(node: Services, ours: ModelHost) -> None:
    lied = received(node, forged(ours, TEXTS[0], of=TEXTS[2]), text=TEXTS[0])
    found = await check_memory(node, Wanted(lied.id))
    assert (found.verdict, found.text_from) == ("differs", "kept")
    assert found.agreement < 1
    assert found.worst_error > 100 * found.tolerance
    with pytest.raises(TextMismatch, match=r"slots are not .*ask alice why"):
        await answer_to(node, PROMPT, lied.id, verify_text=True)
    assert await source(node, lied.id) == "alice"  # without, it is used
    swapped = received(node, ours.capture(TEXTS[1]), text=TEXTS[2])
    with pytest.raises(TextMismatch, match="not those of the text"):
        await answer_to(node, PROMPT, swapped.id, verify_text=True)


async def test_memory_of_another_model_cannot_be_checked_here(node: Services, other: ModelHost) -> None:
    theirs = received(node, other.capture(TEXTS[0]))
    with pytest.raises(IncompatibleModel, match="only ref-b itself can tell"):
        await check_memory(node, Wanted(theirs.id, TEXTS[0]))


async def test_calibration_of_somebody_else_is_no_measure(
    node: Services, ours: ModelHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = await encoding.basis_for(node, "compact")
    assert own is not None
    honest = received(node, encode_memory(ours.capture(TEXTS[0]), "compact", basis=own))
    assert (await check_memory(node, Wanted(honest.id, TEXTS[0]))).verdict == "agrees"
    foreign = own.scaled(2.0)
    theirs = received(node, encode_memory(ours.capture(TEXTS[1]), "compact", basis=foreign))
    with pytest.raises(RequestError, match="calibration that this node did not make"):
        await check_memory(node, Wanted(theirs.id, TEXTS[1]))
