"""Memories of another model, used: mapped here, or expanded from coordinates that their sender made."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kvnetd import alignments, mapping
from kvnetd.actions import memories
from kvnetd.actions.explain import explain
from kvnetd.projection import project
from kvnetd.services import Services
from kvnetd.store.records import MemoryRecord
from kvnetd.store.texts import attach_text
from kvnetd.transfers import Transfers

from kvnet.align.artefacts import sign_alignment
from kvnet.align.familiar import Familiar
from kvnet.alignment import MapManifest, Use
from kvnet.codec.pack import pack
from kvnet.errors import (
    AlignmentRefused,
    IncompatibleModel,
    MalformedChunk,
    NotFinite,
    RequestError,
    UnknownAlignment,
)
from kvnet.files.alignments import VerifiedAlignment
from kvnet.model.coordinates import coordinates_of, memory_of_coordinates
from kvnet.model.host import ModelHost
from kvnet.model.memory import digest_chunks
from kvnet.model.sampling import Sampling
from kvnet.model.slots import Slots, slots_of
from kvnet.types import Compression, DType, RawMemory, Scheme, Tier, sha256_hex
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
    """Alice's model, Bob's, and what leads from hers to his."""

    a: ModelHost
    b: ModelHost
    port: VerifiedAlignment
    map: VerifiedAlignment
    closed: VerifiedAlignment  # with a closing
    rows: VerifiedAlignment  # ends in keys and values
    states: VerifiedAlignment  # ends in states of Bob's last layer, as the port does

    @property
    def manifest(self) -> MapManifest:
        assert isinstance(self.map.manifest, MapManifest)
        return self.map.manifest


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    torch.set_num_threads(1)
    cache = tmp_path_factory.mktemp("cache")
    a, b = load_host("ref-a", cache), load_host("ref-b", cache)
    last = (b.geometry.num_layers - 1,)
    port = port_of(b, state_layers=last)
    closed = map_of(a, b, port, closing=CLOSING)
    rows, states = map_of(a, b, None), map_of(a, b, None, state_layers=last)
    return Models(a, b, port, map_of(a, b, port), closed, rows, states)


def hosted(services: Services, model: ModelHost) -> Node:
    """The same node with this model."""
    services = hosting(services, model)
    return Node(services, Transfers(services), "")


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


def generated(host: ModelHost, slots: Slots) -> str:
    """What the model says behind these slots."""
    *_, last = host.generate(PROMPT, slots=slots, sampling=Sampling(max_tokens=6))
    return str(last.text)


def slots_by(models: Models, memory: RawMemory, of_map: VerifiedAlignment) -> Slots:
    """A memory of `a` through a map, with nothing between."""
    manifest = of_map.manifest
    assert isinstance(manifest, MapManifest)
    alignment, port = loaded(of_map, models.port if manifest.port else None)
    slots = slots_of(memory, num_sinks=models.a.num_sinks)
    return alignment.apply(slots, port, rows_of=models.b.rows_of)


# At the receiver


@pytest.mark.parametrize("kind", ["map", "rows", "states"])
async def test_memory_is_mapped_here_as_the_map_says(bob: Node, models: Models, kind: str) -> None:
    of_map = getattr(models, kind)
    keep(bob.services, models.port, of_map)
    memory = models.a.capture(TEXT)
    record = bob.services.memories.put(memory, making(), bob.services.key)
    answer = await answer_to(bob.services, PROMPT, record.id)
    wanted = slots_by(models, memory, of_map)
    assert (answer.kv.tier, answer.kv.map, answer.kv.fallback) == ("mapped", of_map.manifest.id, "none")
    assert answer.kv.reused_tokens == wanted.num_slots
    assert answer.text == generated(models.b, wanted)
    assert events(bob.services, "injection")[-1]["map"] == of_map.manifest.id


async def test_map_is_read_once_and_the_last_used_are_kept(
    bob: Node, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(bob.services, models.port, models.map, models.rows)
    monkeypatch.setattr(mapping, "_MOST_LOADED", 1)
    of_map, of_rows = models.manifest, models.rows.manifest
    assert isinstance(of_rows, MapManifest)
    first = await mapping.loaded_map(bob.services, of_map)
    assert await mapping.loaded_map(bob.services, of_map) is first
    assert (await mapping.loaded_map(bob.services, of_rows)).port is None
    assert await mapping.loaded_map(bob.services, of_map) is not first


async def test_memory_that_lies_about_its_geometry_is_told_as_such(bob: Node, models: Models) -> None:
    keep(bob.services, models.port, models.map)
    memory = models.a.capture(TEXT)
    geometry = models.a.geometry
    lies = (
        replace(geometry, num_kv_heads=geometry.head_dim, head_dim=geometry.num_kv_heads),
        replace(geometry, rope=replace(geometry.rope, rope_theta=7.0)),
    )
    for lie in lies:
        lying = RawMemory(replace(memory.header, geometry=lie), memory.chunks)
        record = bob.services.memories.put(lying, making(), bob.services.key)
        with pytest.raises(IncompatibleModel, match="the map knows that model with"):
            await answer_to(bob.services, PROMPT, record.id)


async def test_memory_of_numbers_that_are_none_is_told_as_such(bob: Node, models: Models) -> None:
    keep(bob.services, models.port, models.map)
    memory = models.a.capture(TEXT)
    count = len(memory.chunks[-1]) // 4
    chunks = (*memory.chunks[:-1], pack(torch.full((count,), torch.inf)))
    lying = RawMemory(replace(memory.header, content_digest=digest_chunks(chunks)), chunks)
    record = bob.services.memories.put(lying, making(), bob.services.key)
    with pytest.raises(NotFinite):
        await answer_to(bob.services, PROMPT, record.id)


# Coordinates


def in_coordinates(
    models: Models, slots: list[int], *, map_id: str = "", node: Node, code: int = 3
) -> MemoryRecord:
    """Alice's memory of TEXT with these slots in coordinates, all codes alike, in a node's store."""
    memory = models.a.capture(TEXT)
    codes = torch.full((len(slots), 12), code, dtype=torch.int8)
    encoded = bytes(models.port.encoded)
    made = memory_of_coordinates(
        memory.header,
        codes,
        torch.tensor(slots, dtype=torch.int64),
        bits=8,
        port_digest=sha256_hex(encoded),
        port_nbytes=len(encoded),
    )
    node.services.bases.put(encoded)
    wanted = making(Compression.ZSTD, alignment=map_id or models.manifest.id)
    return node.services.memories.put(made, wanted, node.services.key)


async def test_coordinates_stand_for_what_bobs_own_weights_make_of_them_at_the_senders_positions(
    bob: Node, models: Models
) -> None:
    keep(bob.services, models.port, models.map)
    num_sinks = models.a.num_sinks
    record = in_coordinates(models, [num_sinks, num_sinks + 5], node=bob)
    found = await mapping.slots_for(
        bob.services, record, Tier.MAPPED, alignments.map_for(bob.services, record.header, models.manifest.id)
    )
    _, port = loaded(models.map, models.port)
    assert port is not None
    assert port.intake.state_layers == (models.b.geometry.num_layers - 1,)
    taken = port.to_taken(port.dequantize(torch.full((1, 12), 3, dtype=torch.int8), 8))
    row = models.b.rows_of(port.intake, taken)
    assert torch.allclose(found.rows, row.expand(2, -1), atol=1e-4)
    assert found.positions.tolist() == [0, 5]
    assert found.span == record.header.seq_len - num_sinks
    answer = await answer_to(bob.services, PROMPT, record.id)
    assert (answer.kv.tier, answer.kv.codec, answer.kv.map) == ("mapped", "port8", models.manifest.id)
    assert answer.kv.reused_tokens == 2
    assert (await memories.describe(bob.services, record)).tier == "mapped"
    explained = await explain(bob.services, record.id)
    assert (explained.tier, explained.map and explained.map.id) == ("mapped", models.manifest.id)


async def test_coordinates_of_a_map_that_is_not_here_name_it(bob: Node, models: Models) -> None:
    keep(bob.services, models.port, models.map)
    unknown = "map_" + "a" * 52
    record = in_coordinates(models, [2], map_id=unknown, node=bob)
    with pytest.raises(UnknownAlignment, match=f"made by {unknown}.*import that map and its port"):
        await answer_to(bob.services, PROMPT, record.id)
    assert (await memories.describe(bob.services, record)).tier == "refused"
    attach_text(bob.services.memories, record.header, TEXT)
    assert (await answer_to(bob.services, PROMPT, record.id)).kv.tier == "text"


@pytest.mark.parametrize("slots", [[], [0, 3]])
async def test_coordinates_of_nothing_or_of_a_sink_are_refused(
    bob: Node, models: Models, slots: list[int]
) -> None:
    keep(bob.services, models.port, models.map)
    record = in_coordinates(models, slots, node=bob)
    with pytest.raises(MalformedChunk, match=f"sends {len(slots)} slots, wanted one or more"):
        await answer_to(bob.services, PROMPT, record.id)


async def test_coordinates_further_out_than_the_map_goes_are_refused(bob: Node, models: Models) -> None:
    """Their sender need not have heeded the map."""
    alignment, port = loaded(models.map, models.port)
    assert port is not None
    scale, bound = torch.eye(port.rank), (50 * port.steps[8]).square().mean()
    knowing = replace(alignment, familiar=Familiar(torch.zeros(port.rank), scale, bound))
    manifest = replace(models.manifest, tensors_digest="")
    of_map = sign_alignment(manifest, knowing.to_tensors(), RECEIVER)
    keep(bob.services, models.port, of_map)
    near, far = (
        in_coordinates(models, [models.a.num_sinks], map_id=of_map.manifest.id, node=bob, code=code)
        for code in (45, 100)
    )
    assert (await answer_to(bob.services, PROMPT, near.id)).kv.map == of_map.manifest.id
    with pytest.raises(AlignmentRefused, match=r"it lies 4\.0 times as far out as the map goes"):
        await answer_to(bob.services, PROMPT, far.id)


async def test_coordinates_are_nobodys_own_memory(alice: Node, models: Models) -> None:
    record = in_coordinates(models, [2], node=alice)
    assert (await memories.describe(alice.services, record)).tier == "refused"
    with pytest.raises(UnknownAlignment):
        await answer_to(alice.services, PROMPT, record.id)


# At the sender


async def test_sender_with_the_map_sends_coordinates_that_say_what_the_map_says(
    alice: Node, bob: Node, models: Models
) -> None:
    for node in (alice, bob):
        keep(node.services, models.port, models.map)
    record = read(alice.services, models.a, TEXT)
    report = await send_memory(alice, memory=record.id, codec="")
    assert (report.tier, report.codec) == ("mapped", "port8")
    arrived = bob.services.memories.get(alice.services.memories.find(report.memory).id)
    assert arrived.head.w_matrix_reference == models.manifest.id
    assert arrived.header.derived_from == record.id
    alignment, port = loaded(models.map, models.port)
    assert port is not None
    memory = alice.services.memories.load(record)
    coordinates, at = alignment.encode(slots_of(memory, num_sinks=models.a.num_sinks))
    codes, slots = coordinates_of(bob.services.memories.load(arrived), port.rank)
    assert torch.equal(codes, port.quantize(coordinates, 8))
    assert torch.equal(slots, at + models.a.num_sinks)
    answer = await answer_to(bob.services, PROMPT, report.memory)
    assert (answer.kv.tier, answer.kv.map) == ("mapped", models.manifest.id)
    line = events(alice.services, "encoding")[-1]
    assert (line["codec"], line["map"]) == ("port8", models.manifest.id)
    assert events(alice.services, "transfer")[-1]["map"] == models.manifest.id


async def test_coordinates_are_made_once_for_each_number_of_bits(
    alice: Node, bob: Node, models: Models
) -> None:
    for node in (alice, bob):
        keep(node.services, models.port, models.map)
    record = read(alice.services, models.a, TEXT)
    sent = [await send_memory(alice, memory=record.id, codec=codec) for codec in ("", "port8", "port4")]
    assert [report.codec for report in sent] == ["port8", "port8", "port4"]
    assert sent[0].memory == sent[1].memory != sent[2].memory
    assert len(events(alice.services, "encoding")) == 2 * 2
    assert len(alice.services.memories.encodings_of(record.id)) == 2
    assert len(await memories.list_memories(alice.services)) == 1


async def test_where_only_the_receiver_has_the_map_halves_are_sent(
    alice: Node, bob: Node, models: Models
) -> None:
    keep(bob.services, models.port, models.map)
    record = read(alice.services, models.a, TEXT)
    assert record.header.geometry.dtype is DType.FLOAT32
    report = await send_memory(alice, memory=record.id, codec="")
    assert (report.tier, report.codec) == ("mapped", "exact")
    arrived = bob.services.memories.find(report.memory)
    assert arrived.header.geometry.dtype is DType.FLOAT16
    assert (await answer_to(bob.services, PROMPT, report.memory)).kv.tier == "mapped"


async def test_map_that_ends_in_rows_is_left_to_the_receiver(alice: Node, bob: Node, models: Models) -> None:
    for node in (alice, bob):
        keep(node.services, models.rows)
    record = read(alice.services, models.a, TEXT)
    assert (await send_memory(alice, memory=record.id, codec="")).codec == "exact"
    with pytest.raises(RequestError, match="codec port8: no admitted map here leads from ref-a into a port"):
        await send_memory(alice, memory=record.id, codec="port8")


async def test_where_each_has_a_map_of_its_own_the_receiver_maps(
    alice: Node, bob: Node, models: Models
) -> None:
    keep(alice.services, models.port, models.map)
    keep(bob.services, models.port, models.closed)
    record = read(alice.services, models.a, TEXT)
    report = await send_memory(alice, memory=record.id, codec="")
    assert (report.tier, report.codec) == ("mapped", "exact")
    answer = await answer_to(bob.services, PROMPT, report.memory)
    assert (answer.kv.tier, answer.kv.map) == ("mapped", models.closed.manifest.id)
    with pytest.raises(RequestError, match="into a port of ref-b that bob holds too; give one to the other"):
        await send_memory(alice, memory=record.id, codec="port8")


async def test_coordinates_are_made_by_a_map_that_both_have_also_where_neither_likes_it_best(
    alice: Node, bob: Node, models: Models
) -> None:
    shared = map_of(models.a, models.b, models.port, created_at="2023-01-01T00:00:00Z")
    keep(alice.services, models.port, models.map, shared)
    keep(bob.services, models.port, models.closed, shared)
    assert alignments.held_maps(bob.services)[0].id == models.closed.manifest.id
    record = read(alice.services, models.a, TEXT)
    report = await send_memory(alice, memory=record.id, codec="")
    assert (report.tier, report.codec) == ("mapped", "port8")
    assert (await answer_to(bob.services, PROMPT, report.memory)).kv.map == shared.manifest.id
    assert events(bob.services)[-1]["map"] == shared.manifest.id


async def test_memory_that_the_shared_map_was_not_judged_for_goes_as_it_is_with_its_text(
    alice: Node, bob: Node, models: Models
) -> None:
    """Its model is not hosted where it is sent from, so nobody can read the map's closing behind it."""
    only_closed = map_of(models.a, models.b, models.port, closing=CLOSING, uses=(Use.PORT4,))
    forwarder = hosted(alice.services, models.b)
    for node in (forwarder, bob):
        keep(node.services, models.port, only_closed)
    record = forwarder.services.memories.put(models.a.capture(TEXT), making(), SENDER)
    attach_text(forwarder.services.memories, record.header, TEXT)
    report = await send_memory(forwarder, memory=record.id, codec="", with_text=True)
    assert (report.tier, report.codec) == ("text", "exact")
    assert (await answer_to(bob.services, PROMPT, report.memory)).kv.fallback == "text"
    with pytest.raises(AlignmentRefused, match="without its closing text"):
        await send_memory(forwarder, memory=record.id, codec="port8")


