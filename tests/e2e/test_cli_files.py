"""Memories as files and packages, as the command line writes and takes them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kvnet.codec.presets import CODECS
from kvnet.files.package import Package
from kvnet.files.reader import MemoryFile
from kvnet.identity.keys import grouped
from tests.e2e.daemons import Daemon, Kvnet, Pair, long_text
from tests.e2e.outcomes import assert_refused, assert_refused_both_ways, prints

EXPORT_FIELDS = {"memory", "path", "nbytes", "signed_by", "needs_basis"}
PACK_FIELDS = {"package_id", "path", "nbytes", "memory", "quality_measured"}


@pytest.fixture
def honest(pair: Pair, alice: Path, run: Kvnet, tmp_path: Path) -> Path:
    """The pair's memory as alice writes it."""
    path = tmp_path / "honest.awkg"
    prints(run(alice, "mem", "export", "honest", str(path)))
    return path


@pytest.fixture
def compact(alice: Path, run: Kvnet, tmp_path: Path) -> Path:
    """The same, coded with ref-a's calibration, which is not in the file."""
    path = tmp_path / "compact.awkg"
    prints(run(alice, "mem", "export", "honest", str(path), "--codec", "compact"))
    return path


@pytest.mark.parametrize(
    "command", [("up",), ("serve",), ("remember",), ("send",), ("pack",), ("mem", "export")], ids=" ".join
)
def test_every_codec_is_named_where_one_can_be_chosen(
    run: Kvnet, tmp_path: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    shown = prints(run(tmp_path, *command, "--help"))
    assert ", ".join(CODECS) in shown


# Writing


def test_a_memory_is_never_written_over_something(
    pair: Pair, alice: Path, run: Kvnet, tmp_path: Path
) -> None:
    (tmp_path / "mine").write_text("keep", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "device")
    before = {path: path.lstat() for path in tmp_path.iterdir()}
    for path in before:
        assert_refused_both_ways(run, alice, ("mem", "export", "honest", str(path)), "request_invalid", 4)
        assert path.name in run(alice, "mem", "export", "honest", str(path)).stderr
    assert {path: path.lstat() for path in tmp_path.iterdir()} == before


def test_a_memory_is_exported_in_another_codec(pair: Pair, alice: Path, run: Kvnet, tmp_path: Path) -> None:
    path = tmp_path / "int8.awkg"
    said = run(alice, "mem", "export", "honest", str(path), "--codec", "int8", "--json")
    assert said.status == 0, said
    assert set(said.json) == EXPORT_FIELDS
    with MemoryFile.open(path) as file:
        file.verify()
        assert file.header.quantization == "int8"
        assert file.header.memory.derived_from == pair.memory.id
        assert said.json["memory"] == file.memory_id != pair.memory.id
    assert said.json["needs_basis"] == ""
    wrong = ("mem", "export", "honest", str(tmp_path / "x"), "--codec", "int9")
    assert_refused_both_ways(run, alice, wrong, "request_invalid", 4)


def test_exporting_a_compact_memory_tells_what_decodes_it(
    pair: Pair, alice: Path, run: Kvnet, tmp_path: Path
) -> None:
    shown = prints(run(alice, "mem", "export", "honest", str(tmp_path / "a"), "--codec", "compact"))
    said = run(alice, "mem", "export", "honest", str(tmp_path / "b"), "--codec", "compact", "--json")
    with MemoryFile.open(tmp_path / "a") as file:
        basis = file.header.memory.coding.basis
    assert basis.startswith("sha256:")
    assert said.json["needs_basis"] == basis
    assert basis in shown
    assert "kvnet pack" in shown


@pytest.mark.parametrize("codec", ["int8", "compact"])
def test_a_package_in_a_lossy_codec_says_how_good_it_is(
    pair: Pair, alice: Path, run: Kvnet, tmp_path: Path, codec: str
) -> None:
    path = tmp_path / "notes.zip"
    said = run(alice, "pack", "honest", str(path), "--codec", codec, "--json")
    assert said.status == 0, said
    assert set(said.json) == PACK_FIELDS
    assert said.json["quality_measured"] is True
    with Package.open(path) as package:
        package.verify()
        assert package.manifest.name == "honest"
        (found,) = package.quality.measurements
        assert (found.against, found.measured_by) == (pair.memory.id, "alice")
        assert 0 < found.kl < 0.1
        assert found.tokens_checked > 50
        assert any(file.path.startswith("codec/") for file in package.files) is (codec == "compact")


def test_a_package_of_what_was_not_coded_has_nothing_to_measure(
    pair: Pair, alice: Path, run: Kvnet, tmp_path: Path
) -> None:
    said = run(alice, "pack", "honest", str(tmp_path / "p"), "--json")
    assert (said.json["quality_measured"], said.json["memory"]) == (False, pair.memory.id)


# Taking


@pytest.mark.parametrize("name", ["/dev/zero", "pipe", "folder", "text", "empty", "short.zip", "missing"])
def test_what_is_no_memory_is_refused_at_once_under_its_own_name(
    pair: Pair, alice: Path, run: Kvnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("Dear Sir, " * 1000, encoding="utf-8")
    (tmp_path / "empty").touch()
    (tmp_path / "short.zip").write_bytes(b"PK\3\4")
    monkeypatch.chdir(tmp_path)
    code, status = {
        "missing": ("request_invalid", 4),
        "folder": ("malformed_package", 5),
        "short.zip": ("malformed_package", 5),
    }.get(name, ("malformed_file", 5))
    for said in (run(alice, "mem", "import", name), run(alice, "mem", "import", name, "--json")):
        assert_refused(said, code, status, as_json=bool(said.stdout))
        assert f"{name}: " in said.stderr


def test_altered_contents_are_told_under_the_callers_name(
    pair: Pair, honest: Path, run: Kvnet, tmp_path: Path
) -> None:
    data = bytearray(honest.read_bytes())
    data[-100] ^= 1  # in the last section: only who reads every byte sees it
    honest.write_bytes(data)
    said = run(pair.bob.home.root, "mem", "import", str(honest))
    assert_refused(said, "bad_signature", 5, as_json=False)
    assert f"error: {honest}: " in said.stderr
    assert str(pair.bob.home.root) not in said.stderr


def test_importing_tells_who_signed_it(pair: Pair, honest: Path, run: Kvnet, rambler: Daemon) -> None:
    signer = grouped(pair.alice.node_id)
    assert f"signed by {signer}, this node" in prints(run(pair.alice.home.root, "mem", "import", str(honest)))
    shown = prints(run(pair.bob.home.root, "mem", "import", str(honest)))
    assert f"signed by {signer}, the peer alice" in shown
    assert "cannot use it" not in shown
    with rambler.node() as node:
        for peer in node.peers():  # other tests introduce them
            if peer.added and peer.node_id == pair.alice.node_id:
                node.remove_peer(peer.node_id)
    assert f"signed by {signer}, no peer of this node" in prints(
        run(rambler.home.root, "mem", "import", str(honest))
    )


def test_importing_tells_what_this_node_cannot_do_with_it(
    pair: Pair, compact: Path, run: Kvnet, rambler: Daemon
) -> None:
    with MemoryFile.open(compact) as file:
        basis = file.header.memory.coding.basis
    shown = prints(run(rambler.home.root, "mem", "import", str(compact)))
    assert "this node hosts, cannot use it" in shown
    assert f"takes the calibration {basis}, which is not here" in shown
    found = run(rambler.home.root, "mem", "import", str(compact), "--json").json
    assert (found["tier"], found["needs_basis"]) == ("refused", basis)
    assert found["signed_by"] == pair.alice.node_id


def test_importing_tells_nothing_where_nothing_is_amiss(pair: Pair, compact: Path, run: Kvnet) -> None:
    shown = prints(run(pair.bob.home.root, "mem", "import", str(compact)))
    assert len(shown.splitlines()) == 2
    found = run(pair.bob.home.root, "mem", "import", str(compact), "--json").json
    assert (found["tier"], found["needs_basis"]) == ("exact", "")


# Keeping


@pytest.mark.parametrize(
    "options", [("--compression", "none"), ("--compression", "lz4"), ("--codec", "int8")], ids=" ".join
)
def test_a_level_is_refused_where_there_is_none(alice: Path, run: Kvnet, options: tuple[str, str]) -> None:
    command = ("remember", "A level of nothing.", "--level", "5", *options)
    assert_refused_both_ways(run, alice, command, "request_invalid", 4)


@pytest.mark.parametrize(
    ("options", "compression"),
    [((), "split"), (("--compression", "zstd"), "zstd"), (("--codec", "compact"), "zstd")],
)
def test_a_level_is_kept_where_there_is_one(
    alice: Path, run: Kvnet, tmp_path: Path, options: tuple[str, ...], compression: str
) -> None:
    made = run(alice, "remember", long_text(301), "--level", "5", *options, "--json")
    assert made.status == 0, made
    path = tmp_path / "levelled.awkg"
    prints(run(alice, "mem", "export", made.json["id"], str(path)))
    found = json.loads(prints(run(alice, "inspect", str(path), "--json")))
    assert (found["compression"], found["compression_level"]) == (compression, 5)
    prints(run(alice, "mem", "rm", made.json["id"]))
