"""An independent writer of `.awkg` version 3: random valid files from a seed. Source: FORMAT.md §3, §7, §8.

Imports nothing of kvnet. A draft is built in steps (raw bytes, wire bytes, table, signature), so that
whoever wants a file that breaks one rule changes the draft after the step before that rule and takes the
remaining steps as they are.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lz4.block
import nacl.signing
from backports import zstd

from tests.second_reader import chunk_writers
from tests.second_reader.chunks import ITEMSIZE
from tests.second_reader.rope_builder import random_rope
from tests.second_reader.strict import base32, blake3_of, canonical, checksum_of, sha256_text, signed_bytes

KEY = nacl.signing.SigningKey(b"\x07" * 32)
OTHER_KEY = nacl.signing.SigningKey(b"\x08" * 32)
SIGNATURE_TYPE = "kvnet/awkg/v3"
LABELS = {(8, 8): "int8", (8, 4): "k8v4", (4, 4): "int4", (4, 8): "k4v8"}
_MANY_CHUNKS_EVERY = 40  # seeds


def node_id(key: nacl.signing.SigningKey = KEY) -> str:
    """The node id of a key."""
    return base32(bytes(key.verify_key))


@dataclass(slots=True)
class Draft:
    """A file on its way: the parts that the next step has not sealed yet may still be changed."""

    header: dict[str, Any]
    plan: list[tuple[int, str, int, int]]
    raws: list[bytes] = field(default_factory=list)
    codecs: list[str] = field(default_factory=list)
    wires: list[bytes] = field(default_factory=list)
    basis: bytes | None = None

    def pack(self) -> Draft:
        """Raw to wire bytes by each section's codec; `none` where the codec does not shrink."""
        itemsize = ITEMSIZE[self.header["dtype"]]
        self.wires = []
        for i, raw in enumerate(self.raws):
            wire = PACKERS[self.codecs[i]](raw, itemsize)
            if len(wire) >= len(raw):
                self.codecs[i], wire = "none", raw
            self.wires.append(wire)
        return self

    def describe(self) -> Draft:
        """The table and the digests over raw and wire bytes."""
        offset, table = 0, []
        for part, raw, codec, wire in zip(self.plan, self.raws, self.codecs, self.wires, strict=True):
            section = dict(zip(("layer", "kind", "start", "stop"), part, strict=True))
            section |= {"offset": offset, "wireLength": len(wire), "rawLength": len(raw), "codec": codec}
            table.append(section | {"blake3": blake3_of(wire).hex()})
            offset += len(wire)
        digests = b"".join(blake3_of(raw) for raw in self.raws)
        self.header["sections"] = table
        self.header["checksum"] = checksum_of(table)
        self.header["contentDigest"] = sha256_text(b"kvnet/content/v2\0" + digests)
        return self

    @property
    def stored(self) -> bytes:
        """All section bytes in order."""
        return b"".join(self.wires)

    def sign(self) -> bytes:
        """The whole file."""
        return sign_file(
            json.dumps(self.header, ensure_ascii=False, separators=(",", ":")).encode(), self.stored
        )


def sign_file(
    header: bytes,
    stored: bytes,
    *,
    key: nacl.signing.SigningKey = KEY,
    kind: str = SIGNATURE_TYPE,
    version: int = 3,
) -> bytes:
    """Prelude, header, sections and the signature of `key` over the head."""
    head = b"AWKG" + struct.pack("<HI", version, len(header)) + header
    return head + stored + key.sign(signed_bytes(kind, head)).signature


def pack_zstd(raw: bytes, itemsize: int = 1) -> bytes:
    """One frame that states its raw length."""
    return zstd.compress(raw, 3)


def pack_zstd_undeclared(raw: bytes, itemsize: int = 1) -> bytes:
    """One frame that does not state its raw length."""
    frame = zstd.ZstdCompressor(3)
    return frame.compress(raw) + frame.flush()


