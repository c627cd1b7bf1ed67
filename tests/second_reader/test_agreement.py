"""kvnet and the reader that was written from FORMAT.md alone read the same thing out of the same bytes."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kvnet.files.reader import MemoryFile
from tests.hostile.fuzz_inputs import mutate, scrambler, seeds
from tests.hostile.kvnet_verdict import kvnet_verdict, read_file, read_package
from tests.second_reader import awkg_reader, package_reader
from tests.second_reader.awkg_builder import random_file
from tests.second_reader.header import memory_id
from tests.second_reader.package_builder import random_package, write_folder, zip_bytes
from tests.second_reader.strict import Refused

GOLDEN = Path(__file__).parents[1] / "golden" / "memory_v3.awkg"
NUM_FILES = 1000
NUM_PACKAGES = 100
NUM_CHANGED = 2000
# Half a unit of the last place may go either way at a tie, and float32 sums in any order.
RELATIVE_ERROR = {"float32": 2e-6, "float16": 2**-10, "bfloat16": 2**-7}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterable[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _agree(path: Path, basis: bytes | None) -> awkg_reader.Memory:
    """Read by both; every number, all attention metadata and the memory's id must be the same."""
    ours = awkg_reader.read(path, basis)
    layers, attention = read_file(path, basis)
    _compare(ours, layers, attention)
    with MemoryFile.open(path) as file:
        assert memory_id(ours.header) == file.memory_id
    return ours


def _compare(ours: awkg_reader.Memory, layers: tuple[object, ...], attention: tuple[object, ...]) -> None:
    exact = ours.header["coding"]["scheme"] == "raw"
    assert len(layers) == len(ours.keys)
    for i, layer in enumerate(layers):
        theirs = {kind: getattr(layer, kind)[0].float().numpy() for kind in ("keys", "values")}
        turned = ours.header["keySpace"] == "content"
        _compare_numbers(ours.keys[i], theirs["keys"], ours.header["dtype"], exact=exact and not turned)
        _compare_numbers(ours.values[i], theirs["values"], ours.header["dtype"], exact=exact)
    names = ("layer_index", "average_attention_score", "entropy_per_head", "important_token_indices")
    found = [tuple(getattr(entry, name) for name in names) for entry in attention]
    wanted = [(a.layer, a.average_score, a.entropy_per_head, a.important) for a in ours.attention]
    assert found == wanted


def _compare_numbers(
    ours: NDArray[np.float32], theirs: NDArray[np.float32], dtype: str, *, exact: bool
) -> None:
    """[num_kv_heads, seq_len, head_dim], to the rounding of the dtype at the size of each token's vector."""
    assert ours.shape == theirs.shape
    if exact:
        assert ours.tobytes() == theirs.tobytes()
    else:
        peak = np.abs(ours).max(axis=(0, -1), keepdims=True)  # a transform sums over all heads
        assert (np.abs(ours - theirs) <= RELATIVE_ERROR[dtype] * peak).all()


def test_both_readers_say_the_same_of_the_golden_file() -> None:
    data = GOLDEN.read_bytes()
    header, _ = awkg_reader.read_head(data)
    with MemoryFile.open(GOLDEN) as file:
        file.verify()
        assert memory_id(header) == file.memory_id
        theirs = [bytes(file.raw(section.key.index)) for section in file.header.sections]
    assert awkg_reader.read_sections(data) == theirs
    assert _verdict(GOLDEN) == kvnet_verdict(GOLDEN)


def _verdict(path: Path) -> str:
    try:
        _agree(path, None)
    except Refused as exc:
        return exc.code
    return "ok"


def test_both_readers_read_a_thousand_random_files_alike(tmp_path: Path) -> None:
    path = tmp_path / "random.awkg"
    seen = set()
    for seed in range(NUM_FILES):
        data, basis = random_file(seed)
        path.write_bytes(data)
        memory = _agree(path, basis)
        codecs = {section["codec"] for section in memory.header["sections"]}
        seen |= {(memory.header["coding"]["scheme"], codec) for codec in codecs}
        seen.add((memory.header["dtype"], memory.header["keySpace"]))
        if len(memory.header["sections"]) > memory.header["numLayers"] * 3:
            seen.add(("several chunks", "a layer"))
    codecs_of = {
        "raw": ("none", "lz4", "zstd", "split"),
        "grouped": ("none", "lz4"),
        "transform": ("none", "lz4"),
    }
    assert {(scheme, codec) for scheme, codecs in codecs_of.items() for codec in codecs} <= seen
    dtypes = ("float32", "float16", "bfloat16")
    assert {(dtype, space) for dtype in dtypes for space in ("rotated", "content")} <= seen
    assert ("several chunks", "a layer") in seen


def test_both_readers_read_random_packages_alike_as_folder_and_zip(tmp_path: Path) -> None:
    for seed in range(1, NUM_PACKAGES + 1):
        files = random_package(seed)
        folder, archive = tmp_path / str(seed), tmp_path / f"{seed}.zip"
        write_folder(files, folder)
        archive.write_bytes(zip_bytes(files))
        for path in (folder, archive):
            layers, attention = read_package(path)
            _compare(package_reader.read(path).memory, layers, attention)


def test_both_readers_give_the_same_code_for_packages_that_were_changed_and_signed_again(
    tmp_path: Path,
) -> None:
    rng = random.Random(3)
    path = tmp_path / "changed.zip"
    starts, scramble = seeds("package"), scrambler(rng)
    found = set()
    for _ in range(NUM_CHANGED):
        path.write_bytes(mutate("package", rng.choice(starts), 1 << 16, rng, scramble))
        verdict = _verdict_of_package(path)
        assert verdict == kvnet_verdict(path)
        found.add(verdict)
    assert {"ok", "malformed_package", "bad_signature", "malformed_file"} <= found


def _verdict_of_package(path: Path) -> str:
    try:
        package_reader.read(path)
    except Refused as exc:
        return exc.code
    return "ok"


def test_the_second_reader_and_its_builder_import_nothing_of_kvnet() -> None:
    folder = Path(__file__).parent
    for path in folder.glob("*.py"):
        if path.name.startswith("test_"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in named if name.split(".")[0] in ("kvnet", "kvnetd", "torch")], path
