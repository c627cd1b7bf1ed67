"""The documents of a package: the same back from JSON, and nothing that the schemas do not name."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnet.errors import MalformedPackage, RequestError
from kvnet.files.document_coding import decode_document, encode_document
from kvnet.files.documents import (
    DOCUMENT_TYPES,
    Manifest,
    Measurement,
    Preview,
    PreviewGeometry,
    ProcessingStep,
    Provenance,
    Quality,
    QualityReport,
    SourceInput,
    package_id_of,
)
from kvnet.types import DType
from tests.files.packages import MEASURED, READ, TEXT, WHEN

_B32 = "abcdefghijklmnopqrstuvwxyz234567"
texts = st.text(max_size=12)
labels = st.text(min_size=1, max_size=12)
counts = st.integers(1, 2**63 - 1)
shares = st.floats(0, 1)
durations = st.floats(0, 1e300)
package_ids = st.text(_B32, min_size=26, max_size=26).map("pkg_".__add__)
memory_ids = st.text(_B32, min_size=51, max_size=51).map(lambda text: f"mem_{text}q")
digests = st.binary(min_size=32, max_size=32).map(lambda digest: "sha256:" + digest.hex())
times = st.datetimes().map(lambda when: f"{when:%Y-%m-%dT%H:%M:%SZ}".rjust(20, "0"))
tags = st.lists(labels, max_size=3).map(tuple)
objects = st.dictionaries(texts, st.none() | st.booleans() | texts | durations | st.lists(texts), max_size=3)
alignments = st.dictionaries(texts, st.from_regex(r"alignments/[a-zA-Z0-9]{1,9}\.bin", fullmatch=True))

qualities = st.builds(Quality, durations, shares, counts)
measurements = st.builds(Measurement, durations, shares, counts, memory_ids, digests, times, texts)
steps = st.builds(ProcessingStep, labels, times, texts, st.just("") | digests, st.none() | durations, objects)
documents: dict[str, st.SearchStrategy[Any]] = {
    "manifest.json": st.builds(
        Manifest,
        package_id=package_ids,
        version=labels,
        name=labels,
        description=texts,
        source_model=texts,
        token_count=counts,
        domain=texts,
        tags=tags,
        kv_cache_file=st.just("kv-cache.awkg"),
        alignments=alignments,
        created_at=times,
        created_by=texts,
        quality=st.none() | qualities,
        pricing=objects,
        license=texts,
    ),
    "provenance.json": st.builds(
        Provenance,
        package_ids,
        labels,
        st.lists(st.builds(SourceInput, labels, texts, digests, st.integers(0, 2**63 - 1)), max_size=2).map(
            tuple
        ),
        st.lists(steps, max_size=2).map(tuple),
        digests,
    ),
    "quality-report.json": st.builds(
        QualityReport, package_ids, st.lists(measurements, max_size=2).map(tuple)
    ),
    "preview.json": st.builds(
        Preview,
        package_id=package_ids,
        name=labels,
        description=texts,
        domain=texts,
        tags=tags,
        source_model=texts,
        token_count=counts,
        geometry=st.builds(PreviewGeometry, counts, counts, counts, st.sampled_from(DType)),
        file_nbytes=counts,
        quantization=labels,
    ),
}

MANIFEST = Manifest(
    package_id="pkg_" + "a" * 26,
    version="1.0.0",
    name="notes",
    description="",
    source_model="tiny",
    token_count=5,
    domain="",
    tags=(),
    kv_cache_file="kv-cache.awkg",
    alignments={},
    created_at=WHEN,
    created_by="packer",
)


@pytest.mark.parametrize("path", DOCUMENT_TYPES)
@given(data=st.data())
def test_a_document_comes_back_from_its_json(path: str, data: st.DataObject) -> None:
    document = data.draw(documents[path])
    encoded = encode_document(document, what=path)
    assert decode_document(DOCUMENT_TYPES[path], encoded, what=path) == document


def test_what_was_not_given_is_not_in_the_json() -> None:
    plain = json.loads(encode_document(MANIFEST, what="manifest.json"))
    assert not plain.keys() & {"quality", "pricing", "license"}
    assert {"packageId", "kvCacheFile", "alignments", "tags", "createdAt"} <= plain.keys()


def test_a_step_without_a_duration_has_none_in_the_json() -> None:
    provenance = Provenance(
        MANIFEST.package_id, "import", (TEXT,), (replace(READ, duration_s=None, details={}),), TEXT.hash
    )
    plain = json.loads(encode_document(provenance, what="provenance.json"))
    assert plain["processingSteps"] == [
        {"step": "prefill", "timestamp": WHEN, "model": "tiny", "modelHash": READ.model_hash}
    ]


def test_the_json_is_canonical() -> None:
    encoded = encode_document(MANIFEST, what="manifest.json")
    plain = json.loads(encoded)
    assert encoded == json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"packageId": "pkg_" + "a" * 25}, "packageId"),
        ({"packageId": "pkg_" + "a" * 26 + "\n"}, "packageId"),
        ({"packageId": "pkg_" + "A" * 26}, "packageId"),
        ({"version": ""}, "version"),
        ({"name": ""}, "name"),
        ({"name": "x" * 4097}, "name"),
        ({"tokenCount": 0}, "tokenCount"),
        ({"tokenCount": True}, "tokenCount"),
        ({"tokenCount": 5.0}, "tokenCount"),
        ({"tokenCount": -1}, "tokenCount"),
        ({"tags": "a"}, "tags"),
        ({"tags": ["a", ""]}, r"tags\[1\]"),
        ({"kvCacheFile": "../kv-cache.awkg"}, "kvCacheFile"),
        ({"alignments": {"x": "../x.bin"}}, "alignments"),
        ({"alignments": {"x": "alignments/../x.bin"}}, "alignments"),
        ({"alignments": {"x": "alignments/.hidden.bin"}}, "alignments"),
        ({"alignments": {"x": 1}}, "alignments"),
        ({"createdAt": "2027-13-15T08:00:00Z"}, "createdAt"),
        ({"createdAt": "2027-01-15 08:00:00"}, "createdAt"),
        ({"quality": {"kl": -0.1, "top1": 1.0, "tokensChecked": 1}}, "quality.kl"),
        ({"quality": {"kl": 0.1, "top1": 1.1, "tokensChecked": 1}}, "quality.top1"),
        ({"quality": {"kl": 0.1, "top1": 1.0, "tokensChecked": 0}}, "quality.tokensChecked"),
        ({"quality": {"overallScore": 0.94}}, "overallScore"),
        ({"pricing": [50]}, "pricing"),
        ({"license": None}, "license"),
        ({"package_id": "pkg_" + "a" * 26}, "package_id"),
        ({"signature": ""}, "signature"),
    ],
)
def test_a_value_that_breaks_the_schema_is_refused_by_its_name(changes: dict[str, Any], field: str) -> None:
    plain = json.loads(encode_document(MANIFEST, what="manifest.json")) | changes
    with pytest.raises(MalformedPackage, match=field):
        decode_document(Manifest, json.dumps(plain).encode(), what="manifest.json")


@pytest.mark.parametrize("key", ["packageId", "tags", "alignments", "createdBy"])
def test_a_missing_key_is_refused_by_its_name(key: str) -> None:
    plain = json.loads(encode_document(MANIFEST, what="manifest.json"))
    del plain[key]
    with pytest.raises(MalformedPackage, match=key):
        decode_document(Manifest, json.dumps(plain).encode(), what="manifest.json")


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"[]",
        b"null",
        b'{"measurements":[],"measurements":[],"packageId":"pkg_aaaaaaaaaaaaaaaaaaaaaaaaaa"}',
        b'{"measurements":[{"kl":NaN}],"packageId":"pkg_aaaaaaaaaaaaaaaaaaaaaaaaaa"}',
        b'\xef\xbb\xbf{"measurements":[],"packageId":"pkg_aaaaaaaaaaaaaaaaaaaaaaaaaa"}',
        b'{"measurements":' + b"[" * 100 + b"]" * 100 + b',"packageId":"pkg_aaaaaaaaaaaaaaaaaaaaaaaaaa"}',
        b" " * (1 << 20) + b'{"measurements":[],"packageId":"pkg_aaaaaaaaaaaaaaaaaaaaaaaaaa"}',
    ],
    ids=["empty", "list", "null", "twice", "nan", "bom", "deep", "large"],
)
def test_what_is_not_strict_json_is_refused(encoded: bytes) -> None:
    with pytest.raises(MalformedPackage):
        decode_document(QualityReport, encoded, what="quality-report.json")


@pytest.mark.parametrize(
    "changes", [{"name": "x" * 4097}, {"name": ""}, {"tags": ("",)}, {"description": "\udc80"}]
)
def test_words_of_a_user_that_no_reader_takes_are_a_request_error(changes: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="cannot be packed"):
        encode_document(replace(MANIFEST, **changes), what="manifest.json")


def test_the_summary_of_a_report_is_the_worst_of_each_measurement() -> None:
    other = replace(MEASURED, kl=0.5, top1=0.999, tokens_checked=100)
    assert QualityReport(MANIFEST.package_id, (MEASURED, other)).summary == Quality(0.5, 0.99, 612)


def test_the_summary_of_an_empty_report_is_none() -> None:
    assert QualityReport(MANIFEST.package_id, ()).summary is None


def test_a_package_is_named_by_the_first_bits_of_its_memory_files_digest() -> None:
    assert package_id_of(bytes(32)) == "pkg_" + "a" * 26
    assert package_id_of(b"\xff" * 32) == "pkg_" + "7" * 26
