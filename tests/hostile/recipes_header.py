"""Headers that lack a key, hold a value of another type or range, or contradict themselves, correctly signed.

Rules 3 and 5 of FORMAT.md §7.2, and the codings of §8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.hostile.bases import OK, Case, Header, changed, grouped, raw, small, transform
from tests.second_reader.awkg_builder import Draft

_PLACES: dict[str, Callable[[Header], Header]] = {
    "header": lambda header: header,
    "fingerprint": lambda header: header["fingerprint"],
    "rope": lambda header: header["rope"],
    "coding": lambda header: header["coding"],
    "metadata": lambda header: header["metadata"],
    "section": lambda header: header["sections"][1],
}
_REQUIRED = {
    "header": (
        "version sourceModel sourceModelHash fingerprint sequenceLength startPosition numLayers numKvHeads "
        "headDim dtype rope keySpace tokenDigest contentDigest quantization coding compression "
        "compressionLevel checksum createdAt createdBy signedBy metadata sections"
    ),
    "fingerprint": "architecture configDigest tokenizerDigest weightsDigest quantization",
    "rope": "ropeType ropeTheta",
    "coding": "",
    "metadata": "domain topic languageHint qualityScore tokenCount",
    "section": "layer kind start stop offset wireLength rawLength codec blake3",
}
_DEFAULTED = {
    "header": "attentionHeads derivedFrom wMatrixReference alignment",
    "rope": "partialRotaryFactor extra",
    "coding": (
        "scheme keyBits valueBits groupSize hadamard sinkTokens recentTokens basis basisNbytes prunedHeads"
    ),
}
_COUNTS = (
    "version sequenceLength startPosition numLayers numKvHeads headDim compressionLevel attentionHeads "
    "tokenCount layer start stop offset wireLength rawLength keyBits valueBits groupSize sinkTokens "
    "recentTokens basisNbytes"
)
_NUMBERS = {"ropeTheta", "partialRotaryFactor", "qualityScore"}
_OBJECTS = {"fingerprint", "rope", "coding", "metadata", "alignment", "extra"}
_LISTS = {"sections", "prunedHeads"}


def cases() -> Iterator[Case]:
    """Every case of this page."""
    yield from _missing()
    yield from _other_types()
    yield from _unknown_keys()
    yield from _ranges()
    yield from _contradictions()
    yield from _codings()
    yield from _pruned_heads()


def _set(place: str, key: str, value: Any) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        _PLACES[place](header)[key] = value

    return change


def _drop(place: str, key: str) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        del _PLACES[place](header)[key]

    return change


def _missing() -> Iterator[Case]:
    for place, keys in _REQUIRED.items():
        for key in keys.split():
            yield changed(f"missing_{place}_{key}", _drop(place, key), draft=small())


def _other_types() -> Iterator[Case]:
    for place in _PLACES:
        for key in f"{_REQUIRED[place]} {_DEFAULTED.get(place, '')}".split():
            for name, value in _wrong_values(key).items():
                yield changed(f"type_{place}_{key}_{name}", _set(place, key, value), draft=small())


def _wrong_values(key: str) -> dict[str, Any]:
    """Values of no type that the schema has for this key."""
    if key in _COUNTS.split():
        return {"float": 2.0, "bool": True, "negative": -1}
    if key in _NUMBERS:
        return {"bool": True, "text": "1.0"}
    if key in _OBJECTS:
        return {"null": None, "list": []}
    if key in _LISTS:
        return {"null": None, "object": {}}
    if key == "hadamard":
        return {"null": None, "int": 0}
    return {"int": 1}


def _unknown_keys() -> Iterator[Case]:
    for place in _PLACES:
        yield changed(f"unknown_key_in_{place}", _set(place, "critical", 1), draft=small())
        if place != "header":
            yield changed(f"unknown_x_key_in_{place}", _set(place, "x-note", 1), draft=small())
    for key in ("X-note", "x_note", "num_layers", "", "Version"):
        yield changed(f"unknown_key_{key or 'empty'}", _set("header", key, 1), draft=small())
    yield changed("known_x_key", _set("header", "x-", [{"any": None}]), OK)


def _ranges() -> Iterator[Case]:
    values: dict[str, list[Any]] = {
        "version": [0, 1, 2, 4, 2**31],
        "sequenceLength": [0, 2**31, 2**62],
        "numLayers": [0, 513, 2**31],
        "numKvHeads": [0, 257, 2**31],
        "headDim": [0, 1025, 2**31],
        "dtype": ["float64", "int8", "Float32", "", "bfloat16 "],
        "keySpace": ["", "Rotated", "normalized"],
        "compression": ["gzip", "", "ZSTD"],
        "createdAt": [
            *("", "yesterday", "2026-02-16", "2026-02-16T10:00:00", "2026-02-16 10:00:00Z"),
            *("2026-02-30T10:00:00Z", "2026-13-01T10:00:00Z", "2026-02-16T25:00:00Z", "0000-01-01T00:00:00Z"),
        ],
        "checksum": ["", "0" * 64, "md5:" + "0" * 64, "sha256:" + "0" * 63, "sha256:" + "0" * 65],
        "signedBy": ["", "a" * 51, "a" * 53, "A" * 52, "1" * 52, "a" * 51 + "b", "é" * 52],
        "attentionHeads": [2**20, 2**30, 2**62],
    }
    for key, bad in values.items():
        for i, value in enumerate(bad):
            draft = raw() if key == "attentionHeads" else small()
            yield changed(f"range_{key}_{i}", _set("header", key, value), draft=draft)
    later = "2026-02-16T10:00:00+01:00"
    yield changed("range_createdAt_with_offset", _set("header", "createdAt", later))
    yield changed("range_createdAt_not_ascii", _set("header", "createdAt", "\u0662026-02-16T10:00:00Z"[:20]))


def _contradictions() -> Iterator[Case]:
    for key in ("architecture", "configDigest", "tokenizerDigest", "weightsDigest", "quantization"):
        yield changed(f"fingerprint_{key}_is_another", _set("fingerprint", key, "another"))
    yield changed("source_model_hash_is_another", _set("header", "sourceModelHash", "sha256:" + "ab" * 32))
    yield changed("source_model_is_another", _set("header", "sourceModel", "only a name"), OK)
    for count in (0, 2, 4):
        yield changed(f"token_count_{count}_of_3", _set("metadata", "tokenCount", count))
    labels = {"raw": ("int8", "transform", "raw", ""), "grouped": ("int8", "int4", "k4v8", "none", "grouped")}
    for label in labels["raw"]:
        yield changed(f"label_{label or 'empty'}_of_raw", _set("header", "quantization", label))
    for label in labels["grouped"]:
        yield changed(f"label_{label}_of_k8v4", _set("header", "quantization", label), draft=grouped())
    yield changed("label_int8_of_transform", _set("header", "quantization", "int8"), draft=transform())
    for key, value in {
        "numLayers": 1,
        "numKvHeads": 1,
        "headDim": 8,
        "sequenceLength": 4,
        "dtype": "float16",
    }.items():
        yield changed(f"{key}_is_not_that_of_the_table", _set("header", key, value))
    yield changed("numLayers_3_of_2", _set("header", "numLayers", 3))
    for heads in (0, 1, 3):
        yield changed(
            f"attention_metadata_of_{heads}_heads_instead_of_2", _set("header", "attentionHeads", heads)
        )
    yield changed("attention_heads_missing", lambda header: header.pop("attentionHeads"))
    yield changed(
        "attention_heads_without_sections", _set("header", "attentionHeads", 2), draft=raw(attentionHeads=0)
    )


def _codings() -> Iterator[Case]:
    transforms = {"sinkTokens": 1, "recentTokens": 1, "basis": "sha256:" + "0" * 64, "basisNbytes": 8}
    groups = {"keyBits": 8, "valueBits": 8, "groupSize": 32, "hadamard": True}
    drafts: dict[str, tuple[Callable[[], Draft], dict[str, Any]]] = {
        "raw": (raw, transforms | groups),
        "grouped": (grouped, transforms),
        "transform": (transform, groups),
    }
    for scheme, (make, fields) in drafts.items():
        for key, value in fields.items():
            yield changed(f"coding_{scheme}_with_{key}", _set("coding", key, value), draft=make())
    for scheme in ("", "none", "RAW", "int8", "svd"):
        yield changed(f"coding_scheme_{scheme or 'empty'}", _set("coding", "scheme", scheme))
    for bits in (0, 1, 2, 5, 16, 2**62):
        yield changed(f"coding_key_bits_{bits}", _set("coding", "keyBits", bits), draft=grouped())
        yield changed(f"coding_value_bits_{bits}", _set("coding", "valueBits", bits), draft=grouped())
    for size in (0, 1, 7, 1025, 2**62):
        yield changed(f"coding_group_size_{size}", _set("coding", "groupSize", size), draft=grouped())
    for key, value in {"basis": "", "basisNbytes": 0}.items():
        yield changed(f"coding_transform_without_{key}", _set("coding", key, value), draft=transform())
    for i, name in enumerate(("basis", "sha256:", "0" * 64, "../basis")):
        yield changed(f"coding_basis_name_{i}", _set("coding", "basis", name), draft=transform())
    yield changed("coding_is_empty_for_raw", _set("header", "coding", {}), OK)


def _pruned_heads() -> Iterator[Case]:
    wrong: dict[str, Any] = {
        "layer_beyond": [[2, 0]],
        "head_beyond": [[0, 2]],
        "layer_huge": [[2**62, 0]],
        "descending": [[1, 0], [0, 0]],
        "heads_descending": [[0, 1], [0, 0]],
        "repeated": [[0, 0], [0, 0]],
        "single": [[0]],
        "triple": [[0, 0, 0]],
        "empty_pair": [[]],
        "flat": [0, 0],
        "negative": [[-1, 0]],
        "float": [[0.0, 0]],
        "bool": [[False, False]],
        "text": [["0", "0"]],
        "text_pair": ["00"],
        "object": [{"0": 0}],
    }
    for name, pairs in wrong.items():
        yield changed(f"pruned_{name}", _set("coding", "prunedHeads", pairs))
    yield changed("pruned_every_head", _set("coding", "prunedHeads", [[0, 0], [0, 1], [1, 0], [1, 1]]), OK)
