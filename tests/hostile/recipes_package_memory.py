"""Packages whose memory file or basis is at fault, or is not what the other asks for; listed and signed."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.hostile.bases import BAD_SIGNATURE, MALFORMED_FILE, NOT_FINITE, OK, Case, rawed, small, transform
from tests.hostile.bases import MALFORMED_PACKAGE as MALFORMED
from tests.hostile.recipes_package import zipped
from tests.second_reader.basis import read_basis, write_basis
from tests.second_reader.package_builder import Files, dump, make_documents, sign_package
from tests.second_reader.strict import sha256_text

BASIS = "codec/basis.safetensors"
_CHANNELS = 6  # of `transform`
_NAN = b"\0\0\xc0\x7f"


def cases() -> Iterator[Case]:
    """Every case of this page."""
    yield from _memories()
    yield from _mismatches()
    yield from _numbers()
    yield from _safetensors()


def _package(data: bytes, header: dict[str, Any], basis: bytes | None) -> Files:
    files = {"kv-cache.awkg": data} | dump(make_documents(data, header))
    return sign_package(files if basis is None else files | {BASIS: basis})


def _memories() -> Iterator[Case]:
    draft = small()
    data = draft.sign()
    broken = {
        "wrong_version": ("unsupported_format", data[:4] + b"\4\0" + data[6:]),
        "no_memory": (MALFORMED_FILE, b"AWKG"),
        "a_byte_behind": (BAD_SIGNATURE, data + b"\0"),
    }
    for name, (code, awkg) in broken.items():
        yield zipped(f"package_memory_{name}", code, _package(awkg, draft.header, None))
    poisoned = rawed("", 0, lambda raw: struct.pack_into("4s", raw, 0, _NAN), NOT_FINITE, small()).files[""]
    header = json.loads(poisoned[10 : 10 + int.from_bytes(poisoned[6:10], "little")])
    yield zipped("package_memory_not_finite", NOT_FINITE, _package(poisoned, header, None))


def _mismatches() -> Iterator[Case]:
    draft, raw = transform(), small()
    data, basis = draft.sign(), draft.basis or b""
    yield zipped("package_valid_transform", OK, _package(data, draft.header, basis))
    others = {
        "without_basis": None,
        "with_another_basis": basis[:-1] + b"\1",
        "with_longer_basis": basis + b"\0",
    }
    for name, other in others.items():
        yield zipped(f"package_transform_{name}", MALFORMED, _package(data, draft.header, other))
    yield zipped("package_raw_with_basis", MALFORMED, _package(raw.sign(), raw.header, basis))


def _named(name: str, basis: bytes) -> Case:
    """A package whose memory names exactly this basis, which is no good."""
    draft = transform()
    draft.header["coding"] |= {"basis": sha256_text(basis), "basisNbytes": len(basis)}
    return zipped(f"package_basis_{name}", MALFORMED_FILE, _package(draft.sign(), draft.header, basis))


def _tensors() -> dict[str, Any]:
    """The tensors of `transform`'s basis, in the order of the file."""
    good = read_basis(transform().basis or b"", 1, _CHANNELS)
    tensors: dict[str, Any] = {}
    for kind in ("key", "value"):
        mean, backward = good.means[0, kind].copy(), good.backwards[0, kind].copy()
        tensors |= {f"0.{kind}.mean": mean, f"0.{kind}.forward": backward.T.copy()}
        tensors[f"0.{kind}.backward"] = backward
    return tensors


def _numbers() -> Iterator[Case]:
    for name, value in {"nan": np.nan, "infinity": np.inf, "minus_infinity": -np.inf}.items():
        for part in ("mean", "forward", "backward"):
            tensors = _tensors()
            tensors[f"0.key.{part}"][..., 0] = value
            yield _named(f"{part}_{name}", write_basis(tensors))


def _safetensors() -> Iterator[Case]:
    whole = write_basis(_tensors())
    for name in ("0.key.mean", "0.value.forward", "0.value.backward"):
        tensors = _tensors()
        del tensors[name]
        yield _named(f"without_{name}", write_basis(tensors))
    yield _named("with_another_layer", write_basis(_tensors() | {"1.key.mean": np.zeros(6, np.float32)}))
    shapes = {"mean": (7,), "forward": (6, 7), "backward": (7, 6)}
    for part, shape in shapes.items():
        wrong = {f"0.key.{part}": np.zeros(shape, np.float32)}
        yield _named(f"{part}_of_another_shape", write_basis(_tensors() | wrong))
    empty = {"0.key.forward": np.zeros((6, 0), np.float32), "0.key.backward": np.zeros((0, 6), np.float32)}
    yield _named("of_rank_0", write_basis(_tensors() | empty))
    head_nbytes = int.from_bytes(whole[:8], "little")
    broken = {
        "of_three_bytes": whole[:3],
        "of_eight_bytes": whole[:8],
        "cut_within_its_head": whole[: 8 + head_nbytes // 2],
        "one_byte_short": whole[:-1],
        "one_byte_longer": whole + b"\0",
        "head_of_2_63": (2**63).to_bytes(8, "little") + whole[8:],
        "head_of_2_64_less_1": b"\xff" * 8 + whole[8:],
        "head_of_0": bytes(8) + whole[8:],
        "half_floats": whole.replace(b'"F32","shape":[6]', b'"F16","shape":[12]'.ljust(17), 1),
        "head_is_no_json": whole[:8] + b"x" * head_nbytes + whole[8 + head_nbytes :],
        "overlapping": whole.replace(b'"data_offsets":[24,', b'"data_offsets":[20,', 1),
        "beyond_the_end": whole.replace(b'"data_offsets":[0,24]', b'"data_offsets":[0,99]', 1),
    }
    for name, basis in broken.items():
        yield _named(name, basis)
