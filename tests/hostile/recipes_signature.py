"""Files whose signature is not their head's, or whose bytes are not those signed: rules 4, 9 and 11."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from nacl.signing import SigningKey

from tests.hostile.bases import BAD_SIGNATURE, MALFORMED_FILE, Case, changed, file_case, raw, small, zeros
from tests.hostile.frames import zstd_zeros
from tests.second_reader.awkg_builder import KEY, OTHER_KEY, SIGNATURE_TYPE, node_id, sign_file
from tests.second_reader.strict import base32, checksum_of, sha256_text, signed_bytes

_SIGNATURE_NBYTES = 64
_ORDER = 2**252 + 27742317777372353535851937790883648493  # of the base point, RFC 8032 §5.1
_LOW_ORDER = {  # every encoding of a point of order 1, 2, 4 or 8, canonical or not
    "identity": "01" + "00" * 31,
    "identity_signed": "01" + "00" * 30 + "80",
    "identity_plus_p": "ee" + "ff" * 30 + "7f",
    "identity_plus_p_signed": "ee" + "ff" * 31,
    "order_2": "ec" + "ff" * 30 + "7f",
    "order_2_signed": "ec" + "ff" * 31,
    "order_4": "00" * 32,
    "order_4_signed": "00" * 31 + "80",
    "order_4_plus_p": "ed" + "ff" * 30 + "7f",
    "order_4_plus_p_signed": "ed" + "ff" * 31,
    "order_8_a": "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "order_8_a_signed": "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "order_8_b": "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "order_8_b_signed": "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
}


def cases() -> Iterator[Case]:
    """Every case of this page."""
    yield from _signatures()
    yield from _keys()
    yield from _types()
    yield from _flipped()
    yield from _digests()


def _signatures() -> Iterator[Case]:
    whole = small().sign()
    body, signature = whole[:-_SIGNATURE_NBYTES], whole[-_SIGNATURE_NBYTES:]
    s = int.from_bytes(signature[32:], "little")
    other = raw().sign()[-_SIGNATURE_NBYTES:]
    forged = {
        "zero": bytes(64),
        "ones": b"\xff" * 64,
        "r_zero": bytes(32) + signature[32:],
        "s_zero": signature[:32] + bytes(32),
        "s_plus_order": signature[:32] + (s + _ORDER).to_bytes(32, "little"),
        "halves_swapped": signature[32:] + signature[:32],
        "reversed": signature[::-1],
        "of_another_file": other,
        "s_of_another_file": signature[:32] + other[32:],
    }
    forged |= {f"bit_{bit}": _flip(signature, bit) for bit in (0, 7, 100, 255, 256, 300, 510, 511)}
    for name, wrong in forged.items():
        yield file_case(f"signature_{name}", BAD_SIGNATURE, body + wrong)


def _flip(data: bytes, bit: int) -> bytes:
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


def _keys() -> Iterator[Case]:
    draft = small()
    header = json.dumps(draft.header).encode()
    yield file_case("signed_by_another_key", BAD_SIGNATURE, sign_file(header, draft.stored, key=OTHER_KEY))
    draft.header["signedBy"] = node_id(OTHER_KEY)
    yield file_case("signed_by_names_another_key", BAD_SIGNATURE, draft.sign())
    identity = bytes.fromhex(_LOW_ORDER["identity"])
    for name, key in _LOW_ORDER.items():
        weak = small()
        weak.header["signedBy"] = base32(bytes.fromhex(key))
        # With S = 0 and R the identity, the equation holds for any h that the key's order divides.
        yield file_case(f"key_{name}", BAD_SIGNATURE, weak.sign()[:-_SIGNATURE_NBYTES] + identity + bytes(32))
    off_curve = small()
    off_curve.header["signedBy"] = base32(b"\x02" + bytes(31))
    yield file_case("key_is_no_point", BAD_SIGNATURE, off_curve.sign())


def _types() -> Iterator[Case]:
    draft = small()
    header = json.dumps(draft.header).encode()
    others = ("kvnet/awkg/v2", "kvnet/awkg/v3\0", "kvnet/awkg/", "kvnet/package/v1", "kvnet/offer/v1", "")
    for i, kind in enumerate((*others, "kvnet/chunk/v2", "KVNET/AWKG/V3")):
        yield file_case(f"signature_of_type_{i}", BAD_SIGNATURE, sign_file(header, draft.stored, kind=kind))
    whole = draft.sign()
    body = whole[:-_SIGNATURE_NBYTES]
    head = body[: len(body) - len(draft.stored)]
    covered = {
        "the_bare_head": head,
        "the_header_without_prelude": signed_bytes(SIGNATURE_TYPE, head[10:]),
        "the_whole_file": signed_bytes(SIGNATURE_TYPE, body),
        "the_sections": signed_bytes(SIGNATURE_TYPE, draft.stored),
        "nothing": signed_bytes(SIGNATURE_TYPE, b""),
        "the_digest_of_the_head": signed_bytes(SIGNATURE_TYPE, sha256_text(head).encode()),
        "another_domain": signed_bytes(SIGNATURE_TYPE, head).replace(b"message", b"massage", 1),
        "a_type_without_length": b"kvnet/message/v1\0" + SIGNATURE_TYPE.encode() + head,
    }
    for name, message in covered.items():
        yield file_case(f"signature_over_{name}", BAD_SIGNATURE, body + KEY.sign(message).signature)
    seed_key = SigningKey(bytes(32))
    yield file_case("signed_by_the_zero_seed", BAD_SIGNATURE, sign_file(header, draft.stored, key=seed_key))


def _flipped() -> Iterator[Case]:
    """One byte changed after signing: in the header a rule-4 refusal, in a section one of rule 9."""
    whole = raw().sign()
    text = whole.decode("latin-1")
    for name, old, new in (
        ("model_name", "tiny", "tinz"),
        ("token_digest", '"tokenDigest":"sha256:', '"tokenDigest":"sha256:'),
        ("position", '"startPosition":0', '"startPosition":1'),
        ("quality", "null", "1.00"),
        ("creation", "2026", "2027"),
        ("order", '"version":3,"sourceModel":"tiny"', '"sourceModel":"tiny","version":3'),
    ):
        at = text.index(old)
        data = whole[:at] + new.encode() + whole[at + len(old) :]
        if old == new:  # another first digit of the digest
            digit = data[at + len(old)]
            data = data[: at + len(old)] + (b"1" if digit != ord("1") else b"2") + data[at + len(old) + 1 :]
        yield file_case(f"header_changed_after_signing_{name}", BAD_SIGNATURE, data)
    stored_at = len(whole) - _SIGNATURE_NBYTES - len(raw().stored)
    for i, section in enumerate(raw().header["sections"]):
        for place in (0, section["wireLength"] - 1):
            bit = 8 * (stored_at + section["offset"] + place) + i
            yield file_case(f"section_{i}_changed_at_{place}", BAD_SIGNATURE, _flip(whole, bit))


def _digest_of_nothing(index: int) -> Callable[[dict[str, Any]], None]:
    """Another digest for one section, under a checksum that agrees with it."""

    def change(header: dict[str, Any]) -> None:
        header["sections"][index]["blake3"] = "0" * 64
        header["checksum"] = checksum_of(header["sections"])

    return change


def _digests() -> Iterator[Case]:
    zero = "sha256:" + "0" * 64
    yield changed("checksum_zero", lambda header: header.update(checksum=zero))
    yield changed("content_digest_zero", lambda header: header.update(contentDigest=zero), BAD_SIGNATURE)
    yield changed("section_digest_zero", lambda h: h["sections"][0].update(blake3="0" * 64))
    for i in (0, 5):
        yield changed(f"section_{i}_and_checksum_of_another", _digest_of_nothing(i), BAD_SIGNATURE)
    swapped = raw()
    first, second = swapped.header["sections"][:2]
    first["blake3"], second["blake3"] = second["blake3"], first["blake3"]
    swapped.header["checksum"] = checksum_of(swapped.header["sections"])
    yield file_case("section_digests_swapped", BAD_SIGNATURE, swapped.sign())
    packed = zeros()
    packed.codecs[0], packed.wires[0] = "zstd", zstd_zeros(len(packed.raws[0]))
    packed.describe()
    packed.header["checksum"] = sha256_text(b"".join(packed.raws))
    yield file_case("checksum_of_raw_bytes", MALFORMED_FILE, packed.sign())
    checked = packed.describe().header
    checked["contentDigest"] = checked["checksum"]
    yield file_case("content_digest_is_the_checksum", BAD_SIGNATURE, packed.sign())
