"""Inputs for the fuzz targets: seeds from the corpus, and mutations that are signed again.

A mutated file whose signature does not hold shows nothing but that; here the head is signed anew, and
mostly the digests in it are made right first, so that what was changed is reached. Knows no fuzzer:
`scramble` stands in for its mutations where none is at hand.
"""

from __future__ import annotations

import io
import json
import random
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tests.hostile import bases, recipes_port
from tests.hostile.fuzz_message_inputs import message_seeds, mutate_message
from tests.hostile.fuzz_messages import MESSAGE_TARGETS
from tests.hostile.make_corpus import all_cases
from tests.hostile.open_differences import OPEN_DIFFERENCES
from tests.hostile.recipes_package import plain_files
from tests.hostile.zips import Entry, write_zip
from tests.second_reader.awkg_builder import Draft, sign_file
from tests.second_reader.chunks import ITEMSIZE, decompress
from tests.second_reader.package_builder import sign_package
from tests.second_reader.strict import Refused, blake3_of, checksum_of, sha256_text

Scramble = Callable[[bytes, int], bytes]  # (data, largest result) -> data
_SIGNATURE_NBYTES = 64
_LARGEST_SEED_NBYTES = 8192
_VALUES: tuple[Any, ...] = (
    *(0, 1, -1, 2, 16, 255, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 1.5, -0.0, 1e300, 1e-320),
    *(
        True,
        None,
        "",
        "a" * 4097,
        "none",
        "lz4",
        "zstd",
        "split",
        "content",
        "float16",
        "llama3",
        [],
        {},
        [[0, 0]],
    ),
)


def seeds(target: str) -> list[bytes]:
    """Where a target starts from: the corpus, cut to what the target reads."""
    if target in MESSAGE_TARGETS:
        return message_seeds(target)
    # A seed that already fails would be all that the fuzzer finds.
    files = [case for case in all_cases() if case.suffix and case.name not in OPEN_DIFFERENCES]
    wanted = ".zip" if target == "package" else ".awkg"
    whole = [case.files[""] for case in files if case.suffix == wanted]
    whole = [data for data in whole if len(data) <= _LARGEST_SEED_NBYTES]
    if target in ("file", "memory", "package"):
        return whole
    if target == "header":
        return [data[: 10 + _header_nbytes(data)] for data in whole]
    if target == "strict_json":
        return [data[10 : 10 + _header_nbytes(data)] for data in whole]
    return _CHUNK_SEEDS[target]()


def _header_nbytes(data: bytes) -> int:
    return int.from_bytes(data[6:10], "little")


def _decompress_seeds() -> list[bytes]:
    found = []
    for case in all_cases():
        header = _header_of(case.files.get("", b"")) if case.suffix == ".awkg" else None
        if header is not None and case.name.split("_")[0] in ("valid", "lz4", "zstd", "split"):
            section = header["sections"][0]
            codec = ("none", "lz4", "zstd", "split").index(section["codec"])
            at = 10 + _header_nbytes(case.files[""])
            wire = case.files[""][at : at + section["wireLength"]]
            found.append(bytes([codec, 1]) + section["rawLength"].to_bytes(4, "little")[:2] + wire)
    return found


def _chunk_seeds(make: Callable[[], Draft], head: bytes, index: int) -> list[bytes]:
    return [head + make().raws[index], head, head + bytes(64)]


_CHUNK_SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "decompress": _decompress_seeds,
    "raw": lambda: _chunk_seeds(bases.small, bytes([1, 0, 2, 16, 0]), 0),
    "grouped": lambda: [
        seed
        for kind in (0, 1)
        for choice in range(8)
        for seed in _chunk_seeds(bases.grouped, bytes([0, 2, 10, 20 | kind, choice]), kind)
    ],
    "transform": lambda: [
        seed for kind in (0, 1) for seed in _chunk_seeds(bases.transform, bytes([kind | 2]), kind)
    ],
    "attention": lambda: _chunk_seeds(bases.raw, bytes([1, 2]), 2),
    "coordinates": lambda: [
        bytes([bits == 4, recipes_port.RANK - 1, recipes_port.NUM_TOKENS - 1])
        + recipes_port.coordinates(bits).raws[0]
        for bits in (4, 8)
    ],
}


def mutate(target: str, data: bytes, max_nbytes: int, rng: random.Random, scramble: Scramble) -> bytes:
    """One mutation of an input, signed again where the target looks at signatures."""
    if target in MESSAGE_TARGETS:
        return mutate_message(target, data, rng, lambda text: _mutate_json(text, max_nbytes, rng, scramble))
    if target in ("file", "memory") and rng.random() < 0.9:
        return _mutate_file(data, max_nbytes, rng, scramble)
    if target == "header" and rng.random() < 0.9:
        text = _mutate_json(data[10:], max_nbytes, rng, scramble)
        return b"AWKG\2\0" + len(text).to_bytes(4, "little") + text
    if target == "strict_json" and rng.random() < 0.5:
        return _mutate_json(data, max_nbytes, rng, scramble)
    if target == "package" and rng.random() < 0.8:
        return _mutate_package(data, max_nbytes, rng, scramble)
    return scramble(data, max_nbytes)


