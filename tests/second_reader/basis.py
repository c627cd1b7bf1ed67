"""The calibration of a transform coding: a safetensors file of float32 tensors (FORMAT.md §8.3).

Imports nothing of kvnet. Knows no codes and no headers.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.second_reader.strict import Refused, parse_strict

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Basis:
    """mean [C] and backward [r, C] by layer and kind."""

    means: dict[tuple[int, str], Floats]
    backwards: dict[tuple[int, str], Floats]


def read_basis(data: bytes, num_layers: int, channels: int) -> Basis:
    """A basis from its bytes; with another geometry or other tensors it is refused as `malformed_file`."""
    try:
        tensors = _read_safetensors(data)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise Refused("malformed_file", "the basis is no safetensors file") from exc
    means, backwards = {}, {}
    for layer in range(num_layers):
        for kind in ("key", "value"):
            mean, forward, backward = (
                tensors.pop(f"{layer}.{kind}.{name}", np.empty(0, np.float32))
                for name in ("mean", "forward", "backward")
            )
            rank = len(backward)
            if mean.shape != (channels,) or not 1 <= rank <= channels:
                raise Refused("malformed_file", f"the basis has no layer {layer} of {channels} channels")
            if not all(np.isfinite(part).all() for part in (mean, forward, backward)):
                raise Refused("malformed_file", "the basis holds NaN or infinity")
            if forward.shape != (channels, rank) or backward.shape != (rank, channels):
                raise Refused("malformed_file", f"the basis has no layer {layer} of {channels} channels")
            means[layer, kind], backwards[layer, kind] = mean, backward
    if tensors:
        raise Refused("malformed_file", "the basis has tensors that no layer has")
    return Basis(means, backwards)


def _read_safetensors(data: bytes) -> dict[str, Floats]:
    """Every tensor; uint64 header length, JSON header, then the tensors without hole or overlap."""
    nbytes = int.from_bytes(data[:8], "little")
    if len(data) < 8 or len(data) < 8 + nbytes:
        raise Refused("malformed_file", "the basis ends within its header")
    table, body = parse_strict(data[8 : 8 + nbytes], "malformed_file", "the basis"), data[8 + nbytes :]
    table.pop("__metadata__", None)
    found, end = {}, 0
    for name, entry in sorted(table.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        shape = tuple(entry["shape"])
        if (
            entry["dtype"] != "F32"
            or start != end
            or stop - start != 4 * int(np.prod(shape))
            or stop > len(body)
        ):
            raise Refused("malformed_file", f"the basis has a tensor {name!r:.40} that is not where it says")
        found[name] = np.frombuffer(body[start:stop], "<f4").reshape(shape)
        end = stop
    if end != len(body):
        raise Refused("malformed_file", "the basis has bytes behind its last tensor")
    return found


def write_basis(tensors: dict[str, Floats]) -> bytes:
    """Inverse of the reader: the bytes of these tensors, in this order."""
    table, body = [], b""
    for name, tensor in tensors.items():
        stop = len(body) + tensor.nbytes
        shape = ",".join(map(str, tensor.shape))
        table.append(f'"{name}":{{"dtype":"F32","shape":[{shape}],"data_offsets":[{len(body)},{stop}]}}')
        body += tensor.astype("<f4").tobytes()
    head = ("{" + ",".join(table) + "}").encode()
    return struct.pack("<Q", len(head)) + head + body
