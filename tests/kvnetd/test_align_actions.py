"""Taking in maps and ports: whose are taken, and what of a hostile one is refused."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from kvnetd.actions import align
from kvnetd.services import Services
from kvnetd.store.alignments import AlignmentStore

from kvnet import wire
from kvnet.api import AlignmentInfo
from kvnet.errors import (
    AlignmentRefused,
    BadSignature,
    MalformedFile,
    StateCorrupt,
    UnknownAlignment,
)
from kvnet.files.alignments import read_alignment
from kvnet.identity.keys import grouped
from kvnet.model.reference.signer import packaged_key
from kvnet.v1 import control_pb2 as pb
from tests.builders import RECEIVER, SENDER, STRANGER
from tests.files.alignment_files import GATE, make_map_file, make_port_file

MAP = make_map_file()


async def pieces(encoded: bytes, *, trust: bool | None = None) -> AsyncIterator[bytes | bool]:
    """A file in pieces that end anywhere."""
    if trust is not None:
        yield trust
    source = io.BytesIO(encoded)
    while block := source.read(777):
        yield block


async def test_own_and_peers_maps_are_taken(services: Services) -> None:
    for key in (RECEIVER, SENDER):  # the node itself, and Alice, whom it has added
        found = await align.import_(services, pieces(make_map_file(key=key, seed=key is SENDER)))
        assert found.signed_by == key.node_id
    assert len(services.alignments.all()) == 2


async def test_a_strangers_map_is_refused_unless_told_to_trust(services: Services) -> None:
    encoded = make_map_file(key=STRANGER)
    for trust in (None, False):
        with pytest.raises(AlignmentRefused, match=grouped(STRANGER.node_id)) as refused:
            await align.import_(services, pieces(encoded, trust=trust))
        assert "--trust" in refused.value.message
    assert services.alignments.all() == ()
    found = await align.import_(services, pieces(encoded, trust=True))
    assert [record.id for record in services.alignments.all()] == [found.id]


async def test_the_key_of_packaged_maps_earns_no_trust_but_they_do(
    services: Services, tmp_path: Path
) -> None:
    packaged = make_map_file(key=packaged_key())
    with pytest.raises(AlignmentRefused):
        await align.import_(services, pieces(packaged))
    (tmp_path / "m.safetensors").write_bytes(packaged)
    with_maps = AlignmentStore(tmp_path / "store", [tmp_path / "m.safetensors"])
    services = replace(services, alignments=with_maps)
    assert (await align.import_(services, pieces(packaged))).packaged
    with pytest.raises(AlignmentRefused):
        await align.import_(services, pieces(make_map_file(key=packaged_key(), seed=1)))


@pytest.mark.parametrize("trust", [False, True])
async def test_trust_is_no_excuse_for_a_broken_file(services: Services, trust: bool) -> None:
    for encoded, kind in ((MAP[:-1] + b"!", BadSignature), (MAP + b"?", MalformedFile), (b"", MalformedFile)):
        with pytest.raises(kind):
            await align.import_(services, pieces(encoded, trust=trust))
    assert list(services.alignments.root.iterdir()) == []


async def test_a_file_that_never_ends_is_cut_off(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(align, "MAX_ALIGNMENT_NBYTES", 5000)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"\0" * 777

    with pytest.raises(MalformedFile, match="more than 5000 bytes"):
        await align.import_(services, endless())


async def test_what_goes_out_is_what_came_in(services: Services) -> None:
    info = await align.import_(services, pieces(MAP))
    assert b"".join([block async for block in align.export(services, info.id[:10])]) == MAP


async def test_a_map_tells_all_of_itself(services: Services) -> None:
    port = read_alignment(make_port_file()).manifest.id
    info = await align.import_(services, pieces(make_map_file(port=port)))
    assert (info.kind, info.source, info.receiver, info.rank) == ("map", "from", "tiny", 3)
    assert info.gate is not None
    assert replace(info.gate, uses=GATE.uses) == GATE
    assert [one.use for one in info.gate.uses] == ["port4", "unclosed", "unclosed+port4"]
    assert info.problem == f"the port it ends in, {port}, is not here"
    (shown,) = align.list_alignments(services)
    assert shown == info == align.show(services, info.id)
    of_port = await align.import_(services, pieces(make_port_file()))
    assert (of_port.kind, of_port.source, of_port.rank, of_port.gate) == ("port", "", 3, None)
    assert align.show(services, info.id).problem == ""
    for told in (info, of_port):
        assert wire.from_wire(wire.to_wire(told, pb.AlignmentInfo), AlignmentInfo) == told


async def test_a_damaged_map_is_shown_as_such_and_can_be_removed(services: Services) -> None:
    info = await align.import_(services, pieces(MAP))
    path = services.alignments.root / f"{info.id}.safetensors"
    path.write_bytes(MAP[:-1] + b"!")
    with pytest.raises(StateCorrupt):
        await anext(align.export(services, info.id))
    (shown,) = align.list_alignments(services)
    assert (shown.id, shown.kind) == (info.id, "")
    assert "its numbers are not those" in shown.problem
    assert await align.remove(services, info.id[:10]) == shown
    assert not path.exists()
    with pytest.raises(UnknownAlignment):
        align.show(services, info.id)
