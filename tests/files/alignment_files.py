"""Small maps and ports for the tests, and what of a file one may change without its reader's consent."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import struct
from dataclasses import fields, replace
from typing import Any

from kvnet.alignment import (
    GateResult,
    Interval,
    LayerStrategy,
    Manifest,
    MapManifest,
    Method,
    Pairing,
    PortManifest,
    Use,
    UseResult,
    intake_of,
    row_width,
    uses_of,
)
from kvnet.files.alignments import TensorBytes, write_alignment
from kvnet.identity.keys import NodeKey
from kvnet.types import DType, Fingerprint, canonical_json, sha256_hex
from tests.builders import SENDER, make_fingerprint, make_geometry

WHEN = "2024-01-15T08:00:00Z"
RANK = 3
SOURCE = make_fingerprint(model="from", weights_digest=sha256_hex(b"source"))
RECEIVER_MODEL = make_fingerprint()  # what the nodes of the tests host
RECEIVER_GEOMETRY = make_geometry()
SOURCE_GEOMETRY = make_geometry(num_layers=2, num_kv_heads=1)
GATE = GateResult(
    admitted=True,
    reason="it recovers 0.9 of the gap",
    num_questions=200,
    num_texts=50,
    recall_text=0.96,
    recall_none=0.02,
    recall_mapped=0.86,
    gap_recovered=Interval(0.89, 0.84, 0.94),
    gap_shuffled=-0.01,
    kl=0.25,
    kl_shuffled=4.5,
    attention_cosine=0.97,
    uses=(UseResult(Use.UNCLOSED, True, 0.85, Interval(0.88, 0.83, 0.93), 0.26),),
)


def make_port(**changes: Any) -> PortManifest:
    """A port of RANK coordinates into RECEIVER_MODEL."""
    plain = PortManifest(
        receiver=RECEIVER_MODEL,
        geometry=RECEIVER_GEOMETRY,
        state_layers=(),
        hidden_size=0,
        rank=RANK,
        corpus_digest=sha256_hex(b"corpus"),
        num_rows=1000,
        created_at=WHEN,
        tensors_digest="",
    )
    return replace(plain, **changes)


def make_map(**changes: Any) -> MapManifest:
    """An admitted map from SOURCE to the rows of RECEIVER_MODEL, of a window of three slots."""
    values: dict[str, Any] = {
        "source": SOURCE,
        "source_geometry": SOURCE_GEOMETRY,
        "receiver": RECEIVER_MODEL,
        "receiver_geometry": RECEIVER_GEOMETRY,
        "port": "",
        "state_layers": (),
        "hidden_size": 0,
        "method": Method.RIDGE,
        "pairing": Pairing.TOKENS,
        "layer_strategy": LayerStrategy.LEARNED,
        "source_layers": (1, 0),
        "num_sinks": 1,
        "window": (-1, 1),
        "far_window": None,
        "far_layers": (),
        "closing": " So.",
        "relative_lambda": 1e-6,
        "corpus_digest": sha256_hex(b"corpus"),
        "num_contexts": 40,
        "num_rows": 2000,
        "created_at": WHEN,
        "tensors_digest": "",
        "gate": GATE,
        **changes,
    }
    known = {field.name for field in fields(MapManifest)}
    made = MapManifest(**{name: value for name, value in values.items() if name in known})
    return made if "gate" in changes and changes["gate"].uses != GATE.uses else judged_in(made)


def judged_in(manifest: MapManifest, *admitted: Use) -> MapManifest:
    """The manifest with figures of every use that it has; admitted are these, or all if none is named."""
    (figures,) = GATE.uses
    uses = tuple(
        replace(figures, use=use, admitted=not admitted or use in admitted) for use in uses_of(manifest)
    )
    return replace(manifest, gate=replace(manifest.gate, uses=uses))


def make_tensors(manifest: Manifest, *, seed: int = 0, half: bool = False) -> dict[str, TensorBytes]:
    """The tensors of a manifest, of a map with anchors; with `half` its largest is float16."""
    shapes: dict[str, tuple[int, ...]]
    if isinstance(manifest, PortManifest):
        width = intake_of(manifest).width
        shapes = {
            "basis": (manifest.rank, width),
            "mean": (width,),
            "project": (width, manifest.rank),
            "step8": (manifest.rank,),
            "step4": (manifest.rank,),
        }
    else:
        seen = [(slot, layer) for slot in slots_in(manifest.window) for layer in manifest.source_layers]
        if manifest.far_window is not None:
            seen += [(slot, layer) for slot in slots_in(manifest.far_window) for layer in manifest.far_layers]
        stacked = len(seen) * row_width(replace(manifest.source_geometry, num_layers=1))
        out = RANK if manifest.port else intake_of(manifest).width
        shapes = {
            "encoder": (stacked, out),
            "encoder_bias": (out,),
            "anchor": (stacked, 1),
            "anchor_bias": (1,),
        }
    source = random.Random(seed)
    return {
        name: make_tensor(shape, source, half=half and name in ("basis", "encoder"))
        for name, shape in shapes.items()
    }


def slots_in(window: tuple[int, int]) -> range:
    """The offsets of a window."""
    return range(window[0], window[1] + 1)


def make_tensor(shape: tuple[int, ...], source: random.Random, *, half: bool = False) -> TensorBytes:
    """Small random numbers."""
    count = 1
    for size in shape:
        count *= size
    numbers = [source.randint(-64, 64) / 32 for _ in range(count)]
    data = struct.pack(f"<{count}{'e' if half else 'f'}", *numbers)
    return TensorBytes(DType.FLOAT16 if half else DType.FLOAT32, shape, data)


def make_map_file(*, key: NodeKey = SENDER, seed: int = 0, **changes: Any) -> bytes:
    """A whole map."""
    manifest = make_map(**changes)
    return write_alignment(manifest, make_tensors(manifest, seed=seed), key)


def make_port_file(*, key: NodeKey = SENDER, seed: int = 0, **changes: Any) -> bytes:
    """A whole port."""
    manifest = make_port(**changes)
    return write_alignment(manifest, make_tensors(manifest, seed=seed), key)


def other_model(name: str) -> Fingerprint:
    """A model of this name that is none of the others."""
    return make_fingerprint(model=name, weights_digest=sha256_hex(name.encode()))


def header_of(encoded: bytes) -> Any:
    """The header of a file."""
    (nbytes,) = struct.unpack_from("<Q", encoded)
    return json.loads(encoded[8 : 8 + nbytes])


def data_of(encoded: bytes) -> bytes:
    """The bytes of a file's tensors."""
    (nbytes,) = struct.unpack_from("<Q", encoded)
    return encoded[8 + nbytes :]


def with_header(header: bytes, data: bytes) -> bytes:
    """A file with this header, padded as it must be."""
    padded = header + b" " * (-len(header) % 8)
    return struct.pack("<Q", len(padded)) + padded + data


def rebuilt(header: Any, data: bytes) -> bytes:
    """A file with this header in canonical JSON."""
    return with_header(canonical_json(header), data)


def signed(header: Any, data: bytes, *, key: NodeKey = SENDER, redigest: bool = True) -> bytes:
    """A file as a signer makes it who follows no other rule: digest and signature are right."""
    metadata = header["__metadata__"]
    if redigest:
        table = {name: entry for name, entry in header.items() if name != "__metadata__"}
        manifest = json.loads(metadata["manifest"])
        digest = hashlib.sha256(canonical_json(table) + data).hexdigest()
        metadata["manifest"] = canonical_json({**manifest, "tensors_digest": f"sha256:{digest}"}).decode()
    body = f"{metadata['kind']}\0{metadata['manifest']}".encode()
    signature = key.sign(b"kvnet/alignment/v1\0" + hashlib.sha256(body).digest())
    metadata |= {"signer": key.node_id, "signature": base64.b64encode(signature).decode()}
    return rebuilt(header, data)
