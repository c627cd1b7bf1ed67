"""verify, inspect and unpack, which need no daemon and no model; pack, export and import, which do."""

from __future__ import annotations

import io
import json
import math
import random
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from kvnet.files.package import write_package
from kvnet.files.writer import MemoryFileWriter
from kvnet.format.attention import pack_attention
from kvnet.format.awkg import Metadata
from kvnet.identity.keys import grouped
from kvnet.plan import plan_memory
from kvnet.types import AttentionMetadata, Compression, Kind, MemoryId
from tests.builders import MAP_ID, SENDER, make_memory, make_port
from tests.cli.outcomes import Kvnet, json_of, refused
from tests.files.packages import (
    PACKER,
    WHEN,
    Packed,
    change_document,
    make_package,
    make_parts,
    read_folder,
    sign,
    write_folder,
    write_memory,
    write_zip,
)

HEAVY = ("torch", "transformers", "numpy", "safetensors", "bitsandbytes", "kvnetd")
SEQ_LEN = 5
CHUNK_NBYTES = SEQ_LEN * 2 * 4 * 4  # tokens x heads x head_dim x float32
ENTROPIES = (0.0, math.log(SEQ_LEN) / 2, math.log(SEQ_LEN), 0.1)
BOTH = pytest.mark.parametrize("form", ["folder", "zip"])


@pytest.fixture
def packed(tmp_path: Path) -> Packed:
    return make_package(tmp_path)


@pytest.fixture
def attentive(tmp_path: Path) -> Path:
    """A file whose first layer compresses, with attention metadata of four heads and words for people."""
    header = replace(make_memory().header, attention_heads=len(ENTROPIES), content_digest="")
    source, path = random.Random(0), tmp_path / "attentive.awkg"
    with MemoryFileWriter(path, header, Compression.ZSTD) as writer:
        for key in plan_memory(header):
            if key.kind is Kind.ATTENTION:
                told = AttentionMetadata(key.layer_idx, 0.25, ENTROPIES, (4, 0, 1, 2, 3))
                writer.add(pack_attention(told))
            else:
                writer.add(source.randbytes(CHUNK_NBYTES) if key.layer_idx else bytes(CHUNK_NBYTES))
        metadata = Metadata("law", "leases", "en", None, SEQ_LEN)
        writer.finish(SENDER, created_at=WHEN, created_by="alice", metadata=metadata)
    return path


def test_verifying_a_memory_file_tells_who_signed_it(kvnet: Kvnet, tmp_path: Path) -> None:
    path = write_memory(tmp_path / "m.awkg")
    found = json_of(kvnet("verify", path, "--json"))
    assert found == {
        "path": str(path),
        "kind": "memory",
        "memory": make_memory().header.id,
        "memory_signed_by": SENDER.node_id,
        "sections": 6,
        "nbytes": path.stat().st_size,
        "package_id": "",
        "package_signed_by": "",
        "files": 0,
    }
    said = kvnet("verify", path)
    assert grouped(SENDER.node_id) in said.out
    assert "6 sections" in said.out


@BOTH
def test_verifying_a_package_tells_both_signers(kvnet: Kvnet, packed: Packed, form: str) -> None:
    path = getattr(packed, form)
    found = json_of(kvnet("verify", path, "--json"))
    assert found["kind"] == "package"
    assert found["memory_signed_by"] == SENDER.node_id
    assert found["package_signed_by"] == PACKER.node_id
    assert found["package_id"] == json.loads(packed.files["manifest.json"])["packageId"]
    assert found["files"] == len(packed.files) - 1
    said = kvnet("verify", path)
    assert said.status == 0
    assert grouped(SENDER.node_id) in said.out
    assert grouped(PACKER.node_id) in said.out


def test_what_is_wrong_with_a_file_is_its_exit_status(kvnet: Kvnet, tmp_path: Path) -> None:
    path = write_memory(tmp_path / "m.awkg")
    good = path.read_bytes()
    for data, code in (
        (good[:-70] + bytes([good[-70] ^ 1]) + good[-69:], "bad_signature"),
        (good[:-1] + bytes([good[-1] ^ 1]), "bad_signature"),
        (b"AWKX" + good[4:], "malformed_file"),
        (good[:4] + b"\4" + good[5:], "unsupported_format"),
        (b"", "malformed_file"),
    ):
        path.write_bytes(data)
        refused(kvnet("verify", path), code, 5)
        said = kvnet("verify", path, "--json")
        assert json.loads(said.out)["error"]["code"] == code
    refused(kvnet("verify", tmp_path / "missing"), "request_invalid", 4)
    refused(kvnet("verify", tmp_path), "malformed_package", 5)


