"""A map is used only as its gate judged it: elsewhere the text is read, or a sentence says why not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from kvnetd import encoding
from kvnetd.actions import memories
from kvnetd.actions.explain import explain
from kvnetd.projection import project
from kvnetd.services import Services
from kvnetd.store.records import MemoryRecord
from kvnetd.store.texts import attach_text

from kvnet.align.artefacts import sign_alignment
from kvnet.alignment import MapManifest, Use
from kvnet.errors import AlignmentRefused, KvnetError
from kvnet.files.alignments import VerifiedAlignment
from kvnet.model.host import ModelHost
from tests.builders import RECEIVER, SENDER
from tests.kvnetd.aligned import keep, loaded, map_of, port_of
from tests.kvnetd.exchange import send_memory
from tests.kvnetd.hosting import TEXTS, answer_to, hosting, load_host, read
from tests.kvnetd.nodes import Node, add, events, listening, making, services_of

PROMPT = "What is Petra's drink?"
TEXT = " ".join(TEXTS)
CLOSING = " That is all."


@dataclass(frozen=True)
class Models:
    """Alice's model, Bob's, and maps from hers to his: admitted for every use, or for none but the first."""

    a: ModelHost
    b: ModelHost
    port: VerifiedAlignment
    every: VerifiedAlignment
    closed8: VerifiedAlignment
    anchored: VerifiedAlignment  # sends slots above a score that none has
    strange: VerifiedAlignment  # was fitted on memories of which none lies as far out as Alice's
    usual: VerifiedAlignment  # the same, on such as hers


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    torch.set_num_threads(1)
    cache = tmp_path_factory.mktemp("cache")
    a, b = load_host("ref-a", cache), load_host("ref-b", cache)
    port = port_of(b)
    every = map_of(a, b, port, closing=CLOSING)
    manifest = every.manifest
    assert isinstance(manifest, MapManifest)
    alignment, _ = loaded(every, port)
    unjudged = tuple(replace(one, admitted=False) for one in manifest.gate.uses)
    closed8 = replace(manifest, tensors_digest="", gate=replace(manifest.gate, uses=unjudged))
    tensors = alignment.to_tensors()
    width = tensors["encoder"].shape[0]
    anchors = {"anchor": torch.zeros(width, 1), "anchor_bias": torch.zeros(1)}
    out = tensors["encoder"].shape[1]
    known = {"known_mean": torch.zeros(out), "known_scale": torch.eye(out)}

    def knowing(bound: float) -> VerifiedAlignment:
        told = tensors | known | {"known_bound": torch.tensor([bound])}
        return sign_alignment(replace(manifest, tensors_digest=""), told, RECEIVER)

    return Models(
        a,
        b,
        port,
        every,
        sign_alignment(closed8, tensors, RECEIVER),
        sign_alignment(replace(manifest, tensors_digest=""), tensors | anchors, RECEIVER),
        knowing(1e-9),
        knowing(1e9),
    )


@pytest.fixture
async def alice(tmp_path: Path, models: Models) -> AsyncIterator[Node]:
    async with (
        services_of(tmp_path / "alice", SENDER, name="alice") as plain,
        listening(hosting(plain, models.a)) as node,
    ):
        yield node


@pytest.fixture
async def bob(tmp_path: Path, models: Models, alice: Node) -> AsyncIterator[Node]:
    async with (
        services_of(tmp_path / "bob", RECEIVER, name="bob") as plain,
        listening(hosting(plain, models.b)) as node,
    ):
        add(alice, node)
        add(node, alice)
        yield node


async def coded(services: Services, models: Models, codec: str) -> MemoryRecord:
    """Alice's memory of TEXT in this coding, in Bob's store."""
    alice_here = hosting(services, models.a)
    encoded, _ = await encoding.encode(alice_here, models.a.capture(TEXT), making().notes, codec=codec)
    return services.memories.put(encoded, making(), services.key)


async def refused(services: Services, record: MemoryRecord) -> str:
    """Why it is not used, in one sentence; the same that `explain` begins with."""
    with pytest.raises(AlignmentRefused) as told:
        await answer_to(services, PROMPT, record.id)
    explained = await explain(services, record.id)
    assert (explained.tier, explained.map) == ("refused", None)
    assert told.value.message.endswith(explained.advice.split("; fit a map")[0])
    assert (await memories.describe(services, record)).tier == "refused"
    return told.value.message


@pytest.mark.parametrize("codec", ["int8", "int4", "compact"])
async def test_memory_of_a_coding_that_no_map_is_judged_on_is_not_mapped(
    bob: Node, models: Models, codec: str
) -> None:
    keep(bob.services, models.port, models.every)
    record = await coded(bob.services, models, codec)
    message = await refused(bob.services, record)
    assert f"is judged on exact memories, and this one is in coding {codec}" in message
    attach_text(bob.services.memories, record.header, TEXT)
    answer = await answer_to(bob.services, PROMPT, record.id)
    assert (answer.kv.tier, answer.kv.fallback, answer.kv.map) == ("text", "text", "")
    assert f"in coding {codec}" in (await explain(bob.services, record.id)).advice


async def test_coarse_codec_is_refused_before_it_travels_to_a_node_that_would_map_it(
    alice: Node, bob: Node, models: Models
) -> None:
    keep(bob.services, models.port, models.every)
    record = read(alice.services, models.a, TEXT)
    with pytest.raises(KvnetError, match="this one is in coding int8"):
        await send_memory(alice, memory=record.id, codec="int8")
    assert len(bob.services.memories.all()) == 0


async def test_memory_without_its_closing_is_mapped_only_where_that_was_judged(
    bob: Node, models: Models
) -> None:
    record = read(bob.services, models.a, TEXT)
    keep(bob.services, models.port, models.closed8)
    assert "was not admitted for memories without its closing text" in await refused(bob.services, record)
    keep(bob.services, models.every)
    answer = await answer_to(bob.services, PROMPT, record.id)
    assert (answer.kv.tier, answer.kv.map) == ("mapped", models.every.manifest.id)


async def test_offer_that_only_an_unjudged_use_could_take_is_refused_with_its_sentence(
    alice: Node, bob: Node, models: Models
) -> None:
    keep(bob.services, models.port, models.closed8)
    record = read(alice.services, models.a, TEXT)
    with pytest.raises(KvnetError, match="without its closing text; give the map to the node that hosts"):
        await send_memory(alice, memory=record.id, codec="")
    keep(alice.services, models.port, models.closed8)
    report = await send_memory(alice, memory=record.id, codec="")
    assert (report.tier, report.codec) == ("mapped", "port8")
    assert (await answer_to(bob.services, PROMPT, report.memory)).kv.tier == "mapped"


async def test_4_bits_are_sent_and_taken_only_where_they_were_judged(
    alice: Node, bob: Node, models: Models
) -> None:
    for node in (alice, bob):
        keep(node.services, models.port, models.closed8)
    record = read(alice.services, models.a, TEXT)
    with pytest.raises(AlignmentRefused, match="not admitted for memories with its closing text in coord"):
        await send_memory(alice, memory=record.id, codec="port4")
    only_closed = map_of(models.a, models.b, models.port, closing=CLOSING, uses=(Use.PORT4,))
    for node in (alice, bob):
        node.services.alignments.remove(models.closed8.manifest.id)
        keep(node.services, only_closed)
    assert (await send_memory(alice, memory=record.id, codec="port4")).codec == "port4"


async def test_text_without_anchors_is_read_itself_or_refused(bob: Node, models: Models) -> None:
    keep(bob.services, models.port, models.anchored)
    record = read(bob.services, models.a, TEXT)
    with pytest.raises(
        AlignmentRefused, match=r"fitted on slots that answers read, and finds none in it; use"
    ):
        await answer_to(bob.services, PROMPT, record.id)
    assert events(bob.services, "injection")[-1]["error"] == "alignment_refused"
    attach_text(bob.services.memories, record.header, TEXT)
    assert (await answer_to(bob.services, PROMPT, record.id)).kv.tier == "text"


async def test_sender_projects_no_text_without_anchors(alice: Node, bob: Node, models: Models) -> None:
    for node in (alice, bob):
        keep(node.services, models.port, models.anchored)
    record = read(alice.services, models.a, TEXT)
    with pytest.raises(AlignmentRefused, match="finds none in it"):
        await send_memory(alice, memory=record.id, codec="port8")


async def test_strange_memory_is_refused_at_the_receiver_or_answered_from_its_text(
    bob: Node, models: Models
) -> None:
    keep(bob.services, models.port, models.strange)
    record = read(bob.services, models.a, TEXT)
    with pytest.raises(AlignmentRefused) as told:
        await answer_to(bob.services, PROMPT, record.id)
    assert f"memory {record.id}: holds what {models.strange.manifest.id} was not fitted on" in str(told.value)
    assert "use its text: send it with `--with-text`" in str(told.value)
    assert events(bob.services, "injection")[-1]["error"] == "alignment_refused"
    attach_text(bob.services.memories, record.header, TEXT)
    answer = await answer_to(bob.services, PROMPT, record.id)
    assert (answer.kv.tier, answer.kv.fallback, answer.kv.map) == ("text", "text", "")


async def test_memory_within_what_the_map_was_fitted_on_is_mapped(bob: Node, models: Models) -> None:
    keep(bob.services, models.port, models.usual)
    record = read(bob.services, models.a, TEXT)
    answer = await answer_to(bob.services, PROMPT, record.id)
    assert (answer.kv.tier, answer.kv.map) == ("mapped", models.usual.manifest.id)


async def test_strange_memory_is_not_projected_and_by_default_travels_whole(
    alice: Node, bob: Node, models: Models
) -> None:
    for node in (alice, bob):
        keep(node.services, models.port, models.strange)
    record = read(alice.services, models.a, TEXT)
    manifest = models.strange.manifest
    assert isinstance(manifest, MapManifest)
    with pytest.raises(AlignmentRefused, match="was not fitted on"):
        await project(alice.services, record, manifest, bits=8)
    assert alice.services.memories.encodings_of(record.id) == ()
    with pytest.raises(AlignmentRefused, match="was not fitted on"):
        await send_memory(alice, memory=record.id, codec="port8")
    assert len(bob.services.memories.all()) == 0
    attach_text(alice.services.memories, record.header, TEXT)
    report = await send_memory(alice, memory=record.id, codec="", with_text=True)
    assert report.codec == "exact"
    answer = await answer_to(bob.services, PROMPT, report.memory)
    assert (answer.kv.tier, answer.kv.fallback) == ("text", "text")
