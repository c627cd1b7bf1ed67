"""Maps and ports as files: what is written is read, and every broken rule is one sentence."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnet.alignment import MapManifest, PortManifest, intake_of
from kvnet.errors import BadSignature, MalformedFile, RequestError
from kvnet.files.alignments import (
    MAX_ALIGNMENT_NBYTES,
    AlignmentHead,
    TensorBytes,
    VerifiedAlignment,
    read_alignment,
    read_alignment_file,
    read_head_file,
    write_alignment,
)
from kvnet.types import DType, Rope, canonical_json, sha256_hex, to_plain
from tests.builders import SENDER, STRANGER, make_geometry
from tests.files.alignment_files import (
    data_of,
    header_of,
    make_map,
    make_map_file,
    make_port,
    make_port_file,
    make_tensor,
    make_tensors,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "map_v1.safetensors"
GOLDEN_PORT = GOLDEN.with_name("port_v1.safetensors")
MAP = make_map_file()
PORT = make_port_file()
PORT_ID = read_alignment(PORT).manifest.id


# What is written is read


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    "manifest",
    [
        make_map(),
        make_map(far_window=(-4, -2), far_layers=(0,)),
        make_map(port=PORT_ID),
        make_map(state_layers=(1, 2), hidden_size=7),
        make_port(),
        make_port(state_layers=(2,), hidden_size=65536),
    ],
    ids=["map", "far", "z", "states", "port", "port into states"],
)
def test_what_is_written_is_read(manifest: MapManifest | PortManifest, half: bool) -> None:
    tensors = make_tensors(manifest, half=half)
    encoded = write_alignment(manifest, tensors, SENDER)
    found = read_alignment(encoded)
    assert found.manifest == replace(manifest, tensors_digest=found.manifest.tensors_digest)
    assert found.signer == SENDER.node_id
    assert found.manifest.id.startswith(f"{found.kind}_")
    assert found.tables.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found.tensor(name) == tensor
    assert found.encoded == encoded
    assert found.digest == sha256_hex(encoded)


@given(
    offset=st.integers(-64, 64),
    more=st.integers(0, 3),
    num_far=st.integers(0, 3),
    rank=st.integers(1, 5),
    num_layers=st.integers(1, 3),
    closing=st.text(max_size=20),
    number=st.floats(0, 1e6),
    end=st.sampled_from(["keys and values", "port", "states"]),
    has_anchor=st.booleans(),
    known_width=st.integers(0, 3),
    seed=st.integers(0, 9),
)
@settings(max_examples=40)
def test_any_map_comes_back_as_it_was(
    offset: int,
    more: int,
    num_far: int,
    rank: int,
    num_layers: int,
    closing: str,
    number: float,
    end: str,
    has_anchor: bool,
    known_width: int,
    seed: int,
) -> None:
    low = min(offset, 64 - more)
    window = (low, low + more)
    # Beside the near window, on the side that has room for it.
    far_low = low - num_far if low > 0 else low + more + 1
    far_window = (far_low, far_low + num_far - 1) if num_far else None
    far_layers = tuple(range(num_layers)) if num_far else ()
    source_geometry = make_geometry(num_layers=num_layers, num_kv_heads=1, rope=Rope("x", 1e4, 0.5, {"n": 1}))
    manifest = make_map(
        window=window,
        far_window=far_window,
        far_layers=far_layers,
        source_geometry=source_geometry,
        source_layers=(num_layers - 1,),
        closing=closing,
        relative_lambda=number,
        port=PORT_ID if end == "port" else "",
        state_layers=(1,) if end == "states" else (),
        hidden_size=rank if end == "states" else 0,
    )
    rows = (more + 1 + num_far * num_layers) * 8  # near, of one layer
    out = rank if end == "port" else intake_of(manifest).width
    source = random.Random(seed)
    tensors = {
        "encoder": make_tensor((rows, out), source, half=seed % 2 == 0),
        "encoder_bias": make_tensor((out,), source),
    }
    if has_anchor:
        tensors |= {"anchor": make_tensor((rows, 1), source), "anchor_bias": make_tensor((1,), source)}
    if known_width:
        tensors |= {
            "known_mean": make_tensor((out,), source),
            "known_scale": make_tensor((out, known_width), source, half=seed % 3 == 0),
            "known_bound": make_tensor((1,), source),
        }
    found = read_alignment(write_alignment(manifest, tensors, SENDER))
    assert found.manifest == replace(manifest, tensors_digest=found.manifest.tensors_digest)
    assert {name: found.tensor(name) for name in found.tables} == tensors


@pytest.mark.parametrize("half", [False, True])
def test_safetensors_loads_the_same_numbers(half: bool) -> None:
    tensors = make_tensors(make_map(), half=half)
    loaded = safetensors.torch.load(write_alignment(make_map(), tensors, SENDER))
    assert loaded.keys() == tensors.keys()
    for name, (dtype, shape, data) in tensors.items():
        found = loaded[name].numpy()
        assert found.shape == shape
        assert found.dtype == dtype.value
        assert np.array_equal(found.ravel(), np.frombuffer(data, dtype=found.dtype))


def test_each_tensor_lies_where_its_items_may() -> None:
    encoded = write_alignment(make_port(rank=1), make_tensors(make_port(rank=1), half=True), SENDER)
    start = len(encoded) - len(data_of(encoded))
    for entry in read_alignment(encoded).tables.values():
        assert (start + entry.start) % entry.dtype.itemsize == 0


def test_the_id_covers_the_manifest_and_every_number() -> None:
    ids = [
        read_alignment(make_map_file(**changes)).manifest.id
        for changes in ({}, {"seed": 1}, {"closing": "x"}, {"key": STRANGER})
    ]
    assert len(set(ids)) == 3
    assert ids[0] == ids[3]  # who signed it is no part of what it is


def test_the_id_is_that_of_the_manifest_as_it_stands_in_the_file() -> None:
    text = header_of(MAP)["__metadata__"]["manifest"]
    assert text.encode() == canonical_json(to_plain(read_alignment(MAP).manifest))


def test_golden_map_is_the_one_it_always_was() -> None:
    encoded = GOLDEN.read_bytes()
    found = read_alignment(encoded)
    assert found.manifest.id == "map_xk7yjmlrt6wpvsfewezvbfi2nsszjpgblofnqoohcdtmkmma6tdq"
    assert found.signer == SENDER.node_id
    assert isinstance(found.manifest, MapManifest)
    assert (found.manifest.far_window, found.manifest.far_layers) == ((-4, -2), (0,))
    assert [(one.use, one.admitted) for one in found.manifest.gate.uses] == [
        ("port4", False),
        ("unclosed", True),
        ("unclosed+port4", False),
    ]
    tensors = {name: found.tensor(name) for name in found.tables}
    assert write_alignment(found.manifest, tensors, SENDER) == encoded
    assert struct.unpack("<f", found.tensor("anchor_bias").data) == (1.96875,)
    assert struct.unpack("<f", found.tensor("known_bound").data) == (4.25,)
    assert (found.tensor("known_mean").shape, found.tensor("known_scale").shape) == ((3,), (3, 2))


def test_golden_port_is_the_one_it_always_was() -> None:
    encoded = GOLDEN_PORT.read_bytes()
    found = read_alignment(encoded)
    assert found.manifest.id == "port_hwvxgzm5v2j6rnmslkpkqsbh33tqffdmcapxnznwkkgdgxqo2zoq"
    assert found.signer == SENDER.node_id
    assert isinstance(found.manifest, PortManifest)
    assert (found.manifest.state_layers, found.manifest.hidden_size) == ((1, 2), 6)
    assert found.tensor("mean").shape == (2 * 2 * 4 + 6 + 6,)
    tensors = {name: found.tensor(name) for name in found.tables}
    assert write_alignment(found.manifest, tensors, SENDER) == encoded


def test_nobody_else_makes_a_verified_alignment() -> None:
    found = read_alignment(MAP)
    with pytest.raises(TypeError, match="made by read_alignment"):
        VerifiedAlignment(found.head, found.encoded, object())
    with pytest.raises(TypeError, match="made by read_head"):
        AlignmentHead(found.manifest, found.signer, found.tables, 8, object())


# Writers' mistakes


WRONG_TENSORS: dict[str, Callable[[dict[str, TensorBytes]], Any]] = {
    "one missing": lambda t: t.pop("encoder_bias"),
    "one too many": lambda t: t.update(other=t["encoder"]),
    "another shape": lambda t: t.update(encoder_bias=t["encoder_bias"]._replace(shape=(1, 48))),
    "too few bytes": lambda t: t.update(encoder=t["encoder"]._replace(data=b"\0" * 8)),
    "bfloat16": lambda t: t.update(encoder=t["encoder"]._replace(dtype=DType.BFLOAT16)),
}


@pytest.mark.parametrize("change", WRONG_TENSORS.values(), ids=WRONG_TENSORS)
def test_what_no_reader_takes_is_not_written(change: Callable[[dict[str, TensorBytes]], Any]) -> None:
    tensors = make_tensors(make_map())
    change(tensors)
    with pytest.raises(ValueError, match="tensor"):
        write_alignment(make_map(), tensors, SENDER)


def test_a_manifest_of_other_numbers_is_not_written() -> None:
    with pytest.raises(ValueError, match="not those of the manifest"):
        write_alignment(make_map(tensors_digest=sha256_hex(b"")), make_tensors(make_map()), SENDER)


# Files on disk


def test_a_file_and_its_head_are_read_from_disk(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(MAP)
    assert read_alignment_file(path).manifest == read_head_file(path).manifest == read_alignment(MAP).manifest


def test_a_head_is_read_without_the_numbers(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(MAP[:-1] + bytes([MAP[-1] ^ 1]))
    assert read_head_file(path).signer == SENDER.node_id
    with pytest.raises(BadSignature, match="its numbers are not those"):
        read_alignment_file(path)


def test_what_is_no_file_is_refused_without_opening_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(MalformedFile, match="not a regular file"):
            read_alignment_file(path)
    with pytest.raises(RequestError, match="cannot be read"):
        read_alignment_file(tmp_path / "missing")
    (tmp_path / "empty").touch()
    with pytest.raises(MalformedFile, match="0 bytes"):
        read_head_file(tmp_path / "empty")


def test_a_huge_file_is_refused_by_its_length(tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    with path.open("wb") as file:
        file.truncate(MAX_ALIGNMENT_NBYTES + 1)
    with pytest.raises(MalformedFile, match="allowed are 8 to"):
        read_alignment_file(path)
