"""A text read for a fit is the memory of it, and tells which characters each slot covers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest
import torch

from kvnet.align.fit import pair_readings
from kvnet.align.pairs import pair_slots
from kvnet.align.reading import LocalReader, Reading, hold
from kvnet.alignment import Intake
from kvnet.errors import Cancelled, IncompatibleModel, RequestError, TextTooLong
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from kvnet.model.reference.catalog import REFERENCE_MODELS, reference_path
from kvnet.model.slots import slots_of

TEXT = "Mira's dog is called Pixel. The code of the north gate is 4821."
BYTES_TEXT = "Zürich, São Paulo and 東京."  # characters of several tokens each


@pytest.fixture(scope="module", params=REFERENCE_MODELS)
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LocalReader:
    torch.set_num_threads(1)
    return LocalReader(ModelHost.load(ModelSpec(request.param), tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def without_bos(tmp_path_factory: pytest.TempPathFactory) -> LocalReader:
    """A reference model whose tokenizer puts nothing before a text."""
    folder, shipped = tmp_path_factory.mktemp("models") / "plain", reference_path("ref-a")
    assert shipped is not None
    shutil.copytree(shipped, folder)
    described = folder / "tokenizer.json"
    tokenizer = json.loads(described.read_text(encoding="utf-8")) | {"post_processor": None}
    described.write_text(json.dumps(tokenizer), encoding="utf-8")
    return LocalReader(ModelHost.load(ModelSpec(str(folder)), tmp_path_factory.mktemp("cache")))


def read(reader: LocalReader, text: str) -> Reading:
    (found,) = reader.read([text])
    return found


def assert_is_the_memory(reader: LocalReader, text: str) -> None:
    """A reading's slots are those of the memory that the model makes of the text."""
    found = read(reader, text).slots
    wanted = slots_of(reader.host.capture(text), num_sinks=reader.num_sinks)
    assert (found.geometry, found.span) == (wanted.geometry, wanted.span)
    assert torch.equal(found.rows, wanted.rows)
    assert torch.equal(found.positions, wanted.positions)


@pytest.mark.parametrize("text", [TEXT, BYTES_TEXT, "a"])
def test_slots_are_those_of_the_memory(reader: LocalReader, text: str) -> None:
    assert_is_the_memory(reader, text)


def test_states_that_were_asked_for_give_the_slots_rows(
    reader: LocalReader, without_bos: LocalReader
) -> None:
    for host in (reader.host, without_bos.host):
        intake = host.intake(range(1, host.geometry.num_layers))
        found = read(LocalReader(host, intake), TEXT)
        assert found.states.keys() == set(intake.state_layers) == set(range(1, host.geometry.num_layers))
        taken, rows = found.taken(intake), found.slots.rows
        assert taken.shape == (found.slots.num_slots, intake.width)
        assert torch.allclose(host.rows_of(intake, taken), rows, atol=1e-4 * float(rows.abs().max()))


def test_reader_that_was_asked_for_none_notes_no_states(reader: LocalReader) -> None:
    found = read(reader, TEXT)
    assert found.states == {}
    assert torch.equal(found.taken(Intake(reader.geometry)), found.slots.rows)


def test_every_slot_has_a_span_and_spans_cover_all_that_is_written(reader: LocalReader) -> None:
    for text in (TEXT, BYTES_TEXT):
        found = read(reader, text)
        assert len(found.spans) == found.slots.num_slots == found.slots.span
        covered = {place for start, stop in found.spans for place in range(start, stop)}
        assert {place for place, char in enumerate(text) if char != " "} <= covered


def test_spans_pair_one_to_one_with_themselves(reader: LocalReader) -> None:
    found = read(reader, TEXT)
    covering = torch.tensor([slot for slot, (start, stop) in enumerate(found.spans) if start < stop])
    source_idx, own_idx, coverage = pair_slots(found.spans, found.spans)
    assert torch.equal(source_idx, covering)
    assert torch.equal(own_idx, covering)
    assert coverage == 1.0


