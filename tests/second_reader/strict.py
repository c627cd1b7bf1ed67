"""What both second readers stand on: the refusal, strict JSON (FORMAT.md §1), digests, node ids and
signatures.

Written from FORMAT.md alone, and imports nothing of kvnet: what both readers agree on is what the page says.
Knows no files and no tensors.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

import blake3
import nacl.exceptions
import nacl.signing

MAX_DOCUMENT_NBYTES = 1 << 20
MAX_DEPTH = 16
MAX_STRING_CHARS = 4096
MAX_INTEGER = (1 << 63) - 1

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)

Check = Callable[[Any], bool]


class Refused(Exception):
    """An input that FORMAT.md does not allow, with the code it is refused as."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(f"{code}: {why}")
        self.code = code
        self.why = why


def parse_strict(data: bytes, code: str, what: str) -> Any:
    """One strict JSON document as plain values; any breach of §1 is refused as `code`."""
    if len(data) > MAX_DOCUMENT_NBYTES:
        raise Refused(code, f"{what} has {len(data)} bytes")
    if _depth(data) > MAX_DEPTH:
        raise Refused(code, f"{what} is nested deeper than {MAX_DEPTH}")
    try:
        parsed = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_no_constant,
            parse_float=_float,
            parse_int=_int,
        )
        _check_strings(parsed)
    except ValueError as exc:
        raise Refused(code, f"{what} is not strict JSON: {exc}") from exc
    return parsed


def _depth(data: bytes) -> int:
    deepest = depth = 0
    for byte in _STRING.sub(b"", data):
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key appears twice")
    return dict(pairs)


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _float(text: str) -> float:
    if math.isinf(float(text)):
        raise ValueError("a number overflows a double")
    return float(text)


def _int(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > MAX_INTEGER:
        raise ValueError("an integer is beyond 63 bits")
    return int(text)


def _check_strings(value: Any) -> None:
    if isinstance(value, str):
        value.encode("utf-8")  # a lone surrogate raises UnicodeEncodeError, which is a ValueError
        if len(value) > MAX_STRING_CHARS:
            raise ValueError(f"a string has {len(value)} characters")
    elif isinstance(value, dict):
        for key, entry in value.items():
            _check_strings(key)
            _check_strings(entry)
    elif isinstance(value, list):
        for entry in value:
            _check_strings(entry)


def text(value: Any) -> bool:
    """A string."""
    return isinstance(value, str)


def boolean(value: Any) -> bool:
    """True or false."""
    return isinstance(value, bool)


def number(value: Any) -> bool:
    """A float, or an integer in its place; a boolean is no number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def count(low: int = 0, high: int = MAX_INTEGER) -> Check:
    """An integer from `low` to `high`."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def one_of(*allowed: str) -> Check:
    """One of these strings."""
    return lambda value: isinstance(value, str) and value in allowed


def digest(value: Any) -> bool:
    """`sha256:` and 64 lower-case hex digits."""
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def check_object(
    value: Any, required: Mapping[str, Check], optional: Mapping[str, Check], code: str, what: str
) -> None:
    """Refuse anything but an object with exactly these keys and types."""
    if not isinstance(value, dict):
        raise Refused(code, f"{what} is not an object")
    for key in required:
        if key not in value:
            raise Refused(code, f"{what} lacks {key}")
    for key, entry in value.items():
        check = required.get(key) or optional.get(key)
        if check is None:
            raise Refused(code, f"{what} has the unknown key {key!r:.40}")
        if not check(entry):
            raise Refused(code, f"{what}.{key} is {entry!r:.40}")


def canonical(value: Any) -> bytes:
    """The canonical document of §1."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def blake3_of(data: bytes) -> bytes:
    """The digest of a chunk."""
    return blake3.blake3(data).digest()


def checksum_of(sections: list[dict[str, Any]]) -> str:
    """The digest over the digests of a table's sections."""
    digests = b"".join(bytes.fromhex(section["blake3"]) for section in sections)
    return sha256_text(b"kvnet/chunks/v2\0" + digests)


def sha256_text(data: bytes) -> str:
    """`sha256:<hex>`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def base32(data: bytes) -> str:
    """Lower case, without padding."""
    return base64.b32encode(data).decode().rstrip("=").lower()


def key_of(node_id: str, code: str) -> bytes:
    """The 32 bytes of public key that a node id stands for."""
    try:
        key = base64.b32decode(node_id.upper() + "====")
    except (binascii.Error, ValueError) as exc:
        raise Refused(code, "signedBy is not base32") from exc
    if len(key) != 32 or base32(key) != node_id:
        raise Refused(code, "signedBy is not a node id")
    return key


def signed_bytes(kind: str, body: bytes) -> bytes:
    """What a signature over a message of this type covers (§2)."""
    name = kind.encode()
    return b"kvnet/message/v1\0" + struct.pack("<I", len(name)) + name + struct.pack("<Q", len(body)) + body


def check_signature(public: bytes, kind: str, body: bytes, signature: bytes) -> None:
    """Refuse as `bad_signature` what this key did not sign."""
    try:
        nacl.signing.VerifyKey(public).verify(signed_bytes(kind, body), signature)
    except (nacl.exceptions.BadSignatureError, ValueError) as exc:
        raise Refused("bad_signature", f"the signature over {kind} does not verify") from exc
