"""Memories in the coordinates of a port: made, read back, and refused by whoever wants keys and values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvnet.codec.presets import preset_name
from kvnet.errors import MalformedChunk, RequestError, UnknownAlignment
from kvnet.model.coordinates import coordinates_of, memory_of_coordinates
from kvnet.model.memory import digest_chunks, encode_memory, refuse_incompatible, unpack_memory
from kvnet.plan import PORT_TOKENS_PER_CHUNK, check_coding, plan_memory, raw_nbytes_range
from kvnet.types import KeySpace, MemoryHeader, RawMemory, Rope
from tests.builders import INT8, make_geometry, make_memory, make_port

PORT, _ = make_port()
SEQ_LEN = 2 * PORT_TOKENS_PER_CHUNK + 5
SOURCE = replace(make_memory(attention_heads=4, coding=INT8).header, seq_len=SEQ_LEN)
CODES = torch.tensor([[1, -2, 3], [4, 5, -6], [7, 0, -7], [0, 1, 0]], dtype=torch.int8)
SLOTS = torch.tensor([1, 999, 1000, SEQ_LEN - 1])


def made(
    codes: torch.Tensor = CODES, slots: torch.Tensor = SLOTS, *, source: MemoryHeader = SOURCE, **changes: Any
) -> RawMemory:
    port: dict[str, Any] = {"bits": 8, "port_digest": PORT.basis, "port_nbytes": PORT.basis_nbytes} | changes
    return memory_of_coordinates(source, codes, slots, **port)


@pytest.mark.parametrize("bits", [4, 8])
def test_memory_of_coordinates_is_one_of_its_own(bits: int) -> None:
    memory = made(bits=bits)
    header = memory.header
    assert (header.derived_from, header.key_space, header.attention_heads) == (SOURCE.id, KeySpace.CONTENT, 0)
    assert (preset_name(header.coding), header.coding.basis) == (f"port{bits}", PORT.basis)
    unchanged = ("fingerprint", "geometry", "seq_len", "start_pos", "token_digest")
    assert all(getattr(header, name) == getattr(SOURCE, name) for name in unchanged)
    assert check_coding(header) == ""
    assert header.content_digest == digest_chunks(memory.chunks)
    sizes = [(len(chunk), key) for key, chunk in zip(plan_memory(header), memory.chunks, strict=True)]
    assert all(nbytes in raw_nbytes_range(header, key) for nbytes, key in sizes)
    assert [nbytes for nbytes, _ in sizes] == [125 + 2 * (row := 3 if bits == 8 else 2), 125 + row, 1 + row]


@given(
    st.sets(st.integers(0, SEQ_LEN - 1), max_size=9), st.integers(1, 5), st.sampled_from((4, 8)), st.data()
)
def test_coordinates_survive(slots: set[int], rank: int, bits: int, data: st.DataObject) -> None:
    codes = torch.tensor(
        [[data.draw(st.integers(-7, 7)) for _ in range(rank)] for _ in slots], dtype=torch.int8
    ).view(len(slots), rank)
    chosen = torch.tensor(sorted(slots), dtype=torch.int64)
    read, where = coordinates_of(made(codes, chosen, bits=bits), rank)
    assert (read.dtype, where.dtype) == (torch.int8, torch.int64)
    assert torch.equal(read, codes)
    assert torch.equal(where, chosen)


def test_coordinates_of_a_model_that_turns_no_keys_survive() -> None:
    source = replace(SOURCE, geometry=make_geometry(rope=Rope("default", 0.0)), key_space=KeySpace.ROTATED)
    assert torch.equal(coordinates_of(made(source=source), 3)[0], CODES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 5}, "4 or 8 bits"),
        ({"port_digest": "port_x"}, "a port of 300 bytes"),
        ({"port_nbytes": 0}, "a port of 0 bytes"),
    ],
)
def test_port_that_no_coding_can_name_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        made(**changes)


@pytest.mark.parametrize(
    "slots", [[1, 999, 1000], [999, 1, 1000, 1001], [1, 1, 2, 3], [-1, 0, 1, 2], [0, 1, 2, SEQ_LEN]]
)
def test_slots_that_are_not_those_of_the_codes_are_a_mistake(slots: list[int]) -> None:
    with pytest.raises(ValueError, match="slots"):
        made(slots=torch.tensor(slots))


def test_memory_that_contradicts_itself_or_its_port_is_refused() -> None:
    memory = made()
    for wrong, rank, message in (
        (memory, 2, "ask for it again"),
        (RawMemory(memory.header, memory.chunks[1:]), 3, "has 2 chunks, its header needs 3"),
        (make_memory(coding=INT8), 3, "its coding is grouped"),
        (RawMemory(replace(memory.header, attention_heads=1), memory.chunks), 3, "cannot hold"),
    ):
        with pytest.raises(MalformedChunk, match=message):
            coordinates_of(wrong, rank)


def test_coordinates_are_not_taken_for_keys_and_values() -> None:
    memory = made()
    with pytest.raises(UnknownAlignment, match="no keys and values; only that port expands them"):
        unpack_memory(memory)
    with pytest.raises(UnknownAlignment, match="coordinates of the port"):
        encode_memory(memory, "int8")
    with pytest.raises(UnknownAlignment, match="coordinates of the port"):
        refuse_incompatible(memory.header, SOURCE.geometry)
