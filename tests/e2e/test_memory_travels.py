"""Memories as files and packages between real nodes: one file, one signature, whoever passes it on."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvnet.client import Node
from kvnet.errors import BadSignature, KvnetError, MalformedFile, UnknownBasis
from kvnet.files.package import Package
from kvnet.files.reader import MemoryFile
from tests.e2e.daemons import Daemon, Pair, kvnet, long_text, questions, reply
from tests.e2e.outcomes import json_of

pytestmark = pytest.mark.usefixtures("pair_goes_on")

TEXT, QUESTION = questions(1, seed=13)[0]


@pytest.fixture(scope="module")
def carol(pair: Pair, homes: Path) -> Iterator[Daemon]:
    """A third node with the same model, that neither of the others knows."""
    daemon = Daemon(homes / "carol", "carol")
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.stop()


@pytest.fixture
def nodes(pair: Pair, carol: Daemon) -> Iterator[tuple[Node, Node, Node]]:
    """Connections to alice, bob and carol."""
    with pair.alice.node() as alice, pair.bob.node() as bob, carol.node() as third:
        yield alice, bob, third


def test_a_received_memory_is_exported_under_its_makers_signature_and_answers_on_a_third_node(
    nodes: tuple[Node, Node, Node], pair: Pair, tmp_path: Path
) -> None:
    alice, bob, carol = nodes
    memory = alice.remember(TEXT, domain="people", topic="facts", language="en")
    report = alice.send(memory, "bob")
    assert report.codec == "int8"
    paths = [tmp_path / f"{name}.awkg" for name in ("alice", "bob", "carol")]
    at_alice = alice.export_memory(report.memory, paths[0])
    at_bob = bob.export_memory(report.memory, paths[1])
    assert at_alice.signed_by == at_bob.signed_by == pair.alice.node_id
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with MemoryFile.open(paths[1]) as file:
        file.verify()
        assert file.memory_id == report.memory
        told = file.header.metadata
        assert (told.domain, told.topic, told.language_hint) == ("people", "facts", "en")
    found = carol.import_memory(paths[1])
    assert (found.id, found.origin, found.codec) == (report.memory, pair.alice.node_id, "int8")
    answers = [node.ask(QUESTION.prompt, report.memory) for node in (bob, carol)]
    assert reply(answers[0]) == reply(answers[1])
    assert answers[1].text.strip() == QUESTION.expected
    assert answers[1].kv.reused_tokens == memory.tokens
    carol.export_memory(found, paths[2])
    assert paths[2].read_bytes() == paths[0].read_bytes()


@pytest.mark.parametrize("codec", ["exact", "k8v4", "int4", "compact"])
def test_both_sides_export_the_same_bytes_in_every_codec(
    nodes: tuple[Node, Node, Node], tmp_path: Path, codec: str
) -> None:
    alice, bob, _ = nodes
    report = alice.send(alice.remember(long_text(110)), "bob", codec=codec)
    files = []
    for name, node in (("alice", alice), ("bob", bob)):
        node.export_memory(report.memory, tmp_path / name)
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]


def test_an_import_of_what_is_here_changes_nothing(nodes: tuple[Node, Node, Node], tmp_path: Path) -> None:
    alice, _, _ = nodes
    memory = alice.remember(long_text(111), name="mine")
    alice.export_memory("mine", tmp_path / "mine.awkg")
    assert alice.import_memory(tmp_path / "mine.awkg") == memory


def test_an_altered_file_is_refused_and_nothing_of_it_stays(
    nodes: tuple[Node, Node, Node], carol: Daemon, tmp_path: Path
) -> None:
    alice, _, third = nodes
    path = tmp_path / "memory.awkg"
    memory = alice.remember(long_text(112))
    alice.export_memory(memory, path)
    content = path.read_bytes()
    before = sorted(entry.name for entry in (carol.home.store / "memories").iterdir())
    for altered, wanted in (
        (content[:-1], (MalformedFile, BadSignature)),
        (content[: len(content) // 2], (MalformedFile, BadSignature)),
        (content + b"x", (MalformedFile, BadSignature)),
        (content[:-2000] + bytes([content[-2000] ^ 1]) + content[-1999:], (BadSignature,)),
        (content[:40] + bytes([content[40] ^ 1]) + content[41:], (MalformedFile, BadSignature)),
        (b"", (MalformedFile,)),
    ):
        path.write_bytes(altered)
        with pytest.raises(KvnetError) as refused:
            third.import_memory(path)
        assert isinstance(refused.value, wanted)
        assert sorted(entry.name for entry in (carol.home.store / "memories").iterdir()) == before


@pytest.fixture(scope="module")
def compact(carol: Daemon) -> str:
    """carol's compact memory, under a calibration that no other node has."""
    with carol.node() as node:
        node.calibrate(*(long_text(seed) for seed in range(3)))
        return node.remember(TEXT, codec="compact", name="small").id