def pack_lz4(raw: bytes, itemsize: int = 1) -> bytes:
    """An LZ4 block without stored size."""
    packed: bytes = lz4.block.compress(raw, store_size=False)
    return packed


def pack_split(raw: bytes, itemsize: int) -> bytes:
    """Byte planes, the most significant first, each a zstd frame where that is shorter."""
    parts = []
    for plane in reversed(range(itemsize)):
        whole = raw[plane::itemsize]
        packed = min(whole, zstd.compress(whole, 3), key=len)
        parts += [struct.pack("<I", len(packed)), packed]
    return b"".join(parts)


PACKERS: dict[str, Callable[[bytes, int], bytes]] = {
    "none": lambda raw, itemsize: raw,
    "lz4": pack_lz4,
    "zstd": pack_zstd,
    "split": pack_split,
}


def plan_of(header: dict[str, Any]) -> list[tuple[int, str, int, int]]:
    """Layer, kind, start and stop of every section (§3)."""
    seq_len, token_nbytes = header["sequenceLength"], header["numKvHeads"] * header["headDim"]
    step = max(1, (1 << 20) // (token_nbytes * ITEMSIZE[header["dtype"]]))
    plan = []
    for layer in range(header["numLayers"]):
        for kind in ("key", "value"):
            plan += [(layer, kind, start, min(seq_len, start + step)) for start in range(0, seq_len, step)]
        if header.get("attentionHeads"):
            plan.append((layer, "attention", 0, seq_len))
    return plan


def make_header(coding: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A header without table and digests: two layers of two heads, three tokens, unless `changes` say
    otherwise.
    """
    facts = {
        "architecture": "LlamaForCausalLM",
        "config_digest": sha256_text(b"config"),
        "tokenizer_digest": sha256_text(b"tokenizer"),
        "weights_digest": sha256_text(b"weights"),
        "quantization": "none",
    }
    names = ("architecture", "configDigest", "tokenizerDigest", "weightsDigest", "quantization")
    header: dict[str, Any] = {
        "version": 3,
        "sourceModel": "tiny",
        "sourceModelHash": sha256_text(b"kvnet/fingerprint/v1\0" + canonical(facts)),
        "fingerprint": dict(zip(names, facts.values(), strict=True)),
        "sequenceLength": 3,
        "startPosition": 0,
        "numLayers": 2,
        "numKvHeads": 2,
        "headDim": 4,
        "dtype": "float32",
        "rope": {"ropeType": "default", "ropeTheta": 10000.0},
        "keySpace": "rotated",
        "tokenDigest": sha256_text(b"tokens"),
        "coding": coding,
        "quantization": label_of(coding),
        "compression": "none",
        "compressionLevel": 0,
        "createdAt": "2026-02-16T10:00:00Z",
        "createdBy": "builder",
        "signedBy": node_id(),
        "metadata": {"domain": "", "topic": "", "languageHint": "en", "qualityScore": None},
    } | changes
    header["metadata"].setdefault("tokenCount", header["sequenceLength"])
    return header


def label_of(coding: dict[str, Any]) -> str:
    """`quantization` of a coding."""
    scheme = coding.get("scheme", "raw")
    if scheme == "grouped":
        return LABELS[coding["keyBits"], coding["valueBits"]]
    return {"raw": "none", "transform": "transform"}[scheme]


def make_draft(header: dict[str, Any], *, seed: int = 0, wanted: str = "none") -> Draft:
    """Random contents for this header, packed and described."""
    rng = random.Random(seed)
    draft = Draft(header, plan_of(header))
    if header["coding"].get("scheme") == "transform":
        draft.basis = chunk_writers.random_basis(rng, header)
        header["coding"] |= {"basis": sha256_text(draft.basis), "basisNbytes": len(draft.basis)}
    for part in draft.plan:
        draft.raws.append(chunk_writers.random_chunk(rng, header, part, draft.basis))
        whole = part[1] == "attention" or header["coding"].get("scheme", "raw") != "raw"
        draft.codecs.append("zstd" if wanted == "split" and whole else wanted)
    header["compression"] = wanted
    return draft.pack().describe()


def random_draft(seed: int) -> Draft:
    """A valid file of random geometry, coding and compression; the same for the same seed."""
    rng = random.Random(seed)
    many = seed % _MANY_CHUNKS_EVERY == 0
    dtype = rng.choice(["float32", "float16", "bfloat16"])
    heads, dim = rng.randint(1, 4), rng.choice([1, 2, 3, 5, 7, 8, 12, 16, 17, 32])
    seq_len = rng.choice([1, 2, rng.randint(3, 40)])
    layers = rng.randint(1, 3)
    if many:
        heads, dim, layers = 32, 256, 1
        seq_len = (1 << 20) // (heads * dim * ITEMSIZE[dtype]) + rng.randint(1, 4)
    changes: dict[str, Any] = {
        "numLayers": layers,
        "numKvHeads": heads,
        "headDim": dim,
        "sequenceLength": seq_len,
        "dtype": dtype,
        "startPosition": rng.choice([0, 0, 1, rng.randint(0, 5000)]),
        "rope": random_rope(rng, dim),
        "attentionHeads": rng.choice([0, heads, 2 * heads]),
        "metadata": {
            "domain": "x",
            "topic": 'é\n"',
            "languageHint": "",
            "qualityScore": rng.choice([None, 1, 0.5]),
        },
        "x-note": rng.choice([None, {"deep": [[1.5, True]]}, "\U0001f600"]),
    }
    if rng.random() < 0.5:
        changes |= {"wMatrixReference": "none yet", "alignment": {"any": [1, {"thing": None}]}}
    coding = _random_coding(rng, layers, heads)
    if coding.get("scheme", "raw") != "raw":
        changes["keySpace"] = rng.choice(["rotated", "content", "content"])
    header = make_header(coding, **changes)
    if header["coding"].get("scheme", "raw") != "raw" and rng.random() < 0.5:
        header["derivedFrom"] = "mem_" + base32(rng.randbytes(32))
    if rng.random() < 0.2:
        header["prefixDigest"] = "sha256:" + rng.randbytes(32).hex()
    draft = make_draft(header, seed=seed, wanted="zstd" if many else rng.choice(list(PACKERS)))
    if draft.header["compression"] == "zstd" and rng.random() < 0.3:
        packed = [(raw, pack_zstd_undeclared(raw)) for raw in draft.raws]
        draft.codecs = ["zstd" if len(wire) < len(raw) else "none" for raw, wire in packed]
        draft.wires = [min(pair, key=len) for pair in packed]
        draft.describe()
    return draft


def random_file(seed: int) -> tuple[bytes, bytes | None]:
    """A valid file and the basis it needs, if any. Keys stand in any order, with blanks between."""
    draft = random_draft(seed)
    rng = random.Random(~seed)
    keys = list(draft.header)
    rng.shuffle(keys)
    blanks = rng.choice([None, 1])
    text = json.dumps({key: draft.header[key] for key in keys}, indent=blanks, ensure_ascii=bool(blanks))
    return sign_file(text.encode(), draft.stored), draft.basis


def _random_coding(rng: random.Random, layers: int, heads: int) -> dict[str, Any]:
    scheme = rng.choice(["raw", "grouped", "transform"])
    coding: dict[str, Any] = {"scheme": scheme} if scheme != "raw" or rng.random() < 0.5 else {}
    if scheme == "grouped":
        coding |= {"keyBits": rng.choice([4, 8]), "valueBits": rng.choice([4, 8])}
        coding |= {"groupSize": rng.choice([8, 11, 32, 1024]), "hadamard": rng.random() < 0.5}
    if scheme == "transform":
        coding |= {"sinkTokens": rng.randint(0, 4), "recentTokens": rng.randint(0, 6)}
    if rng.random() < 0.3:
        pairs = {(rng.randrange(layers), rng.randrange(heads)) for _ in range(2)}
        coding["prunedHeads"] = [list(pair) for pair in sorted(pairs)]
    return coding
