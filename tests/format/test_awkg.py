"""Rules 1 to 3 and 5 to 7 of FORMAT.md §7.2: what a head says, and when it contradicts itself."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnet.errors import MalformedFile, RequestError, UnsupportedFormat
from kvnet.format.awkg import (
    AwkgHeader,
    Metadata,
    check_head,
    make_sections,
    pack_head,
    quantization_label,
    read_prelude,
    unpack_head,
)
from kvnet.types import Coding, Compression, KeySpace, RawMemory, Scheme, canonical_json
from tests.format.memory_files import (
    document_of,
    head_of,
    head_with,
    make_awkg_header,
    make_header_of_memory,
    make_parts,
    make_raw_memory,
    memory_files,
)

MEMORY = make_raw_memory(make_header_of_memory())
HEADER, _ = make_awkg_header(MEMORY)
HEAD = pack_head(HEADER)
GROUPED = Coding(Scheme.GROUPED, key_bits=8, value_bits=4, group_size=32)


def changed(**values: Any) -> bytes:
    """HEAD with other values under some keys of its document."""
    return head_with(HEAD, lambda document: document.update(values))


def claim_tokens(document: dict[str, Any], seq_len: int) -> None:
    """Another length, said in both places."""
    document["sequenceLength"] = document["metadata"]["tokenCount"] = seq_len


def checked(head: bytes) -> None:
    """Rules 1 to 3 and 5 to 7."""
    check_head(unpack_head(head))


# Round trips


@given(memory_files())
def test_unpack_head_is_the_inverse_of_pack_head(made: tuple[RawMemory, AwkgHeader, list[bytes]]) -> None:
    memory, header, wires = made
    head = pack_head(header)
    found = unpack_head(head)
    assert found == header
    assert pack_head(found) == head
    check_head(found)
    assert found.memory.id == memory.header.id
    assert found.sections_nbytes == sum(map(len, wires))


def test_document_is_canonical_json_in_camel_case() -> None:
    document = document_of(HEAD)
    assert canonical_json(document) == HEAD[10:]
    assert document["numKvHeads"] == 2
    assert document["wMatrixReference"] == ""
    assert document["coding"]["basisNbytes"] == 0
    assert document["rope"] == {
        "extra": {}, "partialRotaryFactor": 1.0, "ropeTheta": 10000.0, "ropeType": "default"
    }  # fmt: skip
    assert document["sections"][2] == {
        "codec": "none", "kind": "attention", "layer": 0, "start": 0, "stop": 5,
        "offset": HEADER.sections[2].offset, "rawLength": 52, "wireLength": 52,
        "blake3": HEADER.sections[2].wire_digest.hex(),
    }  # fmt: skip


def test_prelude_is_ten_little_endian_bytes() -> None:
    assert HEAD[:10] == b"AWKG\x03\x00" + struct.pack("<I", len(HEAD) - 10)
    assert read_prelude(HEAD) == len(HEAD) - 10


def test_free_form_values_keep_their_own_names() -> None:
    free = {"snake_case": {"deep_er": 1}, "camelCase": 2}
    rope = replace(MEMORY.header.geometry.rope, extra=free)
    memory = replace(MEMORY.header, geometry=replace(MEMORY.header.geometry, rope=rope))
    found = unpack_head(pack_head(replace(HEADER, memory=memory, alignment=free)))
    assert (found.alignment, found.memory.geometry.rope.extra) == (free, free)


@pytest.mark.parametrize("key", ["attentionHeads", "derivedFrom", "wMatrixReference", "alignment"])
def test_key_with_a_default_may_be_missing(key: str) -> None:
    memory = make_raw_memory(make_header_of_memory(attention_heads=0))
    header, _ = make_awkg_header(memory)
    head = head_with(pack_head(header), lambda document: document.pop(key))
    assert unpack_head(head) == header
    check_head(unpack_head(head))


@pytest.mark.parametrize(
    ("coding", "label"),
    [
        (Coding(), "none"),
        (replace(GROUPED, value_bits=8), "int8"),
        (GROUPED, "k8v4"),
        (replace(GROUPED, key_bits=4), "int4"),
        (replace(GROUPED, key_bits=4, value_bits=8), "k4v8"),
        (Coding(Scheme.TRANSFORM), "transform"),
        (Coding(Scheme.PORT, 8, 8), "port8"),
        (Coding(Scheme.PORT, 4, 4), "port4"),
        (Coding(Scheme.PORT, 3, 3), ""),
        (replace(GROUPED, key_bits=3), ""),
    ],
)
def test_quantization_label_is_that_of_the_bits(coding: Coding, label: str) -> None:
    assert quantization_label(coding) == label


def test_sections_follow_one_another_without_a_hole() -> None:
    facts, _ = make_parts(MEMORY, Compression.ZSTD)
    sections = make_sections(MEMORY.header, facts)
    assert [section.offset for section in sections] == [
        sum(fact.wire_nbytes for fact in facts[:i]) for i in range(len(facts))
    ]
    assert [section.key.index for section in sections] == list(range(6))
    with pytest.raises(ValueError, match="shorter"):
        make_sections(MEMORY.header, facts[:-1])
    with pytest.raises(ValueError, match="longer"):
        make_sections(MEMORY.header, [*facts, facts[0]])


def test_writer_is_told_of_texts_and_tables_that_no_reader_takes() -> None:
    long = replace(HEADER.metadata, topic="x" * 4097)
    with pytest.raises(RequestError, match="4097 characters"):
        pack_head(replace(HEADER, metadata=long))
    with pytest.raises(RequestError, match="texts"):
        pack_head(replace(HEADER, created_by="\udc80"))
    with pytest.raises(RequestError, match="6000 sections"):
        pack_head(replace(HEADER, sections=HEADER.sections * 1000))


# Rule 1 and 2: prelude


def test_head_cut_at_any_byte_is_refused() -> None:
    for nbytes in range(len(HEAD)):
        with pytest.raises(MalformedFile):
            unpack_head(HEAD[:nbytes])


def test_byte_behind_the_head_is_refused() -> None:
    with pytest.raises(MalformedFile, match="wanted 10"):
        unpack_head(HEAD + b" ")


@pytest.mark.parametrize("magic", [b"AWKF", b"awkg", b"PK\x03\x04"])
def test_other_magic_is_refused(magic: bytes) -> None:
    with pytest.raises(MalformedFile, match=r"no \.awkg file"):
        unpack_head(magic + HEAD[4:])


@pytest.mark.parametrize("version", [0, 1, 2, 4, 512, 65535])
def test_other_version_is_unsupported(version: int) -> None:
    with pytest.raises(UnsupportedFormat, match=f"version {version}"):
        unpack_head(HEAD[:4] + struct.pack("<H", version) + HEAD[6:])


@pytest.mark.parametrize("nbytes", [0, 1, (1 << 20) + 1, 2**32 - 1])
def test_header_length_outside_its_bounds_is_refused(nbytes: int) -> None:
    with pytest.raises(MalformedFile, match="allowed are"):
        read_prelude(b"AWKG\x03\x00" + struct.pack("<I", nbytes))


# Rule 3: keys, types, forms


@pytest.mark.parametrize("key", sorted(document_of(HEAD)))
def test_missing_or_null_key_is_refused(key: str) -> None:
    if key not in ("attentionHeads", "derivedFrom", "wMatrixReference", "alignment"):
        with pytest.raises(MalformedFile, match=f"{key}.*missing"):
            unpack_head(head_with(HEAD, lambda document: document.pop(key)))
    with pytest.raises(MalformedFile, match=key):
        unpack_head(changed(**{key: None}))


@pytest.mark.parametrize("inside", ["fingerprint", "rope", "coding", "metadata", "sections"])
def test_unknown_key_is_refused_at_every_depth(inside: str) -> None:
    def add(document: dict[str, Any]) -> None:
        entry = document[inside]
        (entry[3] if inside == "sections" else entry)["x-surprise"] = 1

    with pytest.raises(MalformedFile, match="unknown field 'x-surprise'"):
        unpack_head(head_with(HEAD, add))
    with pytest.raises(MalformedFile, match="unknown field 'surprise'"):
        unpack_head(changed(surprise=1))
    with pytest.raises(MalformedFile, match="unknown field 'seq_len'"):
        unpack_head(changed(seq_len=5))


@pytest.mark.parametrize("value", [1, None, [{"a": [1.5]}], "text", {"x-": {}}])
def test_top_level_extension_is_ignored(value: Any) -> None:
    assert unpack_head(changed(**{"x-anything": value, "x-": value})) == HEADER


def test_extension_is_strict_json_too() -> None:
    for body in (
        b'"x-a":1,"x-a":2',
        b'"x-a":NaN',
        b'"x-a":1e999',
        b'"x-a":"\\ud800"',
        b'"x-a":' + b"[" * 16 + b"]" * 16,
    ):
        with pytest.raises(MalformedFile):
            unpack_head(head_of(HEAD[10:-1] + b"," + body + b"}"))
    with pytest.raises(MalformedFile, match="4097 characters"):
        unpack_head(changed(**{"x-a": ["x" * 4097]}))


WRONG: list[tuple[str, Any]] = [
    ("version", 2),
    ("version", "2"),
    ("sequenceLength", 0),
    ("sequenceLength", 2**31),
    ("sequenceLength", 5.0),
    ("sequenceLength", True),
    ("startPosition", -1),
    ("numLayers", 0),
    ("numLayers", 513),
    ("numKvHeads", 0),
    ("numKvHeads", 257),
    ("headDim", 0),
    ("headDim", 1025),
    ("dtype", "float64"),
    ("keySpace", "spinning"),
    ("tokenDigest", "sha256:" + "A" * 64),
    ("tokenDigest", ""),
    ("contentDigest", "sha256:" + "a" * 63),
    ("sourceModelHash", "a" * 64),
    ("checksum", "sha512:" + "a" * 64),
    ("checksum", "sha256:" + "a" * 64 + "\n"),
    ("quantization", "int7"),
    ("quantization", ""),
    ("compression", "gzip"),
    ("compression", 2),
    ("compressionLevel", -1),
    ("createdAt", "2027-01-15T08:00:00"),
    ("createdAt", "2027-01-15 08:00:00Z"),
    ("createdAt", "2027-13-15T08:00:00Z"),
    ("createdAt", "2027-01-15T08:00:00+00:00"),
    ("createdAt", "\uff12027-01-15T08:00:00Z"),
    ("createdBy", 7),
    ("createdBy", "x" * 4097),
    ("derivedFrom", "mem_short"),
    ("derivedFrom", "mem_" + "a" * 51 + "b"),
    ("attentionHeads", -1),
    ("sections", {}),
    ("sections", [1]),
    ("alignment", []),
    ("wMatrixReference", None),
    ("rope", []),
    ("metadata", {"domain": "", "topic": "", "languageHint": "", "qualityScore": "0.5", "tokenCount": 5}),
    ("metadata", {"domain": "", "topic": "", "languageHint": "", "qualityScore": True, "tokenCount": 5}),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_wrong_type_range_or_form_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(MalformedFile, match=key):
        unpack_head(changed(**{key: value}))


WRONG_IN_SECTION: list[tuple[str, Any]] = [
    ("layer", -1),
    ("layer", "0"),
    ("kind", "basis"),
    ("kind", 0),
    ("codec", "brotli"),
    ("codec", "ZSTD"),
    ("offset", 1.0),
    ("offset", 2**63),
    ("wireLength", None),
    ("rawLength", True),
    ("blake3", "A" * 64),
    ("blake3", "a" * 63),
    ("blake3", "sha256:" + "a" * 64),
]


@pytest.mark.parametrize(("key", "value"), WRONG_IN_SECTION)
def test_wrong_value_in_the_table_is_refused(key: str, value: Any) -> None:
    with pytest.raises(MalformedFile):
        unpack_head(head_with(HEAD, lambda document: document["sections"][1].update({key: value})))


@pytest.mark.parametrize(
    "body", [b"[]", b"{}", b"null", b"12", b"{} {}", b"\xff\xfe", b'{"version":3,"version":3}']
)
def test_document_that_is_no_header_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedFile):
        unpack_head(head_of(body))


@given(st.binary(max_size=80))
def test_noise_behind_a_prelude_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedFile):
        unpack_head(struct.pack("<4sHI", b"AWKG", 3, len(body)) + body)


# Rule 5: what repeats


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d.update(sourceModelHash="sha256:" + "0" * 64), "sourceModelHash"),
        (lambda d: d["fingerprint"].update(architecture="Other"), "sourceModelHash"),
        (lambda d: d["metadata"].update(tokenCount=6), "tokenCount is 6"),
        (lambda d: d.update(quantization="int8"), "quantization is int8"),
        (lambda d: d["coding"].update(keyBits=8), "parameters"),
        (lambda d: d["coding"].update(scheme="grouped"), "bits"),
        (lambda d: d["coding"].update(scheme="transform"), "basis"),
        (lambda d: d["coding"].update(prunedHeads=[[2, 0]]), "no head"),
        (lambda d: d["coding"].update(prunedHeads=[[0, 1], [0, 0]]), "ascending"),
    ],
)
def test_repeated_facts_that_disagree_are_refused(change: Callable[[Any], object], match: str) -> None:
    head = head_with(HEAD, change)
    unpack_head(head)
    with pytest.raises(MalformedFile, match=match):
        checked(head)


def test_name_of_the_model_is_part_of_no_digest() -> None:
    checked(changed(sourceModel="another name"))


# Rule 6: the plan


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d["sections"].pop(), "5 sections, wanted 6"),
        (lambda d: d["sections"].append(d["sections"][-1]), "7 sections"),
        (lambda d: d.update(sections=[]), "0 sections"),
        (lambda d: d["sections"].reverse(), "section 0 is layer 1 attention"),
        (lambda d: d["sections"][3].update(layer=0), "section 3 is layer 0"),
        (lambda d: d["sections"][0].update(kind="value"), "section 0 is layer 0 value"),
        (lambda d: d["sections"][0].update(start=1), "section 0 is layer 0 key 1..5"),
        (lambda d: d["sections"][0].update(stop=4), "section 0 is layer 0 key 0..4"),
        (lambda d: d.update(attentionHeads=0), "6 sections, wanted 4"),
        (lambda d: d.update(numLayers=3), "6 sections, wanted 9"),
        (lambda d: claim_tokens(d, 6), "0..5, wanted layer 0 key 0..6"),
    ],
)
def test_table_that_is_not_the_plan_is_refused(change: Callable[[Any], object], match: str) -> None:
    with pytest.raises(MalformedFile, match=match):
        checked(head_with(HEAD, change))


# Rule 7: offsets, lengths, and the checksum


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(checksum="sha256:" + "0" * 64),
        lambda d: d["sections"][0].update(blake3="0" * 64),
        lambda d: d["sections"][5].update(blake3=d["sections"][4]["blake3"]),
    ],
)
def test_checksum_of_another_table_is_refused(change: Callable[[Any], object]) -> None:
    with pytest.raises(MalformedFile, match="checksum is not that"):
        checked(head_with(HEAD, change))


@pytest.mark.parametrize(
    ("index", "values", "match"),
    [
        (0, {"offset": 1}, "section 0 is at 1, wanted 0"),
        (1, {"offset": 79}, "section 1 is at 79"),
        (1, {"offset": 81}, "section 1 is at 81"),
        (0, {"wireLength": 79}, "79 bytes by none"),
        (0, {"wireLength": 0}, "0 bytes by none"),
        (1, {"wireLength": 0}, "0 bytes by zstd"),
        (1, {"wireLength": 81}, "81 bytes by zstd"),
        (1, {"rawLength": 81}, "81 raw bytes, allowed are 80 to 80"),
        (1, {"rawLength": 79}, "79 raw bytes"),
        (2, {"rawLength": 56, "wireLength": 56}, "56 raw bytes, allowed are 52"),
        (2, {"codec": "split"}, "section 2 is split"),
    ],
)
def test_section_that_does_not_fit_is_refused(index: int, values: dict[str, Any], match: str) -> None:
    with pytest.raises(MalformedFile, match=match):
        checked(head_with(HEAD, lambda document: document["sections"][index].update(values)))


def test_split_is_for_raw_keys_and_values_alone() -> None:
    checked(head_with(HEAD, lambda document: document["sections"][1].update(codec="split")))
    grouped, _ = make_awkg_header(make_raw_memory(make_header_of_memory(coding=GROUPED)))
    head = pack_head(grouped)
    checked(head)
    with pytest.raises(MalformedFile, match="split"):
        checked(head_with(head, lambda document: document["sections"][1].update(codec="split")))


@pytest.mark.parametrize(
    "reference", ["", "free text", "map_" + "a" * 51, "map_" + "1" * 52, "port_" + "a" * 52]
)
def test_coordinates_of_a_port_name_the_map_that_made_them(reference: str) -> None:
    coding = Coding(Scheme.PORT, 8, 8, basis="sha256:" + "0" * 64, basis_nbytes=1)
    memory = make_header_of_memory(coding=coding, attention_heads=0, key_space=KeySpace.CONTENT)
    header, _ = make_awkg_header(make_raw_memory(memory), w_matrix_reference="map_" + "z" * 52)
    head = pack_head(header)
    checked(head)
    assert unpack_head(head).w_matrix_reference == "map_" + "z" * 52
    with pytest.raises(MalformedFile, match="wanted the id of the map that made the coordinates"):
        checked(head_with(head, lambda document: document.update(wMatrixReference=reference)))


def test_section_beyond_a_mebibyte_is_refused_whatever_its_coding_allows() -> None:
    # 512 tokens of one head, all of them exact: 4 + 512 * (4 + 2 * 1024) bytes are more than 1 MiB.
    coding = Coding(Scheme.TRANSFORM, recent_tokens=512, basis="sha256:" + "0" * 64, basis_nbytes=1)
    geometry = replace(MEMORY.header.geometry, num_layers=1, num_kv_heads=1, head_dim=1024)
    memory = replace(MEMORY.header, geometry=geometry, seq_len=512, coding=coding, attention_heads=0)
    facts = [
        (Compression.ZSTD, 9, 4 + 512 * 2052, bytes(32)),
        (Compression.ZSTD, 9, 4 + 512 * 1024, bytes(32)),
    ]
    metadata = Metadata("", "", "", None, 512)
    header = replace(HEADER, memory=memory, sections=make_sections(memory, facts), metadata=metadata)
    with pytest.raises(MalformedFile, match="section 0 has 1050628 raw bytes, allowed are 4 to 1048576"):
        check_head(header)


# A mebibyte of malice


def _stuffed(prefix: bytes, unit: bytes, suffix: bytes) -> bytes:
    room = (1 << 20) - len(prefix) - len(suffix)
    return head_of(prefix + unit * (room // len(unit)) + suffix)


EMPTY = canonical_json({**document_of(HEAD), "sections": []})
PRUNED = EMPTY.split(b'"prunedHeads":[]')
TABLE = EMPTY.split(b'"sections":[]')
SECTION = canonical_json(document_of(HEAD)["sections"][0])
HOSTILE = {
    "brackets": head_of(b"[" * (1 << 20)),
    "quotes": head_of(b'"' * (1 << 20)),
    "backslashes": head_of(b'"' + b"\\" * ((1 << 20) - 1)),
    "empty lists in an extension": _stuffed(HEAD[10:-1] + b',"x-a":[', b"[],", b'[]],"y":1}'),
    "integers in an extension": _stuffed(HEAD[10:-1] + b',"x-a":[', b"1,", b'1],"y":1}'),
    "one section over and over": _stuffed(TABLE[0] + b'"sections":[', SECTION + b",", b"{}]" + TABLE[1]),
    "pruned heads": _stuffed(PRUNED[0] + b'"prunedHeads":[', b"[0,1],", b"[0,1]]" + PRUNED[1]),
    "pruned heads without numbers": _stuffed(PRUNED[0] + b'"prunedHeads":[', b"[],", b"[]]" + PRUNED[1]),
    "one pruned head of many numbers": _stuffed(PRUNED[0] + b'"prunedHeads":[[', b"1,", b"1]]" + PRUNED[1]),
    "two thousand million tokens": head_with(HEAD, lambda d: claim_tokens(d, 2**31 - 1)),
    "attention of 2^63 heads": changed(attentionHeads=2**63 - 1),
}  # fmt: skip


@pytest.mark.parametrize("head", HOSTILE.values(), ids=HOSTILE)
def test_mebibyte_of_malice_is_refused_with_little_memory(head: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MalformedFile):
            checked(head)
        assert tracemalloc.get_traced_memory()[1] < 96 << 20
    finally:
        tracemalloc.stop()
