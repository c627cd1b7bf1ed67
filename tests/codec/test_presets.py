"""Codings by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kvnet.codec.presets import (
    DEFAULT_PRESET,
    PRESETS,
    compose_preset,
    find_preset,
    fit_groups,
    preset_name,
    with_basis,
)
from kvnet.errors import RequestError
from kvnet.plan import check_coding
from kvnet.types import Coding, Compression, DType, KeySpace, MemoryHeader, Scheme
from tests.builders import make_fingerprint, make_port
from tests.codec.strategies import make_geometry


def test_every_preset_is_a_coding_of_the_format() -> None:
    geometry = make_geometry(dtype=DType.FLOAT16)
    for preset in PRESETS.values():
        coding = preset.coding
        if preset.needs_basis:
            coding = with_basis(coding, "sha256:" + "0" * 64, 100)
        key_space = KeySpace.ROTATED if coding.scheme is Scheme.RAW else KeySpace.CONTENT
        header = MemoryHeader(make_fingerprint(), geometry, 5, 0, key_space, "", "", coding=coding)
        assert check_coding(header) == ""


@pytest.mark.parametrize("name", PRESETS)
def test_coding_is_named_by_its_preset_whatever_its_basis_and_pruned_heads(name: str) -> None:
    coding = PRESETS[name].coding
    assert preset_name(coding) == name
    pruned = Coding(**{**{f: getattr(coding, f) for f in coding.__slots__}, "pruned_heads": ((0, 1),)})
    assert preset_name(pruned) == name


def test_other_codings_are_named_by_their_parts() -> None:
    assert preset_name(Coding(Scheme.GROUPED, 4, 8, 32, hadamard=True)) == "k4v8g32-hadamard"
    assert preset_name(Coding(Scheme.TRANSFORM, sink_tokens=9)) == "transform"
    for bits in (4, 8):
        assert preset_name(make_port(bits=bits)[0]) == f"port{bits}"


def test_default_is_int8() -> None:
    assert find_preset(DEFAULT_PRESET).coding == Coding(Scheme.GROUPED, 8, 8, 64)


def test_unknown_preset_is_refused_with_those_that_exist() -> None:
    with pytest.raises(RequestError, match=r"exact, int8.*auto"):
        find_preset("int3")


@pytest.mark.parametrize(
    ("parts", "scheme", "compression"),
    [
        (("none", "none", 0), Scheme.RAW, Compression.NONE),
        (("int8", "zstd", 19), Scheme.GROUPED, Compression.ZSTD),
        (("int4", "lz4", 0), Scheme.GROUPED, Compression.LZ4),
    ],
)
def test_the_seeds_names_make_a_preset(
    parts: tuple[str, str, int], scheme: Scheme, compression: Compression
) -> None:
    preset = compose_preset(*parts)
    assert (preset.coding.scheme, preset.compression, preset.level) == (scheme, compression, parts[2])


@pytest.mark.parametrize(
    "parts", [("int2", "none", 0), ("int8", "gzip", 0), ("int8", "zstd", 23), ("none", "lz4", 1)]
)
def test_parts_that_do_not_exist_are_refused(parts: tuple[str, str, int]) -> None:
    with pytest.raises(RequestError):
        compose_preset(*parts)


def test_presets_import_without_torch() -> None:
    code = "import sys, kvnet.codec.presets; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("num_channels", "wanted"),
    [(64, 64), (96, 96), (256, 64), (1024, 64), (32, 64), (67 * 3, 67), (130 * 2, 65)],
)
def test_groups_divide_a_tokens_channels_where_they_can(num_channels: int, wanted: int) -> None:
    fitted = fit_groups(PRESETS["int4"].coding, num_channels)
    assert fitted.group_size == wanted
    assert preset_name(fitted) == "int4"


def test_codings_without_groups_are_left_alone() -> None:
    assert fit_groups(PRESETS["exact"].coding, 96) == PRESETS["exact"].coding
