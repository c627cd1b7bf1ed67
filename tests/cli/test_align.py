"""`kvnet align`, and packages that carry maps and ports, on a node without a model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from kvnetd.services import Services

from kvnet.api import AlignmentExport, AlignmentInfo, PackagedAlignment
from kvnet.cli.alignment_text import age_text
from kvnet.files.alignments import read_alignment, write_alignment
from kvnet.files.package import Package, write_package
from kvnet.identity.keys import grouped, short_id
from kvnet.identity.peers import AddedPeer
from tests.builders import RECEIVER, SENDER, STRANGER
from tests.cli.outcomes import Kvnet, json_of, refused
from tests.files.alignment_files import (
    GATE,
    make_map,
    make_map_file,
    make_port_file,
    make_tensors,
    other_model,
)
from tests.files.packages import Packed, make_package, make_parts, sign, write_memory
from tests.kvnetd.control_node import control_node
from tests.kvnetd.nodes import MEMORY, making

PORT = make_port_file()
PORT_ID = read_alignment(PORT).manifest.id
MAP = make_map_file(port=PORT_ID)
MAP_ID = read_alignment(MAP).manifest.id
ALICE = AddedPeer(SENDER.node_id, "alice", "", "")


@pytest.fixture
def services() -> Iterator[Services]:
    """RECEIVER's node, which has added SENDER."""
    with control_node(ALICE) as found:
        yield found


@pytest.fixture
def kvnet(kvnet: Kvnet, services: Services, monkeypatch: pytest.MonkeyPatch) -> Kvnet:
    """`kvnet` on that node."""
    monkeypatch.setenv("KVNET_HOME", str(services.config.home.root))
    return kvnet


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A map into a port, the port, and a stranger's map that was not admitted."""
    strange = make_map_file(key=STRANGER, gate=replace(GATE, admitted=False, reason="KL is 3"))
    found = {}
    for name, encoded in (("map", MAP), ("port", PORT), ("strange", strange)):
        found[name] = tmp_path / f"{name}.safetensors"
        found[name].write_bytes(encoded)
    return found


def field_names(cls: type) -> set[str]:
    return {spec.name for spec in fields(cls)}  # type: ignore[arg-type]


def said_of(kvnet: Kvnet, *arguments: object) -> str:
    said = kvnet(*arguments)
    assert said.status == 0, said
    return said.out


def test_maps_come_and_go(kvnet: Kvnet, files: dict[str, Path], tmp_path: Path) -> None:
    assert "no maps and no ports yet" in said_of(kvnet, "align", "ls")
    taken = json_of(kvnet("align", "import", files["map"], "--json"))
    assert set(taken) == field_names(AlignmentInfo)
    assert (taken["id"], taken["signed_by"], taken["window"]) == (MAP_ID, SENDER.node_id, [-1, 1])
    assert taken["gate"]["gap_recovered"] == {"value": 0.89, "low": 0.84, "high": 0.94}
    assert json_of(kvnet("align", "show", MAP_ID[:12], "--json")) == taken
    assert json_of(kvnet("align", "ls", "--json")) == [taken]
    exported = json_of(kvnet("align", "export", MAP_ID[:12], tmp_path / "out", "--json"))
    assert set(exported) == field_names(AlignmentExport)
    assert exported == {
        "id": MAP_ID,
        "path": str(tmp_path / "out"),
        "nbytes": len(MAP),
        "signed_by": SENDER.node_id,
    }
    assert (tmp_path / "out").read_bytes() == MAP
    refused(kvnet("align", "export", MAP_ID, tmp_path / "out"), "request_invalid", 4)
    assert json_of(kvnet("align", "rm", MAP_ID, "--json")) == taken
    refused(kvnet("align", "show", MAP_ID), "unknown_alignment", 4)
    refused(kvnet("align", "export", MAP_ID, tmp_path / "other"), "unknown_alignment", 4)
    assert not (tmp_path / "other").exists()