def test_a_compact_memory_without_its_basis_cannot_be_asked(
    nodes: tuple[Node, Node, Node], compact: str, tmp_path: Path
) -> None:
    _, bob, carol = nodes
    path = tmp_path / "small.awkg"
    carol.export_memory(compact, path)
    assert bob.import_memory(path).codec == "compact"
    with pytest.raises(UnknownBasis, match="import the memory's package"):
        bob.ask(QUESTION.prompt, compact)
    bob.forget(compact)


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_a_package_brings_the_basis_along(
    nodes: tuple[Node, Node, Node], carol: Daemon, compact: str, tmp_path: Path, form: str
) -> None:
    alice, bob, third = nodes
    receiver = alice if form == "folder" else bob
    path = tmp_path / ("small" if form == "folder" else "small.zip")
    report = third.pack("small", path, description="facts", license="CC0-1.0", tags=("people",))
    assert (report.memory, report.quality_measured) == (compact, False)  # its source was never kept
    with Package.open(path) as package:
        package.verify()
        assert package.manifest.package_id == report.package_id
        assert (package.manifest.name, package.manifest.license) == ("small", "CC0-1.0")
    found = receiver.import_memory(path)
    assert (found.id, found.codec, found.origin) == (compact, "compact", carol.node_id)
    answers = [node.ask(QUESTION.prompt, compact) for node in (third, receiver)]
    assert reply(answers[0]) == reply(answers[1])
    assert answers[1].text.strip() == QUESTION.expected


def test_a_package_is_unpacked_and_its_memory_imported_by_the_cli(
    nodes: tuple[Node, Node, Node], pair: Pair, carol: Daemon, compact: str, tmp_path: Path
) -> None:
    zipped, folder = tmp_path / "small.zip", tmp_path / "small"
    packed = json_of(carol.home.root, "pack", "small", str(zipped))
    assert packed["memory"] == compact
    unpacked = json_of(pair.bob.home.root, "unpack", str(zipped), str(folder))
    assert (unpacked["memory"], unpacked["package_id"]) == (compact, packed["package_id"])
    assert (folder / "codec" / "basis.safetensors").is_file()
    assert json_of(pair.bob.home.root, "verify", str(folder))["memory_signed_by"] == carol.node_id
    imported = json_of(pair.bob.home.root, "mem", "import", str(folder))
    assert imported["id"] == compact
    said = kvnet(pair.bob.home.root, "ask", QUESTION.prompt, "--memory", compact)
    assert said.stdout.strip() == QUESTION.expected


def test_a_package_of_a_lossy_memory_tells_what_was_measured_and_how_it_was_made(
    nodes: tuple[Node, Node, Node], pair: Pair, tmp_path: Path
) -> None:
    alice, _, _ = nodes
    source = alice.remember(long_text(113))
    coded = alice.send(source, "bob", codec="int4").memory
    report = alice.pack(coded, tmp_path / "coded.zip")
    assert report.quality_measured
    with Package.open(tmp_path / "coded.zip") as package:
        package.verify()
        (measured,) = package.quality.measurements
        assert (measured.against, measured.measured_by) == (source.id, "alice")
        assert 0 <= measured.kl < 0.1
        assert 0.8 <= measured.top1 <= 1
        steps = [step.step for step in package.provenance.processing_steps]
        assert steps == ["inference", "cache-extraction", "encoding", "quality-assessment"]
        assert package.provenance.creation_method == "direct-extraction"
        (text,) = package.provenance.source_inputs
        assert text.token_count == source.tokens
    names = zipfile.ZipFile(tmp_path / "coded.zip").namelist()
    assert "kv-cache.awkg" in names
    assert "codec/basis.safetensors" not in names


def test_a_package_of_a_received_memory_measures_nothing_and_says_that_it_came(
    nodes: tuple[Node, Node, Node], pair: Pair, tmp_path: Path
) -> None:
    alice, bob, _ = nodes
    coded = alice.send(alice.remember(long_text(114)), "bob").memory
    assert not bob.pack(coded, tmp_path / "coded").quality_measured
    with Package.open(tmp_path / "coded") as package:
        package.verify()
        assert package.provenance.creation_method == "received"
        assert package.quality.measurements == ()
        with package.open_memory() as file:
            assert file.header.signed_by == pair.alice.node_id


def test_an_altered_package_is_refused(nodes: tuple[Node, Node, Node], tmp_path: Path) -> None:
    alice, bob, _ = nodes
    memory = alice.remember(long_text(115))
    alice.pack(memory, tmp_path / "p")
    manifest = tmp_path / "p" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"description":""', b'"description":"x"'))
    with pytest.raises(KvnetError) as refused:
        bob.import_memory(tmp_path / "p")
    assert refused.value.code in ("bad_signature", "malformed_package")
    assert memory.id not in {one.id for one in bob.memories(all=True)}
