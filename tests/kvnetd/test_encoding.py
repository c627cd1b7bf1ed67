"""Which coding travels: made when needed, found when it is here, and never for nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kvnetd import encoding
from kvnetd.actions import packages
from kvnetd.services import Services
from kvnetd.store.memories import MemoryStore
from kvnetd.store.records import MemoryRecord
from kvnetd.store.sections import sections_place

from kvnet.codec.basis import Basis, LayerBasis
from kvnet.codec.presets import PRESETS, preset_name
from kvnet.errors import NotFinite, RequestError, StateCorrupt, UnknownBasis, UnknownMemory
from kvnet.model.cache import LayerKV
from kvnet.model.memory import encode_memory, pack_memory, unpack_memory
from kvnet.model.quality import Choice
from kvnet.types import Compression, DType, Kind, RawMemory, Scheme
from tests.builders import SENDER, make_fingerprint, make_geometry, make_memory
from tests.kvnetd.nodes import events, making

LOSSY = [name for name, preset in PRESETS.items() if not preset.needs_basis and name != "exact"]


def numbers(seed: int = 0, *, num_tokens: int = 40) -> RawMemory:
    """A memory of numbers, as a model would have them."""
    source = torch.Generator().manual_seed(seed)
    layers = [
        LayerKV(i, *(torch.randn(1, 2, num_tokens, 4, generator=source) for _ in range(2))) for i in range(3)
    ]
    return pack_memory(
        layers,
        fingerprint=make_fingerprint(),
        geometry=make_geometry(),
        token_ids=range(num_tokens),
    )


def make_full_basis(seed: int = 0) -> Basis:
    """A calibration that keeps every component, in fine steps."""
    source = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=source))[0]
    return Basis.of(
        {
            (i, kind): LayerBasis(torch.zeros(8), (turn * 20).contiguous(), (turn.T / 20).contiguous())
            for i in range(3)
            for kind in (Kind.KEY, Kind.VALUE)
        }
    )


MEMORY = numbers()


def zero(path: Path) -> None:
    """A file of the same length, with nothing in it."""
    path.write_bytes(bytes(path.stat().st_size))


@pytest.fixture
def record(services: Services) -> MemoryRecord:
    return services.memories.put(MEMORY, making(Compression.NONE, domain="law"), services.key)


async def test_memory_is_sent_exactly_as_it_lies_there(services: Services, record: MemoryRecord) -> None:
    assert await encoding.record_to_send(services, record, "exact") is record
    assert services.memories.all() == (record,)


@pytest.mark.parametrize("codec", LOSSY)
async def test_other_coding_is_a_memory_of_its_own_and_made_once(
    services: Services, record: MemoryRecord, codec: str
) -> None:
    sent = await encoding.record_to_send(services, record, codec)
    assert (preset_name(sent.header.coding), sent.header.derived_from) == (codec, record.id)
    assert (sent.origin, sent.head.signed_by) == ("", services.key.node_id)
    assert sent.head.metadata.domain == "law"
    assert services.memories.is_encoding(sent)
    assert await encoding.record_to_send(services, record, codec) is sent
    assert [line["event"] for line in events(services, "encoding")] == [
        "encoding.started",
        "encoding.completed",
    ]
    decoded = unpack_memory(services.memories.load(sent))
    for layer, true in zip(decoded, unpack_memory(MEMORY), strict=True):
        assert (layer.values - true.values).abs().max() < 0.5


async def test_codec_of_the_settings_is_taken_where_none_is_named(
    services: Services, record: MemoryRecord
) -> None:
    assert services.config.codec == "int8"
    assert preset_name((await encoding.record_to_send(services, record, "")).header.coding) == "int8"
    told = replace(services, config=replace(services.config, codec="int4"))
    assert preset_name((await encoding.record_to_send(told, record, "")).header.coding) == "int4"


@pytest.mark.parametrize("codec", ["", "exact", "int8"])
async def test_memory_that_is_coded_already_stays_as_it_is(
    services: Services, record: MemoryRecord, codec: str
) -> None:
    coded = await encoding.record_to_send(services, record, "int8")
    assert await encoding.record_to_send(services, coded, codec) is coded


async def test_memory_that_is_coded_already_is_coded_anew_when_another_is_named(
    services: Services, record: MemoryRecord
) -> None:
    coded = await encoding.record_to_send(services, record, "int8")
    again = await encoding.record_to_send(services, coded, "int4")
    assert (preset_name(again.header.coding), again.header.derived_from) == ("int4", coded.id)


async def test_received_memory_is_sent_exactly_under_its_makers_seal(services: Services) -> None:
    notes = replace(making().notes, origin=SENDER.node_id)
    record = services.memories.put(MEMORY, replace(making(), notes=notes), SENDER)
    assert await encoding.record_to_send(services, record, "exact") is record
    coded = await encoding.record_to_send(services, record, "int8")
    assert (coded.origin, coded.head.signed_by) == ("", services.key.node_id)


async def test_damaged_coding_is_made_again(services: Services, record: MemoryRecord) -> None:
    sent = await encoding.record_to_send(services, record, "int8")
    zero(sections_place(services.memories.root / sent.id))
    services.memories.damaged[sent.id] = "found so by a reader"
    again = await encoding.record_to_send(services, record, "int8")
    assert (again.id, services.memories.damaged) == (sent.id, {})
    assert services.memories.load(again).header == sent.header


@pytest.mark.parametrize("codec", ["exact", "int8"])
async def test_pruned_coding_is_never_sent_for_the_whole_memory(
    services: Services, record: MemoryRecord, codec: str
) -> None:
    pruned = encode_memory(MEMORY, codec, pruned_heads=[(0, 1)])
    kept = services.memories.put(pruned, making(), services.key)
    assert kept.header.derived_from == record.id
    sent = await encoding.record_to_send(services, record, codec)
    assert sent.header.coding.pruned_heads == ()
    assert (await encoding.record_to_send(services, kept, codec)).id == kept.id


@pytest.mark.parametrize("codec", ["int2", "EXACT", "int8 ", "../int8", "zstd"])
async def test_codec_that_does_not_exist_is_refused_with_those_that_do(
    services: Services, record: MemoryRecord, codec: str
) -> None:
    with pytest.raises(RequestError, match=r"none of exact, int8, .*, compact, auto"):
        await encoding.record_to_send(services, record, codec)


async def test_compact_without_a_calibration_is_an_unknown_basis(
    services: Services, record: MemoryRecord
) -> None:
    with pytest.raises(UnknownBasis, match="kvnet calibrate"):
        await encoding.record_to_send(services, record, "compact")
    assert len(services.memories.all()) == 1


async def test_compact_is_made_with_the_newest_calibration_and_the_old_one_still_decodes(
    services: Services, record: MemoryRecord
) -> None:
    sent = []
    for seed in (1, 2):
        basis = make_full_basis(seed)
        services.models.note(services.host.fingerprint.digest, basis=services.bases.put(basis.raw))
        coded = await encoding.record_to_send(services, record, "compact")
        assert coded.header.coding.scheme is Scheme.TRANSFORM
        assert (coded.header.coding.basis, coded.header.coding.basis_nbytes) == (basis.digest, len(basis.raw))
        sent.append(coded)
    assert sent[0].id != sent[1].id
    for coded in sent:
        basis_of = await encoding.basis_of(services, coded.header.coding)
        decoded = unpack_memory(services.memories.load(coded), basis=basis_of)
        assert (decoded[0].values - unpack_memory(MEMORY)[0].values).abs().max() < 0.2


async def test_numbers_that_are_none_are_not_coded(services: Services) -> None:
    """`make_memory` is noise: as float32 some of it is NaN."""
    record = services.memories.put(make_memory(seq_len=40), making(), services.key)
    with pytest.raises(NotFinite):
        await encoding.record_to_send(services, record, "int8")
    assert services.memories.all() == (record,)


GOOD_CHOICE = {"preset": "int4", "bound": 0.1, "candidates": []}


@pytest.mark.parametrize(
    "noted",
    [
        5,
        [],
        {},
        {"basis": ""},
        {"basis": "", "choice": None},
        {"basis": "", "choice": {"preset": "int4"}},
        {"basis": "", "choice": {**GOOD_CHOICE, "surprise": 1}},
        {"basis": "", "choice": {**GOOD_CHOICE, "preset": "int2"}},
        {"basis": "sha256:" + "0" * 64, "choice": GOOD_CHOICE},
    ],
    ids=str,
)
async def test_odd_note_on_the_choice_of_auto_is_measured_again(
    services: Services, monkeypatch: pytest.MonkeyPatch, noted: Any
) -> None:
    found = Choice("int8", 0.1, ())
    monkeypatch.setattr("kvnet.model.quality.choose_preset", lambda host, basis: found)
    services.models.note(services.host.fingerprint.digest, auto=noted)
    assert await encoding.chosen(services) == found
    monkeypatch.setattr("kvnet.model.quality.choose_preset", None)
    assert await encoding.chosen(services) == found  # noted for good this time


async def test_good_note_on_the_choice_of_auto_is_taken(services: Services) -> None:
    noted = {"basis": "", "choice": GOOD_CHOICE}
    services.models.note(services.host.fingerprint.digest, auto=noted)
    assert await encoding.resolve(services, "auto") == "int4"


@pytest.mark.parametrize("noted", [5, None, {}, "sha256:", "../x"], ids=str)
async def test_odd_note_on_the_calibration_is_corrupt_state(
    services: Services, record: MemoryRecord, noted: Any
) -> None:
    services.models.note(services.host.fingerprint.digest, basis=noted)
    with pytest.raises(StateCorrupt, match="calibrate again"):
        await encoding.record_to_send(services, record, "compact")


async def test_calibration_is_read_and_parsed_once_for_many_questions(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases = [make_full_basis(seed) for seed in (1, 2)]
    codings = [replace(PRESETS["compact"].coding, basis=services.bases.put(basis.raw)) for basis in bases]
    first = await encoding.basis_of(services, codings[0])
    with monkeypatch.context() as patched:
        patched.setattr(services.bases, "get", None)
        assert await encoding.basis_of(services, codings[0]) is first
    for coding, basis in zip(codings[::-1], bases[::-1], strict=True):
        found = await encoding.basis_of(services, coding)
        assert found is not None
        assert found.digest == basis.digest


async def test_encoding_of_a_memory_that_is_forgotten_meanwhile_is_not_kept(
    services: Services, record: MemoryRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(*args: Any, **kwargs: Any) -> RawMemory:
        services.memories.forget(record.id)
        return encode_memory(*args, **kwargs)

    monkeypatch.setattr("kvnet.model.memory.encode_memory", overtaken)
    with pytest.raises(UnknownMemory, match="removed meanwhile"):
        await encoding.record_to_send(services, record, "int8")
    assert services.memories.all() == ()
    assert list(services.memories.root.iterdir()) == []


async def test_step_of_an_encoding_tells_another_dtype_and_the_heads_that_were_pruned(
    services: Services, record: MemoryRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvnet.model.pruning.prunable_heads", lambda found, num_kv_heads: ((0, 1), (2, 0)))
    encoded, notes = await encoding.encode(
        services, MEMORY, record.notes, codec="int8", dtype=DType.FLOAT16, prune=True
    )
    assert notes.steps[-1].details == {
        "codec": "int8",
        "from": MEMORY.header.id,
        "dtype": "float16",
        "pruned_heads": [[0, 1], [2, 0]],
    }
    kept = services.memories.put(encoded, replace(making(), notes=notes), services.key)
    assert MemoryStore(services.memories.root).get(kept.id) == kept


async def test_lineage_tells_what_happened_and_measures_nothing_unasked(
    services: Services, record: MemoryRecord
) -> None:
    coded = await encoding.record_to_send(services, record, "int8")
    told = await packages.lineage(services, coded.id, measured=False)
    assert (told.creation_method, told.created_by) == ("direct-extraction", services.config.name)
    assert told.measurements == ()
    (step,) = told.processing_steps
    assert (step.step, step.model, step.model_hash) == (
        "encoding",
        "tiny",
        services.host.fingerprint.digest,
    )
    assert step.details == {"codec": "int8", "from": record.id}
    assert step.duration_s is not None
    assert step.duration_s >= 0
    assert told.source_inputs == ()  # the text was read elsewhere: nothing is made up


async def test_lineage_of_a_received_memory_says_so(services: Services) -> None:
    notes = replace(making().notes, origin=SENDER.node_id)
    record = services.memories.put(MEMORY, replace(making(), notes=notes), SENDER)
    assert (await packages.lineage(services, record.id, measured=True)).creation_method == "received"
