"""Two nodes and memories in coordinates of a port: the port travels once, the id of the map always."""

from __future__ import annotations

import pytest
import torch
from kvnetd import encoding

from kvnet.errors import UnknownAlignment
from kvnet.model.coordinates import coordinates_of, memory_of_coordinates
from kvnet.types import Compression, RawMemory
from tests.builders import MAP_ID, make_port
from tests.kvnetd.exchange import pull_memory, send_memory
from tests.kvnetd.nodes import MEMORY, Node, making

RANK = 5
SLOTS = torch.tensor([0, 2, 4])
CODING, PORT = make_port((1 << 20) + 5)


def mapped(seed: int = 0, bits: int = 8) -> RawMemory:
    """MEMORY in five coordinates of three of its slots."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-7, 8, (len(SLOTS), RANK), dtype=torch.int8, generator=generator)
    digest, nbytes = CODING.basis, CODING.basis_nbytes
    return memory_of_coordinates(
        MEMORY.header, codes, SLOTS, bits=bits, port_digest=digest, port_nbytes=nbytes
    )


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
    assert (report.memory, report.chunks, report.codec) == (memory.header.id, 1 + 2, f"port{bits}")
    record = bob.services.memories.get(memory.header.id)
    assert record.head.w_matrix_reference == MAP_ID
    assert bob.services.bases.get(CODING.basis) == PORT
    read, slots = coordinates_of(bob.services.memories.load(record), RANK)
    sent, _ = coordinates_of(memory, RANK)
    assert torch.equal(read, sent)
    assert torch.equal(slots, SLOTS)
    files = [
        b"".join(n.services.memories.export(n.services.memories.get(memory.header.id))) for n in (alice, bob)
    ]
    assert files[0] == files[1]


async def test_port_goes_with_the_first_memory_and_not_with_the_next(alice: Node, bob: Node) -> None:
    for seed, resumed in ((1, 0), (2, 2)):
        memory = mapped(seed)
        keep(alice, memory)
        sent = await send_memory(alice, memory=memory.header.id, codec="")
        assert (sent.chunks, sent.resumed_chunks, sent.wire_bytes > len(PORT)) == (3, resumed, not resumed)


async def test_coordinates_are_pulled_as_well(alice: Node, bob: Node) -> None:
    memory = mapped()
    keep(bob, memory)
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
