"""Two nodes and memories in coordinates of a port: the port travels once, the id of the map always."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kvnetd import encoding

from kvnet.errors import IncompatibleModel, UnknownAlignment
from kvnet.files.alignments import read_alignment
from kvnet.model.coordinates import coordinates_of, memory_of_coordinates
from kvnet.types import Compression, RawMemory, sha256_hex
from tests.builders import make_fingerprint, make_geometry
from tests.files.alignment_files import GATE, RANK, make_map_file, make_port_file
from tests.kvnetd.exchange import pull_memory, send_memory
from tests.kvnetd.nodes import MEMORY, Node, making

SLOTS = torch.tensor([1, 2, 4])
PORT = make_port_file()
MAP = make_map_file(
    source=make_fingerprint(),
    source_geometry=make_geometry(),
    source_layers=(0, 1, 2),
    port=read_alignment(PORT).manifest.id,
)
MAP_ID = read_alignment(MAP).manifest.id


def mapped(seed: int = 0, bits: int = 8) -> RawMemory:
    """MEMORY in the coordinates of three of its slots."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-7, 8, (len(SLOTS), RANK), dtype=torch.int8, generator=generator)
    return memory_of_coordinates(
        MEMORY.header, codes, SLOTS, bits=bits, port_digest=sha256_hex(PORT), port_nbytes=len(PORT)
    )


@pytest.fixture
def bob(bob: Node) -> Node:
    """A node with the port, and a map that ends in it."""
    know(bob)
    return bob


def know(node: Node, *files: bytes) -> None:
    """Have the port and its map, or these files."""
    for file in files or (PORT, MAP):
        node.services.alignments.put(read_alignment(file))


def keep(node: Node, memory: RawMemory, wanted: Compression = Compression.ZSTD) -> None:
    """Put a mapped memory, and its port, into a node's store."""
    services = node.services
    services.bases.put(PORT)
    services.memories.put(memory, making(wanted, alignment=MAP_ID), services.key)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("wanted", Compression)
async def test_coordinates_arrive_as_the_same_file_with_their_port_and_the_id_of_their_map(
    alice: Node, bob: Node, bits: int, wanted: Compression
) -> None:
    memory = mapped(bits=bits)
    keep(alice, memory, wanted)
    report = await send_memory(alice, memory=memory.header.id, codec="")
    assert (report.memory, report.chunks, report.codec) == (memory.header.id, 1 + 1, f"port{bits}")
    assert report.tier == "mapped"
    record = bob.services.memories.get(memory.header.id)
    assert record.head.w_matrix_reference == MAP_ID
    assert bob.services.bases.get(sha256_hex(PORT)) == PORT
    read, slots = coordinates_of(bob.services.memories.load(record), RANK)
    sent, _ = coordinates_of(memory, RANK)
    assert torch.equal(read, sent)
    assert torch.equal(slots, SLOTS)
    files = [
        b"".join(n.services.memories.export(n.services.memories.get(memory.header.id))) for n in (alice, bob)
    ]
    assert files[0] == files[1]


async def test_port_goes_with_the_first_memory_and_not_with_the_next(alice: Node, bob: Node) -> None:
    for seed, resumed in ((1, 0), (2, 1)):
        memory = mapped(seed)
        keep(alice, memory)
        sent = await send_memory(alice, memory=memory.header.id, codec="")
        assert (sent.chunks, sent.resumed_chunks, sent.wire_bytes > len(PORT)) == (2, resumed, not resumed)


async def test_coordinates_are_pulled_as_well(alice: Node, bob: Node) -> None:
    memory = mapped()
    keep(bob, memory)
    know(alice)
    await pull_memory(alice, "bob", memory.header.id)
    assert alice.services.memories.load(alice.services.memories.get(memory.header.id)) == memory


async def test_coordinates_are_sent_in_no_other_coding(alice: Node, bob: Node) -> None:
    memory = mapped()
    keep(alice, memory)
    for codec in ("", "port8"):
        assert (await send_memory(alice, memory=memory.header.id, codec=codec)).codec == "port8"
    with pytest.raises(UnknownAlignment, match="coordinates of the port"):
        await send_memory(alice, memory=memory.header.id, codec="int8")
    assert await encoding.basis_of(alice.services, memory.header.coding) is None


OTHER_PORT = make_port_file(seed=1)
REFUSALS = {
    "nothing is known": (),
    "only the port is known": (PORT,),
    "only the map is known": (MAP,),
    "the map ends in another port": (
        OTHER_PORT,
        make_map_file(
            source=make_fingerprint(),
            source_geometry=make_geometry(),
            source_layers=(0, 1, 2),
            port=read_alignment(OTHER_PORT).manifest.id,
        ),
    ),
    "another map ends in the port": (
        PORT,
        make_map_file(
            seed=1,
            source=make_fingerprint(),
            source_geometry=make_geometry(),
            source_layers=(0, 1, 2),
            port=read_alignment(PORT).manifest.id,
        ),
    ),
    "the map is of another model": (PORT, make_map_file(port=read_alignment(PORT).manifest.id)),
    "the map was not admitted": (
        PORT,
        make_map_file(
            source=make_fingerprint(),
            source_geometry=make_geometry(),
            source_layers=(0, 1, 2),
            port=read_alignment(PORT).manifest.id,
            gate=replace(GATE, admitted=False),
        ),
    ),
}


async def test_offer_of_coordinates_is_decided_without_reading_a_file(alice: Node, bob: Node) -> None:
    """On the event loop, which hashes nothing: ids alone say whether map and port are here."""
    for record in bob.services.alignments.all():
        record.path.unlink()
    memory = mapped()
    keep(alice, memory)
    assert (await send_memory(alice, memory=memory.header.id, codec="")).tier == "mapped"


@pytest.mark.parametrize("files", REFUSALS.values(), ids=REFUSALS)
async def test_coordinates_are_refused_before_anything_is_sent_where_nothing_expands_them(
    alice: Node, bob: Node, files: tuple[bytes, ...]
) -> None:
    for record in bob.services.alignments.all():
        bob.services.alignments.remove(record.id)
    if files:
        know(bob, *files)
    memory = mapped()
    keep(alice, memory)
    with pytest.raises(IncompatibleModel, match="no admitted map here ends in their port"):
        await send_memory(alice, memory=memory.header.id, codec="")
    assert bob.services.memories.all() == ()
