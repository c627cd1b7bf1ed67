"""Manifests of maps and ports as strict JSON: their forms, their bounds, and which tensors they go with.

Knows no files, no keys and no numbers. Source: FORMAT.md §10.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from kvnet.alignment import (
    AlignmentKind,
    Interval,
    Manifest,
    MapManifest,
    Method,
    PortManifest,
    feature_width,
    intake_of,
    uses_of,
)
from kvnet.errors import MalformedFile, MalformedMessage
from kvnet.format import strict_json
from kvnet.plan import MAX_PORT_RANK
from kvnet.types import Geometry, canonical_json, to_plain

MAX_MANIFEST_NBYTES: Final = 64 << 10
MAX_WINDOW_OFFSET: Final = 64
MAX_RESIDUAL_WIDTH: Final = 4096
MAX_KNOWN_WIDTH: Final = 64
MAX_HIDDEN_SIZE: Final = 1 << 16
WHAT: Final = "alignment manifest"

Shape = tuple[int, ...]

_MANIFESTS: Final[dict[AlignmentKind, type[Manifest]]] = {
    AlignmentKind.MAP: MapManifest,
    AlignmentKind.PORT: PortManifest,
}
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_PORT: Final = re.compile(r"(port_[a-z2-7]{51}[aq])?")
_GEOMETRY: Final = {"num_layers": 512, "num_kv_heads": 256, "head_dim": 1024}  # as FORMAT.md §7.1


def encode_manifest(manifest: Manifest) -> bytes:
    """The canonical JSON of a manifest: what is signed and hashed into its id."""
    return canonical_json(to_plain(manifest))


def decode_manifest(kind: AlignmentKind, encoded: bytes) -> Manifest:
    """Inverse of `encode_manifest`, for bytes from anywhere.

    Raises MalformedFile for another spelling, for fields of other names or types, and for values out of
    bounds.
    """
    try:
        plain = strict_json.loads(encoded, what=WHAT, max_nbytes=MAX_MANIFEST_NBYTES)
        windows = _take_windows(plain)
        manifest: Manifest = strict_json.from_plain(_MANIFESTS[kind], plain, what=WHAT)
    except MalformedMessage as exc:
        raise MalformedFile(exc.message) from exc
    if isinstance(manifest, MapManifest):
        manifest = replace(manifest, **windows)
    if encode_manifest(manifest) != encoded:
        raise MalformedFile(f"{WHAT}: not written as canonical JSON, so it would have two names")
    _check(manifest)
    return manifest


def tensor_shapes(
    manifest: Manifest, rank: int, *, has_anchor: bool, residual_width: int, known_width: int
) -> dict[str, Shape]:
    """Name -> shape of every tensor that goes with a manifest.

    Of a map, `rank` is the number of coordinates it ends in, for those that end in a port, and
    `residual_width` that of a residual's hidden numbers, for those that were trained; `known_width` that of
    the directions in which a map knows how far its texts reach, 0 where it knows none.
    """
    if isinstance(manifest, PortManifest):
        width = intake_of(manifest).width
        return {
            "basis": (manifest.rank, width),
            "mean": (width,),
            "project": (width, manifest.rank),
            "step4": (manifest.rank,),
            "step8": (manifest.rank,),
        }
    stacked = feature_width(manifest)
    out = rank if manifest.port else intake_of(manifest).width
    anchor: dict[str, Shape] = {"anchor": (stacked, 1), "anchor_bias": (1,)} if has_anchor else {}
    residual: dict[str, Shape] = {}
    if manifest.method is Method.TRAINED:
        residual = {
            "residual_in": (stacked, residual_width),
            "residual_in_bias": (residual_width,),
            "residual_out": (residual_width, out),
        }
    known: dict[str, Shape] = {}
    if known_width:
        known = {"known_mean": (out,), "known_scale": (out, known_width), "known_bound": (1,)}
    return {**anchor, **known, **residual, "encoder": (stacked, out), "encoder_bias": (out,)}


def _take_windows(plain: Any) -> dict[str, Any]:
    """Take a map's windows out: their offsets may be negative, which `from_plain` lets no integer be.

    What is no list stays for `from_plain` to judge; of the others it sees an empty one.
    """
    taken: dict[str, Any] = {}
    for name in ("window", "far_window"):
        offsets = plain.get(name) if isinstance(plain, dict) else None
        if not isinstance(offsets, list):
            continue
        if len(offsets) != 2 or not all(type(offset) is int for offset in offsets):
            raise MalformedMessage(f"{WHAT}.{name}: {offsets!r:.60}, wanted two integers")
        taken[name] = tuple(offsets)
        plain[name] = []
    return taken


def _check(manifest: Manifest) -> None:
    """What types cannot say. Raises MalformedFile."""
    for name in ("corpus_digest", "tensors_digest"):
        if not _DIGEST.fullmatch(getattr(manifest, name)):
            raise MalformedFile(f"{WHAT}: {name} is not `sha256:` and 64 lower-case hex digits")
    if not _is_time(manifest.created_at):
        raise MalformedFile(f"{WHAT}: created_at is {manifest.created_at!r:.40}, wanted YYYY-MM-DDThh:mm:ssZ")
    if isinstance(manifest, PortManifest):
        _check_geometry("geometry", manifest.geometry)
        _check_states(manifest)
        if not 1 <= manifest.rank <= MAX_PORT_RANK:
            raise MalformedFile(f"{WHAT}: rank is {manifest.rank}, allowed are 1 to {MAX_PORT_RANK}")
    else:
        _check_map(manifest)


def _check_map(manifest: MapManifest) -> None:
    _check_geometry("source_geometry", manifest.source_geometry)
    _check_geometry("receiver_geometry", manifest.receiver_geometry)
    if not _PORT.fullmatch(manifest.port):
        raise MalformedFile(f"{WHAT}: port is {manifest.port!r:.60}, wanted a port's id or nothing")
    if manifest.port and manifest.state_layers:
        raise MalformedFile(f"{WHAT}: has state_layers and a port, which has its own; wanted one of the two")
    _check_states(manifest)
    _check_windows(manifest)
    if manifest.relative_lambda < 0:
        raise MalformedFile(f"{WHAT}: relative_lambda is {manifest.relative_lambda}, wanted 0 or more")
    _check_gate(manifest)


def _check_states(manifest: Manifest) -> None:
    layers, intake = manifest.state_layers, intake_of(manifest)
    if list(layers) != sorted(set(layers)) or any(not 1 <= i < intake.geometry.num_layers for i in layers):
        raise MalformedFile(
            f"{WHAT}: state_layers is {list(layers)!s:.60}, wanted some of the layers 1 to "
            f"{intake.geometry.num_layers - 1}, ascending"
        )
    if bool(layers) != bool(manifest.hidden_size) or manifest.hidden_size > MAX_HIDDEN_SIZE:
        raise MalformedFile(
            f"{WHAT}: hidden_size is {manifest.hidden_size} with {len(layers)} state_layers, "
            f"wanted 0 without any and at most {MAX_HIDDEN_SIZE}"
        )


def _check_gate(manifest: MapManifest) -> None:
    gate = manifest.gate
    for name in ("recall_text", "recall_none", "recall_mapped"):
        _check_share(f"gate.{name}", getattr(gate, name))
    _check_kl("gate.kl", gate.kl)
    _check_kl("gate.kl_shuffled", gate.kl_shuffled)
    if not -1 <= gate.attention_cosine <= 1:
        raise MalformedFile(f"{WHAT}: gate.attention_cosine is {gate.attention_cosine}, wanted -1 to 1")
    _check_interval("gate.gap_recovered", gate.gap_recovered)
    told, wanted = tuple(one.use for one in gate.uses), uses_of(manifest)
    if told not in ((), wanted):
        raise MalformedFile(
            f"{WHAT}: gate.uses is {', '.join(told):.60}, wanted {', '.join(wanted):.60}, or none"
        )
    for one in gate.uses:
        _check_share(f"gate.uses.{one.use}.recall_mapped", one.recall_mapped)
        _check_kl(f"gate.uses.{one.use}.kl", one.kl)
        _check_interval(f"gate.uses.{one.use}.gap_recovered", one.gap_recovered)


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise MalformedFile(f"{WHAT}: {name} is {share}, wanted 0 to 1")


def _check_kl(name: str, kl: float) -> None:
    if kl < 0:
        raise MalformedFile(f"{WHAT}: {name} is {kl}, wanted 0 or more")


def _check_interval(name: str, interval: Interval) -> None:
    if interval.low > interval.high:
        raise MalformedFile(f"{WHAT}: {name} ends before it begins")


def _check_windows(manifest: MapManifest) -> None:
    low, high = manifest.window
    _check_window("window", low, high)
    layers, num_layers = manifest.source_layers, manifest.source_geometry.num_layers
    if not layers or max(layers) >= num_layers or len(set(layers)) != len(layers):
        raise MalformedFile(
            f"{WHAT}: source_layers is {list(layers)!s:.60}, wanted some of {num_layers} layers, each once"
        )
    far_layers = manifest.far_layers
    if manifest.far_window is None:
        if far_layers:
            raise MalformedFile(f"{WHAT}: far_layers without a far_window, wanted both or neither")
        return
    far_low, far_high = manifest.far_window
    _check_window("far_window", far_low, far_high)
    if far_low <= high and low <= far_high:
        raise MalformedFile(
            f"{WHAT}: far_window is {far_low} to {far_high}, "
            f"wanted none of the window's offsets, {low} to {high}"
        )
    if not far_layers or max(far_layers) >= num_layers or list(far_layers) != sorted(set(far_layers)):
        raise MalformedFile(
            f"{WHAT}: far_layers is {list(far_layers)!s:.60}, wanted some of {num_layers} layers, ascending"
        )


def _check_window(name: str, low: int, high: int) -> None:
    if not -MAX_WINDOW_OFFSET <= low <= high <= MAX_WINDOW_OFFSET:
        raise MalformedFile(
            f"{WHAT}: {name} is {low} to {high}, wanted ascending offsets within {MAX_WINDOW_OFFSET}"
        )


def _check_geometry(what: str, geometry: Geometry) -> None:
    for name, most in _GEOMETRY.items():
        value = getattr(geometry, name)
        if not 1 <= value <= most:
            raise MalformedFile(f"{WHAT}: {what}.{name} is {value}, allowed are 1 to {most}")


def _is_time(text: str) -> bool:
    if not _TIME.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