def scrambler(rng: random.Random) -> Scramble:
    """A few bytes changed, cut out or put in: what a fuzzer does, without its memory."""

    def scramble(data: bytes, max_nbytes: int) -> bytes:
        changed = bytearray(data or b"\0")
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(changed) + 1)
            kind = rng.randrange(4)
            if kind == 0 and at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                changed[at : at + rng.randint(1, 8)] = b""
            elif kind == 2:
                changed[at:at] = rng.randbytes(rng.randint(1, 8))
            else:
                changed[at : at + 4] = rng.choice((bytes(4), b"\xff" * 4, b"\0\0\xc0\x7f", b"\0\0\0\x80"))
        return bytes(changed[:max_nbytes])

    return scramble


def _header_of(data: bytes) -> dict[str, Any] | None:
    try:
        header = json.loads(data[10 : 10 + _header_nbytes(data)])
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) and isinstance(header.get("sections"), list) else None


def _mutate_json(text: bytes, max_nbytes: int, rng: random.Random, scramble: Scramble) -> bytes:
    """Half of the time a value somewhere becomes another, half of the time the text is scrambled."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if document is None or rng.random() < 0.5:
        return scramble(text, max_nbytes)
    _change_somewhere(document, rng)
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def _change_somewhere(node: Any, rng: random.Random) -> None:
    while isinstance(node, (dict, list)) and node:
        place = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if isinstance(node[place], (dict, list)) and node[place] and rng.random() < 0.85:
            node = node[place]
            continue
        if rng.random() < 0.15:
            del node[place]
        else:
            node[place] = rng.choice(_VALUES)
        return


def _mutate_file(data: bytes, max_nbytes: int, rng: random.Random, scramble: Scramble) -> bytes:
    at = 10 + _header_nbytes(data)
    text, stored = data[10:at], data[at:-_SIGNATURE_NBYTES]
    header = _header_of(data)
    if header is not None and rng.random() < 0.5:
        stored = scramble(stored, max_nbytes) if rng.random() < 0.3 else _scramble_in_place(stored, rng)
        _describe(header, stored)
        text = json.dumps(header, separators=(",", ":")).encode()
    else:
        text = _mutate_json(text, max_nbytes, rng, scramble)
    return sign_file(text, stored)


def _scramble_in_place(stored: bytes, rng: random.Random) -> bytes:
    changed = bytearray(stored)
    for _ in range(rng.randint(1, 3)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    return bytes(changed)


def _describe(header: dict[str, Any], stored: bytes) -> None:
    """Digests of these section bytes into a header, as far as its table makes sense."""
    digests = []
    for section in header["sections"]:
        try:
            wire = stored[section["offset"] : section["offset"] + section["wireLength"]]
            section["blake3"] = blake3_of(wire).hex()
            raw = decompress(
                wire, section["codec"], min(section["rawLength"], 1 << 20), ITEMSIZE[header["dtype"]]
            )
            digests.append(blake3_of(raw))
        except (Refused, TypeError, KeyError, ValueError, OverflowError):
            digests.append(bytes(32))
    with suppress(TypeError, KeyError, ValueError):
        header["checksum"] = checksum_of(header["sections"])
    header["contentDigest"] = sha256_text(b"kvnet/content/v2\0" + b"".join(digests))


def _mutate_package(data: bytes, max_nbytes: int, rng: random.Random, scramble: Scramble) -> bytes:
    """One file of the package changed, the list signed again; or an entry of the zip."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files = {name: archive.read(name) for name in archive.namelist() if name != "signature.sig"}
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, RuntimeError, KeyError, EOFError):
        files = {}
    files = files or plain_files()
    name = rng.choice(sorted(files))
    if name.endswith(".json"):
        files[name] = _mutate_json(files[name], max_nbytes, rng, scramble)
    elif name.endswith(".awkg"):
        files[name] = _mutate_file(files[name], max_nbytes, rng, scramble)
    else:
        files[name] = scramble(files[name], max_nbytes)
    signed = sign_package(files)
    if rng.random() < 0.3:
        signed["signature.sig"] = _mutate_json(signed["signature.sig"], max_nbytes, rng, scramble)
    packed = write_zip([Entry(path, content) for path, content in signed.items() if path.isprintable()])
    return scramble(packed, max_nbytes) if rng.random() < 0.3 else packed