async def test_closing_is_read_behind_the_memory_where_its_model_is_hosted(
    alice: Node, bob: Node, models: Models
) -> None:
    keep(alice.services, models.port, models.closed)
    manifest = models.closed.manifest
    assert isinstance(manifest, MapManifest)
    whole = models.a.capture(TEXT + CLOSING)
    record = read(alice.services, models.a, TEXT)
    made = await project(alice.services, record, manifest, bits=8)
    assert made.header.seq_len == whole.header.seq_len > record.header.seq_len
    alignment, port = loaded(models.closed, models.port)
    assert port is not None
    coordinates, _ = alignment.encode(slots_of(whole, num_sinks=models.a.num_sinks))
    codes, slots = coordinates_of(alice.services.memories.load(made), port.rank)
    assert int((codes.int() - port.quantize(coordinates, 8).int()).abs().max()) <= 1
    assert int(slots[-1]) == whole.header.seq_len - 1
    elsewhere = hosted(bob.services, models.b).services
    keep(elsewhere, models.port, models.closed)
    forwarded = elsewhere.memories.put(models.a.capture(TEXT), making(), elsewhere.key)
    without = await project(elsewhere, forwarded, manifest, bits=8)
    assert without.header.seq_len == record.header.seq_len


async def test_what_is_projected_is_scheme_port_of_the_files_digest(alice: Node, models: Models) -> None:
    keep(alice.services, models.port, models.map)
    made = await project(alice.services, read(alice.services, models.a, TEXT), models.manifest, bits=4)
    coding: Any = made.header.coding
    assert (coding.scheme, coding.key_bits) == (Scheme.PORT, 4)
    assert alice.services.bases.get(coding.basis) == bytes(models.port.encoded)