def test_one_tokenizer_pairs_pieces_of_a_character_one_to_one(reader: LocalReader) -> None:
    found = read(reader, BYTES_TEXT)
    assert len(set(found.spans)) < len(found.spans)
    for paired in pair_readings(found, found):
        assert torch.equal(paired, torch.arange(found.slots.num_slots))


def test_texts_are_read_in_order_and_one_at_a_time(reader: LocalReader) -> None:
    asked: list[str] = []

    def texts() -> Iterator[str]:
        for text in (TEXT, "Another one."):
            asked.append(text)
            yield text

    readings = reader.read(texts())
    assert asked == []
    first = next(readings)
    assert asked == [TEXT]
    assert torch.equal(first.slots.rows, read(reader, TEXT).slots.rows)
    assert next(readings).spans == read(reader, "Another one.").spans
    assert next(readings, None) is None


def test_text_longer_than_the_context_is_refused(reader: LocalReader) -> None:
    with pytest.raises(TextTooLong, match="shorten"):
        read(reader, "a b " * reader.host.max_seq_len)


@pytest.mark.parametrize("text", ["", "  \n"])
def test_text_of_nothing_is_refused_as_a_peer_refuses_it(
    reader: LocalReader, without_bos: LocalReader, text: str
) -> None:
    for one in (reader, without_bos):
        with pytest.raises(RequestError, match="the text is empty"):
            read(one, text)


def test_readings_are_held_up_to_a_bound_and_no_further(
    reader: LocalReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbytes = read(reader, TEXT).slots.rows.nbytes
    monkeypatch.setattr("kvnet.align.reading.MAX_HELD_NBYTES", 2 * nbytes)
    told: list[int] = []
    assert len(hold(reader.read([TEXT] * 2), progress=told.append)) == 2
    assert told == [1, 2]
    readings = reader.read([TEXT] * 9)
    with pytest.raises(RequestError, match=f"takes {3 * nbytes} bytes, at most {2 * nbytes} are held"):
        hold(readings)
    assert len(list(readings)) == 9 - 3


def test_states_count_among_what_is_held(reader: LocalReader, monkeypatch: pytest.MonkeyPatch) -> None:
    host = reader.host
    (found,) = LocalReader(host, host.intake((1, 2))).read([TEXT])
    state_nbytes = 2 * found.slots.num_slots * host.intake((1,)).hidden_size * 4
    assert found.nbytes == found.slots.rows.nbytes + state_nbytes > read(reader, TEXT).nbytes
    monkeypatch.setattr("kvnet.align.reading.MAX_HELD_NBYTES", found.nbytes - 1)
    assert len(hold([read(reader, TEXT)])) == 1
    with pytest.raises(RequestError, match=f"takes {found.nbytes} bytes"):
        hold([found])


def test_caller_that_leaves_ends_the_holding_within_a_text(reader: LocalReader) -> None:
    readings = reader.read([TEXT] * 3)
    with pytest.raises(Cancelled):
        hold(readings, cancelled=lambda: True)
    assert len(list(readings)) == 2


def test_model_without_a_first_token_of_its_own_gives_every_slot(without_bos: LocalReader) -> None:
    assert without_bos.num_sinks == 0
    assert_is_the_memory(without_bos, TEXT)
    assert len(read(without_bos, TEXT).spans) == len(without_bos.host.tokenize_context(TEXT))


def test_readings_without_characters_pair_only_within_one_tokenizer(reader: LocalReader) -> None:
    (found,) = reader.read([TEXT])
    silent = Reading(found.slots, ())
    every = torch.arange(found.slots.num_slots)
    source_idx, own_idx = pair_readings(silent, silent, same_tokens=True)
    assert source_idx.equal(every)
    assert own_idx.equal(every)
    with pytest.raises(IncompatibleModel, match="fast tokenizer"):
        pair_readings(silent, silent)
