"""What is fuzzed: each target takes any bytes, and may raise nothing but a KvnetError. Knows no fuzzer.

Bytes of the target `file`, `memory` and `package` are whole files; those of the others begin with a few
bytes that choose geometry, coding or codec.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch

from kvnet.codec.basis import Basis
from kvnet.codec.chain import chain_for, piece_of
from kvnet.codec.coordinates import pack_coordinates, unpack_coordinates
from kvnet.errors import KvnetError
from kvnet.files.package import Package
from kvnet.files.reader import MemoryFile
from kvnet.format import strict_json
from kvnet.format.attention import unpack_attention
from kvnet.format.awkg import check_head, unpack_head
from kvnet.format.compress import decompress
from kvnet.plan import check_coding, plan_memory, raw_nbytes_range
from kvnet.types import Coding, Compression, DType, KeySpace, Kind, MemoryHeader, Rope, Scheme
from tests.hostile import bases
from tests.hostile.fuzz_folder import as_file
from tests.hostile.fuzz_messages import MESSAGE_TARGETS
from tests.hostile.kvnet_verdict import read_file
from tests.second_reader.strict import Refused, parse_strict

Target = Callable[[bytes], None]
_WIDTHS = (1, 2, 3, 8, 12)
_LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_ROPES = (
    Rope("default", 10000.0),
    Rope("linear", 1e4, 0.5, {"factor": 2.0}),
    Rope("llama3", 5e5, 1.0, _LLAMA3),
    Rope("yarn", 1e4, 1.0, {"factor": 4.0, "original_max_position_embeddings": 8}),
    Rope("dynamic", 1e4, 1.0, {"factor": 2.0, "max_position_embeddings": 8}),
)


def fuzz_strict_json(data: bytes) -> None:
    """kvnet's parser accepts what the second reader's accepts, with the same result."""
    try:
        wanted = repr(parse_strict(data, "malformed_message", ""))
    except Refused:
        wanted = ""
    try:
        parsed = strict_json.loads(data, what="fuzz")
        strict_json.check_strings(parsed, "fuzz")
    except KvnetError:
        if wanted:
            raise AssertionError(f"kvnet refuses what the second reader takes for {wanted:.200}") from None
        raise
    if repr(parsed) != wanted:
        raise AssertionError(f"kvnet reads {parsed!r:.200}, the second reader {wanted or 'nothing':.200}")


def fuzz_header(data: bytes) -> None:
    """Prelude and header of a memory file, unsigned, and whether they contradict themselves."""
    check_head(unpack_head(data))


def fuzz_file(data: bytes) -> None:
    """A memory file: head, signature, table, every section."""
    with MemoryFile.open(as_file(data, "fuzz.awkg")) as file:
        file.verify()


def fuzz_memory(data: bytes) -> None:
    """A memory file down to its numbers."""
    read_file(as_file(data, "fuzz.awkg"), _basis_bytes())


def fuzz_package(data: bytes) -> None:
    """A zipped package."""
    with Package.open(as_file(data, "fuzz.zip")) as package:
        package.verify()


def fuzz_decompress(data: bytes) -> None:
    """codec, itemsize and raw length, then wire bytes: exactly so many come out, or none."""
    head = data[:4].ljust(4, b"\0")
    raw_nbytes = int.from_bytes(head[2:4], "little") << (head[1] >> 5)
    raw = decompress(data[4:], Compression(head[0] % 4), raw_nbytes, itemsize=(2, 4)[head[1] & 1])
    if len(raw) != raw_nbytes:
        raise AssertionError(f"{len(raw)} bytes came out, wanted {raw_nbytes}")


def fuzz_raw(data: bytes) -> None:
    """Raw-coded keys or values."""
    _decode(data, Coding(pruned_heads=((0, 0),)))


def fuzz_grouped(data: bytes) -> None:
    """Keys or values of any grouped coding."""
    choice = data[4] if len(data) > 4 else 0
    bits = (8, 4)
    size = (8, 11, 32, 1024)[choice >> 3 & 3]
    coding = Coding(Scheme.GROUPED, bits[choice & 1], bits[choice >> 1 & 1], size, bool(choice & 4))
    _decode(data, coding)


def fuzz_transform(data: bytes) -> None:
    """Transform-coded keys or values, by the corpus's basis."""
    memory = _transform_header()
    kind = Kind(data[0] & 1) if data else Kind.KEY
    dtype = tuple(DType)[(data[0] >> 1) % 3] if data else DType.FLOAT16
    memory = replace(memory, geometry=replace(memory.geometry, dtype=dtype))
    chain = chain_for(memory, 0, kind, _basis())
    raw = data[1:].ljust(raw_nbytes_range(memory, plan_memory(memory)[kind])[0], b"\0")
    _check_finite(chain.decode(raw, piece_of(memory, 0, memory.seq_len)))