@BOTH
def test_what_is_wrong_with_a_package_is_its_exit_status(
    kvnet: Kvnet, packed: Packed, tmp_path: Path, form: str
) -> None:
    files = change_document(packed.files, "manifest.json", tokenCount=9)
    altered = packed.files | {"alignments/to-other.bin": b"V" * 1000}
    write = write_folder if form == "folder" else write_zip
    refused(kvnet("verify", write(files, tmp_path / "one")), "malformed_package", 5)
    refused(kvnet("verify", write(altered, tmp_path / "two")), "bad_signature", 5)
    refused(kvnet("unpack", tmp_path / "two", tmp_path / "out"), "bad_signature", 5)
    assert not (tmp_path / "out").exists()


def test_inspecting_tells_geometry_signer_and_cost(kvnet: Kvnet, attentive: Path) -> None:
    found = json_of(kvnet("inspect", attentive, "--json"))
    assert (found["num_layers"], found["num_kv_heads"], found["head_dim"], found["tokens"]) == (3, 2, 4, 5)
    assert (found["dtype"], found["quantization"], found["compression"]) == ("float32", "none", "zstd")
    assert (found["signed_by"], found["created_at"], found["created_by"]) == (SENDER.node_id, WHEN, "alice")
    assert found["metadata"]["topic"] == "leases"
    assert found["raw_nbytes"] == 6 * CHUNK_NBYTES
    assert found["file_nbytes"] == attentive.stat().st_size
    assert found["package"] is None
    assert found["verified"] is False
    layers = found["layers"]
    assert [layer["layer_idx"] for layer in layers] == [0, 1, 2]
    assert 0 < layers[0]["key_nbytes"] < CHUNK_NBYTES
    assert [layer["value_nbytes"] for layer in layers[1:]] == [CHUNK_NBYTES] * 2
    wire_nbytes = sum(layer["key_nbytes"] + layer["value_nbytes"] for layer in layers)
    assert found["wire_nbytes"] == wire_nbytes
    assert found["ratio"] == found["raw_nbytes"] / wire_nbytes
    assert layers[1]["entropy_per_head"] == pytest.approx(ENTROPIES)
    assert layers[1]["average_attention_score"] == 0.25


def test_inspecting_draws_each_layer(kvnet: Kvnet, attentive: Path) -> None:
    said = kvnet("inspect", attentive)
    assert said.status == 0
    for fact in (
        "3 layers of [1, 2, 5, 4] float32",
        grouped(SENDER.node_id),
        WHEN,
        "leases",
        "alice",
        "zstd",
    ):
        assert fact in said.out
    header, *layers, blank, last = said.out.splitlines()[-6:]
    assert (blank, last) == ("", f"contents not checked; `kvnet verify {attentive}` reads every byte")
    assert header.split()[:3] == ["layer", "keys", "values"]
    assert [line.split()[0] for line in layers] == ["0", "1", "2"]
    full, little = layers[1].count("█"), layers[0].count("█")
    assert full > 20 > little
    assert layers[1].endswith("▁▅█▁")  # no entropy, half of it, all of it, next to none


def test_coordinates_are_inspected_without_layers_and_with_their_map(kvnet: Kvnet, tmp_path: Path) -> None:
    coding, _ = make_port()
    path = write_memory(tmp_path / "m.awkg", make_memory(coding=coding))
    found = json_of(kvnet("inspect", path, "--json"))
    assert (found["quantization"], found["map"], found["layers"]) == ("port8", MAP_ID, [])
    assert (found["coding"]["basis"], found["wire_nbytes"] > 0) == (coding.basis, True)
    said = kvnet("inspect", path)
    assert (said.status, MAP_ID in said.out, "values" in said.out.splitlines()[-1]) == (0, True, False)
    assert json_of(kvnet("verify", path, "--json"))["sections"] == 1


def test_a_memory_without_attention_metadata_has_no_entropies(kvnet: Kvnet, tmp_path: Path) -> None:
    found = json_of(kvnet("inspect", write_memory(tmp_path / "m.awkg"), "--json"))
    assert found["attention_heads"] == 0
    assert [layer["entropy_per_head"] for layer in found["layers"]] == [[], [], []]
    assert found["layers"][0]["average_attention_score"] is None