def test_each_map_is_a_line(kvnet: Kvnet, files: dict[str, Path], services: Services) -> None:
    for path in files.values():
        kvnet("align", "import", path, "--trust")
    (services.alignments.root / f"{PORT_ID}.safetensors").write_bytes(b"")
    kvnet("align", "export", PORT_ID, services.alignments.root / "nowhere")  # now it is known to be damaged
    head, *lines = said_of(kvnet, "align", "ls").splitlines()
    assert re.split(r"  +", head) == [
        "id",
        "kind",
        "from -> to",
        "gap recovered",
        "admitted",
        "signed by",
        "age",
    ]
    rows = {re.split(r"  +", line)[0]: re.split(r"  +", line) for line in lines}
    assert len(rows) == 3
    assert rows[MAP_ID[:16]][1:6] == ["map", "from -> tiny", "0.89", "yes", short_id(SENDER.node_id)]
    assert rows[PORT_ID[:16]][1] == "damaged"
    (strange,) = rows.keys() - {MAP_ID[:16], PORT_ID[:16]}
    assert rows[strange][3:6] == ["0.89", "no", short_id(STRANGER.node_id)]
    assert "damaged: " in said_of(kvnet, "align", "show", PORT_ID)


def test_a_map_is_shown_with_what_its_gate_measured(kvnet: Kvnet, files: dict[str, Path]) -> None:
    kvnet("align", "import", files["map"])
    shown = said_of(kvnet, "align", "show", MAP_ID)
    assert f"{PORT_ID}, 3 coordinates a slot" in shown
    for told in (
        "from, sha256:", "tiny, sha256:", "ridge, lambda 1e-06, slots paired by tokens",
        "slots -1 to +1, after the closing text ' So.'", "learned: 1 0", "40 texts, 2000 rows",
        f"signed by {grouped(SENDER.node_id)}", "admitted: it recovers 0.9", "0.890 (0.840 to 0.940)",
        "is not here",
    ):  # fmt: skip
        assert told in shown, told
    kvnet("align", "import", files["port"])
    assert "is not here" not in said_of(kvnet, "align", "show", MAP_ID)
    assert "rank     3 coordinates a slot" in said_of(kvnet, "align", "show", PORT_ID)


def test_what_a_map_sees_further_away_is_shown(kvnet: Kvnet, tmp_path: Path) -> None:
    manifest = make_map(far_window=(-9, -4), far_layers=(1,))
    (tmp_path / "map").write_bytes(write_alignment(manifest, make_tensors(manifest), SENDER))
    info = json_of(kvnet("align", "import", tmp_path / "map", "--json"))
    assert (info["far_window"], info["far_layers"]) == ([-9, -4], [1])
    shown = said_of(kvnet, "align", "show", info["id"])
    assert "further  slots -9 to -4, of layers 1 alone" in shown


def test_codecs_of_a_port_are_offered_to_those_who_send(kvnet: Kvnet) -> None:
    told = said_of(kvnet, "send", "--help")
    assert "port8" in told
    assert "port4" in told


def test_a_strangers_map_is_taken_only_on_trust(kvnet: Kvnet, files: dict[str, Path]) -> None:
    said = kvnet("align", "import", files["strange"])
    refused(said, "alignment_refused", 4)
    assert grouped(STRANGER.node_id) in said.err
    taken = said_of(kvnet, "align", "import", files["strange"], "--trust")
    assert "kept but never chosen: KL is 3" in taken


def test_what_others_wrote_does_not_drive_the_terminal(kvnet: Kvnet, tmp_path: Path) -> None:
    bad = make_map_file(
        source=other_model("\x1b[2J"), closing="\x07", gate=replace(GATE, admitted=False, reason="\x1b]0;x")
    )
    (tmp_path / "bad").write_bytes(bad)
    name = read_alignment(bad).manifest.id
    commands = (("import", tmp_path / "bad"), ("ls",), ("show", name))
    assert not any(set("\x1b\x07") & set(said_of(kvnet, "align", *command)) for command in commands)


