"""Files and packages that are signed, whole and poisonous: refused when decoded, and the node goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvnet.client import Node
from kvnet.errors import IncompatibleModel, KvnetError, MalformedChunk, MalformedFile, NotFinite
from kvnet.files.package import write_package
from kvnet.files.writer import MemoryFileWriter
from kvnet.format.awkg import Metadata
from kvnet.plan import plan_memory, raw_nbytes_range
from kvnet.types import Coding, Compression, KeySpace, MemoryHeader, Scheme, sha256_hex
from tests.builders import STRANGER, make_basis
from tests.e2e.daemons import Pair
from tests.files.packages import WHEN, make_parts, sign

pytestmark = pytest.mark.usefixtures("pair_goes_on")

NUM_TOKENS = 40
INT8 = Coding(Scheme.GROUPED, key_bits=8, value_bits=8, group_size=64)
INT4 = replace(INT8, key_bits=4, value_bits=4)
GARBAGE_CODING, GARBAGE = make_basis(5000)


@pytest.fixture
def bob(pair: Pair) -> Iterator[Node]:
    with pair.bob.node() as node:
        yield node


def header_for(bob: Node, coding: Coding, **changes: object) -> MemoryHeader:
    """What bob's own model would have made."""
    status = bob.status()
    plain = MemoryHeader(
        fingerprint=status.fingerprint,
        geometry=status.geometry,
        seq_len=NUM_TOKENS,
        start_pos=0,
        key_space=KeySpace.ROTATED if coding.scheme is Scheme.RAW else KeySpace.CONTENT,
        token_digest=sha256_hex(b"tokens"),
        content_digest="",
        coding=coding,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def write(path: Path, header: MemoryHeader, fill: bytes) -> str:
    """A file that STRANGER signed, every chunk of one byte over and over; returns the memory's id."""
    with MemoryFileWriter(path, header, Compression.NONE) as writer:
        for key in plan_memory(header):
            writer.add(fill * raw_nbytes_range(header, key)[-1])
        head = writer.finish(
            STRANGER,
            created_at=WHEN,
            created_by="mallory",
            metadata=Metadata("", "", "", None, header.seq_len),
        )
    return head.memory_id


POISON: dict[str, tuple[Coding, bytes, type[KvnetError]]] = {
    "NaN as it is": (Coding(), b"\xff", NotFinite),
    "NaN for scales": (INT8, b"\xff", NotFinite),
    "negative scales": (INT8, b"\x80", MalformedChunk),
    "scales beyond the dtype": (INT8, b"\x7f", NotFinite),
    "NaN for minima": (INT4, b"\xff", NotFinite),
}


@pytest.mark.parametrize(("coding", "fill", "wanted"), POISON.values(), ids=POISON)
def test_numbers_that_no_model_may_be_given_are_refused_when_asked(
    bob: Node, pair: Pair, tmp_path: Path, coding: Coding, fill: bytes, wanted: type[KvnetError]
) -> None:
    memory = write(tmp_path / "poison.awkg", header_for(bob, coding), fill)
    assert bob.import_memory(tmp_path / "poison.awkg").id == memory  # it is what was signed
    for _ in range(2):
        with pytest.raises(wanted):
            bob.ask(pair.prompt, memory)
    bob.forget(memory)


def test_poison_is_passed_on_as_it_is_and_refused_there_too(bob: Node, pair: Pair, tmp_path: Path) -> None:
    memory = write(tmp_path / "poison.awkg", header_for(bob, INT8), b"\xff")
    bob.import_memory(tmp_path / "poison.awkg")
    with pytest.raises(NotFinite):
        bob.send(memory, "alice", codec="int4")  # it would have to be decoded here
    with pair.alice.node() as alice:
        assert bob.send(memory, "alice").memory == memory
        with pytest.raises(NotFinite):
            alice.ask(pair.prompt, memory)
        alice.forget(memory)
    bob.forget(memory)


def test_a_basis_that_is_none_is_refused_when_asked(bob: Node, pair: Pair, tmp_path: Path) -> None:
    memory = write(tmp_path / "m.awkg", header_for(bob, GARBAGE_CODING), b"\0")
    (tmp_path / "basis").write_bytes(GARBAGE)
    parts = replace(make_parts(tmp_path / "m.awkg"), basis=tmp_path / "basis")
    write_package(tmp_path / "p", parts, sign)
    assert bob.import_memory(tmp_path / "p").id == memory
    for act in (
        lambda: bob.ask(pair.prompt, memory),
        lambda: bob.send(memory, "alice", codec="int8"),
    ):
        with pytest.raises(MalformedFile, match="calibration"):
            act()
    bob.forget(memory)


@pytest.mark.parametrize(
    "changes",
    [{"num_layers": 5}, {"num_kv_heads": 1}, {"head_dim": 64}],
    ids=str,
)
def test_a_file_of_another_geometry_is_kept_and_never_asked(
    bob: Node, pair: Pair, tmp_path: Path, changes: dict[str, int]
) -> None:
    geometry = replace(bob.status().geometry, **changes)
    memory = write(tmp_path / "m.awkg", header_for(bob, INT8, geometry=geometry), b"\0")
    bob.import_memory(tmp_path / "m.awkg")
    with pytest.raises(IncompatibleModel):
        bob.ask(pair.prompt, memory)
    bob.forget(memory)
