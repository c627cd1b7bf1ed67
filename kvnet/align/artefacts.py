"""Maps and ports to their signed files and back. Knows tensors and manifests; no folders, no models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import safetensors.torch
import torch

from kvnet.align.map import AlignmentMap
from kvnet.align.port import Port
from kvnet.alignment import Manifest, MapManifest, PortManifest, intake_of
from kvnet.codec.pack import pack
from kvnet.errors import MalformedFile
from kvnet.files.alignments import TensorBytes, VerifiedAlignment, read_alignment, write_alignment
from kvnet.identity.keys import NodeKey
from kvnet.types import DType

_WIDE_RANGE: Final = ("anchor", "known_scale")


def sign_alignment(
    manifest: Manifest, tensors: Mapping[str, torch.Tensor], key: NodeKey, *, dtype: DType = DType.FLOAT16
) -> VerifiedAlignment:
    """A map's or port's file, its digest filled in. `dtype` is that of the matrices; vectors stay float32.

    Halves are enough: what a port or a map loses by them is far below what its wire loses.
    """
    stored = {}
    for name, tensor in tensors.items():
        kept = dtype if tensor.ndim == 2 and name not in _WIDE_RANGE else DType.FLOAT32
        cast = tensor.to(torch.float16 if kept is DType.FLOAT16 else torch.float32).contiguous()
        stored[name] = TensorBytes(kept, tuple(tensor.shape), pack(cast))
    return read_alignment(write_alignment(manifest, stored, key))


def load_port(verified: VerifiedAlignment) -> Port:
    """The port in a verified file. Raises MalformedFile, and NotFinite for numbers that no port has."""
    manifest = verified.manifest
    if not isinstance(manifest, PortManifest):
        raise MalformedFile(f"{manifest.id} is a {verified.kind}, wanted a port; name the port instead")
    tensors = safetensors.torch.load(bytes(verified.encoded))
    return Port.from_tensors(tensors, rank=manifest.rank, intake=intake_of(manifest))


def load_map(verified: VerifiedAlignment, port: Port | None) -> AlignmentMap:
    """The map in a verified file, ending in `port` or, without one, in what the receiver takes.

    Raises MalformedFile, NotFinite.
    """
    manifest = verified.manifest
    if not isinstance(manifest, MapManifest):
        raise MalformedFile(f"{manifest.id} is a {verified.kind}, wanted a map; name the map instead")
    tensors = safetensors.torch.load(bytes(verified.encoded))
    rank = intake_of(manifest).width if port is None else port.rank
    return AlignmentMap.from_tensors(manifest, tensors, rank=rank)