@pytest.mark.parametrize("name", ["/dev/zero", "folder", "text", "empty", "missing"])
def test_what_is_no_map_is_refused(kvnet: Kvnet, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("Dear Sir, " * 100, encoding="utf-8")
    (tmp_path / "empty").touch()
    code = ("request_invalid", 4) if name == "missing" else ("malformed_file", 5)
    refused(kvnet("align", "import", tmp_path / name, "--trust"), *code)


def test_ages_are_told_in_words_for_people() -> None:
    now = datetime(2027, 1, 15, 8, 0, 0, tzinfo=UTC)
    ages = {"2027-01-15T07:55:30Z": "4 min", "2027-01-13T09:00:00Z": "47 h", "2027-01-13T07:00:00Z": "2 d"}
    assert {at: age_text(at, now) for at in ages} == ages
    assert age_text("2027-02-01T00:00:00Z", now) == "0 min"


# Packages


@pytest.fixture
def carrying(kvnet: Kvnet, services: Services, files: dict[str, Path], tmp_path: Path) -> Path:
    """What this node packs: a memory, a map and its port."""
    record = services.memories.put(MEMORY, making(), services.key)
    for name in ("map", "port"):
        kvnet("align", "import", files[name])
    said_of(kvnet, "pack", record.id, tmp_path / "p.zip", "--alignment", MAP_ID[:12])
    return tmp_path / "p.zip"


def test_a_package_carries_a_map_and_its_port(carrying: Path) -> None:
    with Package.open(carrying) as package:
        package.verify()
        assert package.manifest.alignments == {"tiny": f"alignments/{MAP_ID}.bin"}
        assert b"".join(package.read(f"alignments/{MAP_ID}.bin")) == MAP
        assert b"".join(package.read(f"alignments/{PORT_ID}.bin")) == PORT
        assert package.signed_by == RECEIVER.node_id


def test_a_package_carries_one_map_to_a_model(kvnet: Kvnet, carrying: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.write_bytes(make_map_file(seed=1))
    name = json_of(kvnet("align", "import", second, "--json"))["id"]
    command = ("pack", MEMORY.header.id, tmp_path / "q.zip", "--alignment", MAP_ID, "--alignment", name)
    refused(kvnet(*command), "request_invalid", 4)
    refused(kvnet(*command[:3], "--alignment", "map_aaaaaaa"), "unknown_alignment", 4)
    assert not (tmp_path / "q.zip").exists()
    assert "q.zip" in said_of(kvnet, *command[:3], "--alignment", PORT_ID)
    with Package.open(tmp_path / "q.zip") as package:
        assert package.manifest.alignments == {"tiny": f"alignments/{PORT_ID}.bin"}


@pytest.mark.parametrize("command", ["unpack", "import"])
def test_a_packages_maps_are_taken_in(kvnet: Kvnet, carrying: Path, tmp_path: Path, command: str) -> None:
    for name in (MAP_ID, PORT_ID):
        kvnet("align", "rm", name)
    if command == "unpack":
        done = json_of(kvnet("unpack", carrying, tmp_path / "out", "--json"))
        taken = [{"path": f"alignments/{name}.bin", "id": name, "problem": ""} for name in (MAP_ID, PORT_ID)]
        assert done["alignments"] == taken
        assert set(taken[0]) == field_names(PackagedAlignment)
    else:
        shown = said_of(kvnet, "mem", "import", carrying)
        assert f"{MAP_ID} taken in" in shown
    assert [info["id"] for info in json_of(kvnet("align", "ls", "--json"))] == sorted([MAP_ID, PORT_ID])


def test_a_map_that_is_refused_is_told_and_the_memory_still_lands(
    kvnet: Kvnet, services: Services, files: dict[str, Path], tmp_path: Path
) -> None:
    parts = make_parts(write_memory(tmp_path / "m.awkg"), alignments={"strange": files["strange"]})
    write_package(tmp_path / "p", parts, sign)
    unpacked = said_of(kvnet, "unpack", tmp_path / "p", tmp_path / "out")
    assert "alignments/strange.bin not taken in: map_" in unpacked
    assert "--trust" in unpacked
    assert (tmp_path / "out" / "kv-cache.awkg").exists()
    said = kvnet("mem", "import", tmp_path / "p", "--json")
    assert json_of(said)["id"] == MEMORY.header.id
    assert "not taken in" in said.err
    assert [record.id for record in services.memories.all()] == [MEMORY.header.id]
    assert services.alignments.all() == ()


def test_what_is_no_map_in_a_package_is_passed_over(kvnet: Kvnet, tmp_path: Path) -> None:
    packed: Packed = make_package(tmp_path)
    assert "to-other.bin not taken in: alignment file" in said_of(
        kvnet, "unpack", packed.zip, tmp_path / "out"
    )