def fuzz_attention(data: bytes) -> None:
    """Attention metadata of up to 8 heads over up to 32 tokens."""
    head = data[:2].ljust(2, b"\0")
    memory = replace(_transform_header(), attention_heads=head[0] % 8 + 1, seq_len=head[1] % 32 + 1)
    unpack_attention(data[2:], memory, 0)


def fuzz_coordinates(data: bytes) -> None:
    """Bits, rank and number of slots, then coordinates: what is read is what would be written."""
    head = data[:3].ljust(3, b"\0")
    bits, rank, num_tokens = (8, 4)[head[0] & 1], head[1] % 9 + 1, head[2] % 40 + 1
    codes, sent = unpack_coordinates(data[3:], num_tokens, rank, bits)
    if pack_coordinates(codes, sent, bits) != data[3:]:
        raise AssertionError("coordinates were read that would be written otherwise")


TARGETS: dict[str, Target] = {
    "strict_json": fuzz_strict_json,
    "header": fuzz_header,
    "file": fuzz_file,
    "memory": fuzz_memory,
    "package": fuzz_package,
    "decompress": fuzz_decompress,
    "raw": fuzz_raw,
    "grouped": fuzz_grouped,
    "transform": fuzz_transform,
    "attention": fuzz_attention,
    "coordinates": fuzz_coordinates,
    **MESSAGE_TARGETS,
}


def run_target(name: str, data: bytes) -> str:
    """Feed one input; returns "ok" or the code of the refusal. Whatever else is raised is a bug found."""
    try:
        TARGETS[name](data)
    except KvnetError as exc:
        return exc.code
    return "ok"


def _decode(data: bytes, coding: Coding) -> None:
    """4 bytes choose heads, width, tokens, dtype, rope and kind; the 5th is the coding's; then raw bytes."""
    head = data[:5].ljust(5, b"\0")
    kind = Kind(head[3] & 1)
    turned = coding.scheme is not Scheme.RAW and head[3] & 2
    space = KeySpace.CONTENT if turned else KeySpace.ROTATED
    dtype = tuple(DType)[(head[3] >> 2) % 3]
    plain = _transform_header()
    geometry = replace(
        plain.geometry,
        num_kv_heads=head[0] % 3 + 1,
        head_dim=_WIDTHS[head[1] % len(_WIDTHS)],
        dtype=dtype,
        rope=_ROPES[(head[3] >> 5) % len(_ROPES)],
    )
    memory = replace(plain, geometry=geometry, seq_len=head[2] % 40 + 1, key_space=space, coding=coding)
    if wrong := check_coding(memory):
        raise AssertionError(f"the target made a coding that does not exist: {wrong}")
    key = plan_memory(memory)[kind]
    raw = data[5:]
    if head[3] & 16:  # the length that belongs, so that most inputs get past it
        wanted = raw_nbytes_range(memory, key)[0]
        raw = raw[:wanted].ljust(wanted, b"\0")
    chain = chain_for(memory, 0, kind)
    _check_finite(chain.decode(raw, piece_of(memory, key.start, key.stop)))


def _check_finite(tensor: torch.Tensor) -> None:
    if not bool(tensor.isfinite().all()):
        raise AssertionError("a decoder let NaN or infinity through")


@cache
def _transform_header() -> MemoryHeader:
    with MemoryFile.open(as_file(bases.transform().sign(), "transform.awkg")) as file:
        return file.header.memory


@cache
def _basis_bytes() -> bytes:
    return bases.transform().basis or b""


@cache
def _basis() -> Basis:
    return Basis.from_bytes(_basis_bytes(), _transform_header().geometry)
