"""kvnet and the reader that was written from FORMAT.md alone read the same coordinates of a port."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from kvnet.files.reader import MemoryFile
from kvnet.model.coordinates import coordinates_of, memory_of_coordinates
from kvnet.plan import PORT_TOKENS_PER_CHUNK
from kvnet.types import RawMemory
from tests.builders import make_head, make_memory, wire_chunks
from tests.hostile import recipes_port
from tests.hostile.fuzz_inputs import mutate, scrambler
from tests.hostile.kvnet_verdict import kvnet_verdict
from tests.hostile.recipes_port import coordinates
from tests.second_reader import awkg_reader, port
from tests.second_reader.header import memory_id
from tests.second_reader.port_builder import make_port, random_port_draft
from tests.second_reader.strict import Refused, sha256_text

NUM_FILES = 200
NUM_CHANGED = 2000
RANK = 5


def _agree(path: Path, artefact: bytes) -> awkg_reader.Memory:
    """Read by both; every code, every slot and the memory's id must be the same."""
    ours = awkg_reader.read(path, artefact)
    assert ours.coordinates is not None
    with MemoryFile.open(path) as file:
        file.verify()
        raw = RawMemory(file.header.memory, tuple(file.raw(i) for i in range(len(file.header.sections))))
        assert memory_id(ours.header) == file.memory_id
        assert file.header.w_matrix_reference == ours.header["wMatrixReference"]
    codes, slots = coordinates_of(raw, port.rank_of(artefact))
    assert codes.tolist() == ours.coordinates.codes.tolist()
    assert slots.tolist() == ours.coordinates.slots
    return ours


def test_both_readers_read_random_coordinates_alike(tmp_path: Path) -> None:
    path, seen = tmp_path / "random.awkg", set[object]()
    for seed in range(NUM_FILES):
        draft = random_port_draft(seed)
        path.write_bytes(draft.sign())
        memory = _agree(path, draft.basis or b"")
        codecs = {section["codec"] for section in memory.header["sections"]}
        seen |= {(memory.header["coding"]["keyBits"], codec) for codec in codecs}
        seen.add(len(memory.header["sections"]))
    assert seen >= {(bits, codec) for bits in (4, 8) for codec in ("none", "lz4", "zstd")} | {1, 2}


@pytest.mark.parametrize("bits", [4, 8])
def test_the_second_reader_reads_the_codes_that_kvnet_was_given(tmp_path: Path, bits: int) -> None:
    seq_len, artefact = 2 * PORT_TOKENS_PER_CHUNK + 9, make_port(RANK)
    source = make_memory(seq_len=seq_len).header
    slots = torch.arange(0, seq_len, 7)
    codes = (torch.arange(len(slots) * RANK) % 15 - 7).to(torch.int8).view(-1, RANK)
    digest, nbytes = sha256_text(artefact), len(artefact)
    memory = memory_of_coordinates(source, codes, slots, bits=bits, port_digest=digest, port_nbytes=nbytes)
    head = make_head(memory)
    path = tmp_path / "made.awkg"
    path.write_bytes(head.sealed.body + b"".join(wire_chunks(memory)[1]) + head.sealed.signature)
    found = _agree(path, artefact).coordinates
    assert found is not None
    assert (found.slots, found.codes.tolist()) == (slots.tolist(), codes.tolist())


def test_both_readers_give_the_same_code_for_coordinates_that_were_changed_and_signed_again(
    tmp_path: Path,
) -> None:
    rng, path = random.Random(5), tmp_path / "changed.awkg"
    starts = [coordinates(bits).sign() for bits in (4, 8)]
    scramble, found = scrambler(rng), set()
    for _ in range(NUM_CHANGED):
        path.write_bytes(mutate("memory", rng.choice(starts), 1 << 16, rng, scramble))
        verdict = kvnet_verdict(path, recipes_port.port())
        assert verdict == _verdict(path, recipes_port.port())
        found.add(verdict)
    assert {"ok", "malformed_file", "malformed_chunk", "bad_signature", "unknown_alignment"} <= found


def _verdict(path: Path, artefact: bytes) -> str:
    try:
        awkg_reader.read(path, artefact)
    except Refused as exc:
        return exc.code
    return "ok"


def test_coordinates_without_their_port_are_refused_by_both(tmp_path: Path) -> None:
    path = tmp_path / "random.awkg"
    path.write_bytes(random_port_draft(1).sign())
    for other in (None, make_port(7, row_width=9)):
        assert kvnet_verdict(path, other) == "unknown_alignment"
        with pytest.raises(Refused, match="unknown_alignment"):
            awkg_reader.read(path, other)