def test_a_terminal_without_blocks_gets_plain_characters(
    kvnet: Kvnet, attentive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", plain)
    kvnet("inspect", attentive)
    plain.flush()
    drawn = plain.buffer.getvalue()  # type: ignore[attr-defined]
    assert b"##########" in drawn
    assert drawn.isascii()


@BOTH
def test_inspecting_a_package_shows_its_documents(kvnet: Kvnet, packed: Packed, form: str) -> None:
    path = getattr(packed, form)
    found = json_of(kvnet("inspect", path, "--json"))
    package = found["package"]
    assert found["signed_by"] == SENDER.node_id
    assert package["signed_by"] == PACKER.node_id
    assert package["manifest"] == json.loads(packed.files["manifest.json"])
    assert package["provenance"] == json.loads(packed.files["provenance.json"])
    assert package["quality"] == json.loads(packed.files["quality-report.json"])
    assert package["preview"] == json.loads(packed.files["preview.json"])
    assert {file["path"] for file in package["files"]} == set(packed.files) - {"signature.sig"}
    said = kvnet("inspect", path)
    shown = ("notes", "CC0-1.0", "credits", "minutes of a meeting", "prefill", "KL 0.002 nats", "99.0%")
    for fact in (*shown, grouped(SENDER.node_id), grouped(PACKER.node_id)):
        assert fact in said.out


def test_a_package_that_nobody_measured_says_so(kvnet: Kvnet, tmp_path: Path) -> None:
    parts = make_parts(write_memory(tmp_path / "m.awkg"))
    documents = replace(
        parts.documents,
        manifest=replace(parts.documents.manifest, quality=None),
        quality=replace(parts.documents.quality, measurements=()),
    )
    write_package(tmp_path / "p", replace(parts, documents=documents), sign)
    assert "not measured" in kvnet("inspect", tmp_path / "p").out


def test_words_that_would_drive_a_terminal_are_shown_tame(
    kvnet: Kvnet, packed: Packed, tmp_path: Path
) -> None:
    files = change_document(packed.files, "manifest.json", name="\x1b[2Jgone", tags=["\x07"], createdBy="\r")
    said = kvnet("inspect", write_folder(files, tmp_path / "bad"))
    assert said.status == 0
    assert "?[2Jgone" in said.out
    assert not any(char in said.out for char in "\x1b\x07\r")


@pytest.mark.parametrize("existing", [False, True])
def test_unpacking_gives_the_files_of_the_package(
    kvnet: Kvnet, packed: Packed, tmp_path: Path, existing: bool
) -> None:
    target = tmp_path / "out"
    if existing:
        target.mkdir()
    done = json_of(kvnet("unpack", packed.zip, target, "--json"))
    assert read_folder(target) == packed.files
    assert done == {
        "package_id": json.loads(packed.files["manifest.json"])["packageId"],
        "path": str(target),
        "memory": MemoryId(make_memory().header.id),
        "signed_by": PACKER.node_id,
        "nbytes": sum(len(content) for path, content in packed.files.items() if path != "signature.sig"),
        "alignments": done["alignments"],
    }
    (carried,) = done["alignments"]
    assert (carried["path"], carried["id"]) == ("alignments/to-other.bin", "")
    assert carried["problem"].startswith("no daemon answers")
    refused(kvnet("unpack", packed.zip, target), "request_invalid", 4)


def test_unpacking_says_what_it_did(kvnet: Kvnet, packed: Packed, tmp_path: Path) -> None:
    said = kvnet("unpack", packed.folder, tmp_path / "out")
    assert said.status == 0
    assert "6 files" in said.out
    assert "verified" in said.out


@pytest.mark.parametrize(
    "command",
    [("pack", "m", "p.zip"), ("mem", "export", "m", "m.awkg"), ("mem", "import", "m.awkg")],
    ids=lambda command: command[-2],
)
def test_what_needs_the_daemon_says_so(kvnet: Kvnet, command: tuple[str, ...]) -> None:
    refused(kvnet(*command), "not_running", 3)


_ALONE = f"""
import sys
from pathlib import Path
from kvnet.cli import files
path, zipped, target = map(Path, sys.argv[1:])
files.verify(path); files.inspect(path); files.verify(zipped); files.inspect(zipped)
files.unpack(zipped, target)
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""


def test_files_are_looked_at_without_model_code(packed: Packed, tmp_path: Path) -> None:
    arguments = [str(tmp_path / "m.awkg"), str(packed.zip), str(tmp_path / "out")]
    said = subprocess.run(
        [sys.executable, "-c", _ALONE, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    assert said.stderr.strip() == "[]"
    assert read_folder(tmp_path / "out") == packed.files


@pytest.mark.parametrize("command", ["demo", "verify"])
def test_a_machine_without_a_temporary_folder_is_told_what_to_set(
    kvnet: Kvnet, packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    arguments, code, status = {
        "demo": ((), "operator", 3),
        "verify": ((packed.zip,), "request_invalid", 4),
    }[command]
    said = kvnet(command, *arguments)
    refused(said, code, status)
    assert "TMPDIR" in said.err
