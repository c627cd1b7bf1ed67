"""What a `.awkg` header must hold, and how it must agree with itself: FORMAT.md §7.1, rules 3 and 5 to 7 of
§7.2.

Imports nothing of kvnet. Knows no signatures and no payloads.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from datetime import datetime
from typing import Any

from tests.second_reader import chunks, port, rope
from tests.second_reader.strict import (
    Refused,
    base32,
    boolean,
    canonical,
    check_object,
    checksum_of,
    count,
    digest,
    number,
    one_of,
    sha256_text,
    text,
)

MAX_CHUNK_NBYTES = 1 << 20

_CREATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MEMORY_ID = re.compile(r"(mem_[a-z2-7]{52})?", re.ASCII)


def _matches(pattern: re.Pattern[str]) -> Any:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _time(value: Any) -> bool:
    if not isinstance(value, str) or _CREATED.fullmatch(value) is None:
        return False
    try:
        return bool(datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ"))
    except ValueError:
        return False


def _pairs(value: Any) -> bool:
    integer = count()
    return isinstance(value, list) and all(
        isinstance(pair, list) and all(map(integer, pair)) for pair in value
    )


def _object(value: Any) -> bool:
    return isinstance(value, dict)


_CODECS = one_of("none", "lz4", "zstd", "split")
_HEADER = {
    "version": count(3, 3),
    "sourceModel": text,
    "sourceModelHash": digest,
    "fingerprint": _object,
    "sequenceLength": count(1, 2**31 - 1),
    "startPosition": count(0, 2**31 - 1),
    "numLayers": count(1, 512),
    "numKvHeads": count(1, 256),
    "headDim": count(1, 1024),
    "dtype": one_of("float32", "float16", "bfloat16"),
    "rope": _object,
    "keySpace": one_of("rotated", "content"),
    "tokenDigest": digest,
    "contentDigest": digest,
    "quantization": one_of("none", "int8", "k8v4", "int4", "k4v8", "transform", "port8", "port4"),
    "coding": _object,
    "compression": _CODECS,
    "compressionLevel": count(),
    "checksum": digest,
    "createdAt": _time,
    "createdBy": text,
    "signedBy": text,
    "metadata": _object,
    "sections": lambda value: isinstance(value, list),
}
_HEADER_DEFAULTS: dict[str, tuple[Any, Any]] = {
    "attentionHeads": (count(), 0),
    "derivedFrom": (_matches(_MEMORY_ID), ""),
    "prefixDigest": (lambda value: value == "" or digest(value), ""),
    "wMatrixReference": (text, ""),
    "alignment": (_object, {}),
}
_FINGERPRINT = dict.fromkeys(
    ("architecture", "configDigest", "tokenizerDigest", "weightsDigest", "quantization"), text
)
_ROPE = {"ropeType": text, "ropeTheta": number}
_ROPE_DEFAULTS: dict[str, tuple[Any, Any]] = {"partialRotaryFactor": (number, 1.0), "extra": (_object, {})}
_METADATA = {
    "domain": text,
    "topic": text,
    "languageHint": text,
    "qualityScore": lambda value: value is None or number(value),
    "tokenCount": count(),
}
_CODING_DEFAULTS: dict[str, tuple[Any, Any]] = {
    "scheme": (one_of("raw", "grouped", "transform", "port"), "raw"),
    "keyBits": (count(), 0),
    "valueBits": (count(), 0),
    "groupSize": (count(), 0),
    "hadamard": (boolean, False),
    "sinkTokens": (count(), 0),
    "recentTokens": (count(), 0),
    "basis": (text, ""),
    "basisNbytes": (count(), 0),
    "prunedHeads": (_pairs, []),
}
_SECTION = {
    **dict.fromkeys(("layer", "start", "stop", "offset", "wireLength", "rawLength"), count()),
    "kind": one_of("key", "value", "attention", "coordinates"),
    "codec": _CODECS,
    "blake3": _matches(_HEX),
}


def check_schema(header: Any) -> dict[str, Any]:
    """Rule 3: these keys and types. Returns the header with its defaults and without its `x-` keys."""
    if not isinstance(header, dict):
        raise Refused("malformed_file", "the header is not an object")
    known = {key: entry for key, entry in header.items() if not key.startswith("x-")}
    _fill(known, _HEADER, _HEADER_DEFAULTS, "the header")
    _fill(known["fingerprint"], _FINGERPRINT, {}, "fingerprint")
    _fill(known["rope"], _ROPE, _ROPE_DEFAULTS, "rope")
    _fill(known["coding"], {}, _CODING_DEFAULTS, "coding")
    _fill(known["metadata"], _METADATA, {}, "metadata")
    for section in known["sections"]:
        _fill(section, _SECTION, {}, "a section")
    return known


def _fill(value: Any, required: Any, defaults: dict[str, tuple[Any, Any]], what: str) -> None:
    check_object(
        value, required, {key: check for key, (check, _) in defaults.items()}, "malformed_file", what
    )
    for key, (_, default) in defaults.items():
        value.setdefault(key, default)


def check_repeats(header: dict[str, Any]) -> None:
    """Rule 5, the fields that repeat others."""
    names = ("architecture", "config_digest", "tokenizer_digest", "weights_digest", "quantization")
    facts = dict(zip(names, (header["fingerprint"][key] for key in _FINGERPRINT), strict=True))
    if header["sourceModelHash"] != sha256_text(b"kvnet/fingerprint/v1\0" + canonical(facts)):
        raise Refused("malformed_file", "sourceModelHash is not that of the fingerprint")
    coding = header["coding"]
    bits = (coding["keyBits"], coding["valueBits"])
    grouped = {(8, 8): "int8", (8, 4): "k8v4", (4, 4): "int4", (4, 8): "k4v8"}
    labels = {"raw": "none", "transform": "transform", "grouped": grouped.get(bits, "?")}
    label = (labels | {"port": {(8, 8): "port8", (4, 4): "port4"}.get(bits, "?")})[coding["scheme"]]
    if header["quantization"] != label:
        raise Refused("malformed_file", "quantization is not that of the coding")
    if header["metadata"]["tokenCount"] != header["sequenceLength"]:
        raise Refused("malformed_file", "tokenCount is not sequenceLength")


def check_coding(header: dict[str, Any]) -> None:
    """Rule 5, the codings of §8."""
    coding, scheme = header["coding"], header["coding"]["scheme"]
    grouped = {"keyBits", "valueBits", "groupSize", "hadamard"}
    transform = {"sinkTokens", "recentTokens", "basis", "basisNbytes"}
    unused = {"raw": grouped | transform, "grouped": transform, "transform": grouped}
    unused["port"] = {"groupSize", "hadamard", "sinkTokens", "recentTokens", "prunedHeads"}
    if any(coding[key] for key in unused[scheme]):
        raise Refused("malformed_file", f"a {scheme} coding has fields of another")
    if scheme == "grouped" and not (
        coding["keyBits"] in (4, 8) and coding["valueBits"] in (4, 8) and 8 <= coding["groupSize"] <= 1024
    ):
        raise Refused("malformed_file", "bits or groups that no grouped coding has")
    channels = header["numKvHeads"] * header["headDim"]
    if channels > {"grouped": 131072, "transform": 16384}.get(scheme, channels):
        raise Refused("malformed_file", f"{channels} channels are too many for a {scheme} coding")
    layers, width = header["numLayers"], header["numKvHeads"] * header["headDim"]
    most = min(1 << 30, 2 * layers * (width + 2 * width**2) * 4 + 65536 + 512 * 6 * layers)
    if scheme == "transform" and not (digest(coding["basis"]) and 0 < coding["basisNbytes"] <= most):
        raise Refused("malformed_file", "a transform without a basis, or with one that is too large")
    pruned = coding["prunedHeads"]
    if any(len(p) != 2 or p[0] >= header["numLayers"] or p[1] >= header["numKvHeads"] for p in pruned):
        raise Refused("malformed_file", "a pruned head that is not one")
    if any(a >= b for a, b in itertools.pairwise(pruned)):
        raise Refused("malformed_file", "pruned heads do not ascend")
    if not 0 < header["rope"]["partialRotaryFactor"] <= 1:
        raise Refused("malformed_file", "a partialRotaryFactor beyond 0 to 1")
    if scheme == "port":
        port.check_port(header)
    elif header["keySpace"] == "content":
        rope.check_turns(header)


def _plan_count(header: dict[str, Any]) -> tuple[int, int]:
    """How many chunks the plan has, and tokens in each of keys and values (§3)."""
    if header["coding"]["scheme"] == "port":
        return port.count_parts(header["sequenceLength"]), 0
    itemsize = chunks.ITEMSIZE[header["dtype"]]
    step = max(1, MAX_CHUNK_NBYTES // (header["numKvHeads"] * header["headDim"] * itemsize))
    parts = 2 * -(-header["sequenceLength"] // step) + (header["attentionHeads"] > 0)
    return header["numLayers"] * parts, step


def check_table(header: dict[str, Any]) -> None:
    """Rules 6 and 7. The plan is built only once the table is as long as it."""
    sections, seq_len = header["sections"], header["sequenceLength"]
    num_chunks, step = _plan_count(header)
    if len(sections) != num_chunks:
        raise Refused("malformed_file", f"{len(sections)} sections, the plan has {num_chunks}")
    is_port = header["coding"]["scheme"] == "port"
    plan = port.plan(seq_len) if is_port else []
    for layer in range(0 if is_port else header["numLayers"]):
        starts = range(0, seq_len, step)
        plan += [(layer, kind, t, min(seq_len, t + step)) for kind in ("key", "value") for t in starts]
        plan += [(layer, "attention", 0, seq_len)] if header["attentionHeads"] else []
    for section, part in zip(sections, plan, strict=True):
        if tuple(section[key] for key in ("layer", "kind", "start", "stop")) != part:
            raise Refused("malformed_file", "the table is not the plan")
    offset = 0
    for section in sections:
        _check_lengths(header, section, offset)
        offset += section["wireLength"]
    if header["checksum"] != checksum_of(sections):
        raise Refused("malformed_file", "checksum is not that of the table")


def _check_lengths(header: dict[str, Any], section: dict[str, Any], offset: int) -> None:
    wire, raw, codec = section["wireLength"], section["rawLength"], section["codec"]
    least, most = _raw_bounds(header, section)
    if section["offset"] != offset or not 1 <= wire <= raw or (codec == "none" and wire != raw):
        raise Refused("malformed_file", "a hole, an overlap or a wrong wire length")
    if not least <= raw <= min(most, MAX_CHUNK_NBYTES):
        raise Refused("malformed_file", f"a raw length of {raw}, allowed are {least} to {most}")
    if codec == "split" and (section["kind"] == "attention" or header["coding"]["scheme"] != "raw"):
        raise Refused("malformed_file", "split planes of something that is not raw")


def _raw_bounds(header: dict[str, Any], section: dict[str, Any]) -> tuple[int, int]:
    """The raw lengths that §8 allows; only a transform and a port leave a choice."""
    coding, heads, dim = header["coding"], header["numKvHeads"], header["headDim"]
    n, channels = section["stop"] - section["start"], heads * dim
    if section["kind"] == "coordinates":
        return port.raw_bounds(n)
    if section["kind"] == "attention":
        exactly = 16 + 4 * header["attentionHeads"] + 4 * min(chunks.MAX_IMPORTANT, header["sequenceLength"])
    elif coding["scheme"] == "raw":
        exactly = n * channels * chunks.ITEMSIZE[header["dtype"]]
    elif coding["scheme"] == "grouped":
        exactly = chunks.grouped_nbytes(section["kind"], n, heads, dim, coding)
    else:
        num_exact = min(n, coding["sinkTokens"] + coding["recentTokens"] + n // 8)
        return 4, 4 + num_exact * (4 + 2 * channels) + (n - num_exact) * channels
    return exactly, exactly


def memory_id(header: dict[str, Any]) -> str:
    """The memory's name: §2's `memory` object, made of a checked header's fields, canonical and digested."""
    names = ("architecture", "configDigest", "tokenizerDigest", "weightsDigest", "quantization")
    rope = {_snake(key): value for key, value in header["rope"].items()}
    rope |= {key: float(rope[key]) for key in ("rope_theta", "partial_rotary_factor")}
    fingerprint = {_snake(name): header["fingerprint"][name] for name in names}
    geometry = {_snake(name): header[name] for name in ("numLayers", "numKvHeads", "headDim", "dtype")}
    memory = {
        "fingerprint": fingerprint | {"model": header["sourceModel"]},
        "geometry": geometry | {"rope": rope},
        "seq_len": header["sequenceLength"],
        "start_pos": header["startPosition"],
        "coding": {_snake(key): value for key, value in header["coding"].items()},
    }
    for name in ("keySpace", "tokenDigest", "contentDigest", "attentionHeads", "derivedFrom"):
        memory[_snake(name)] = header[name]
    if header["prefixDigest"]:
        memory["prefix_digest"] = header["prefixDigest"]
    digest = hashlib.sha256(b"kvnet/memory/v1\0" + canonical(memory)).digest()
    return "mem_" + base32(digest)


def _snake(name: str) -> str:
    return re.sub(r"[A-Z]", lambda letter: "_" + letter.group().lower(), name)
