"""Files that break rules 1, 2 or 8 of FORMAT.md §7.2: magic, version, header length, where the file ends."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from tests.hostile.bases import BAD_SIGNATURE, MALFORMED_FILE, OK, Case, file_case, raw
from tests.second_reader.awkg_builder import sign_file

_PRELUDE_NBYTES, _SIGNATURE_NBYTES = 10, 64


def cases() -> Iterator[Case]:
    """Every case of this page."""
    yield file_case("valid_raw", OK, raw().sign())
    yield from _truncated()
    yield from _misnamed()
    yield from _header_lengths()
    yield from _ends()


def _truncated() -> Iterator[Case]:
    draft = raw()
    whole = draft.sign()
    head_nbytes = len(whole) - len(draft.stored) - _SIGNATURE_NBYTES
    cuts = {f"{cut:02}_of_the_prelude": cut for cut in (0, 1, 3, 4, 5, 6, 7, 9)}
    cuts |= {"the_prelude": 10, "the_first_header_byte": 11, "half_the_header": head_nbytes // 2}
    cuts |= {"one_short_of_the_head": head_nbytes - 1, "the_head": head_nbytes}
    cuts |= {"the_head_and_63_bytes": head_nbytes + 63}
    for i, section in enumerate(draft.header["sections"]):
        end = head_nbytes + section["offset"] + section["wireLength"]
        cuts |= {f"within_section_{i}": end - 5, f"section_{i}": end}
    cuts |= {"one_byte_of_signature": len(whole) - 63, "one_short": len(whole) - 1}
    for name, cut in cuts.items():
        # From here on the last 64 bytes are taken for the signature, and rule 4 comes before rule 8.
        enough = cut >= head_nbytes + _SIGNATURE_NBYTES
        yield file_case(f"truncated_after_{name}", BAD_SIGNATURE if enough else MALFORMED_FILE, whole[:cut])


def _misnamed() -> Iterator[Case]:
    whole = raw().sign()
    for name, magic in {
        "lower_case": b"awkg",
        "zip": b"PK\x03\x04",
        "zeros": bytes(4),
        "reversed": b"GKWA",
        "last_letter": b"AWKH",
    }.items():
        yield file_case(f"magic_{name}", MALFORMED_FILE, magic + whole[4:])
    draft = raw()
    for version in (0, 1, 2, 4, 255, 512, 65535):
        head = sign_file(b"{}", draft.stored, version=version)
        yield file_case(f"version_{version}", "unsupported_format", head)


def _header_lengths() -> Iterator[Case]:
    whole = raw().sign()
    (header_nbytes,) = struct.unpack_from("<I", whole, 6)
    lengths = [0, 1, header_nbytes - 1, header_nbytes + 1, len(whole) - 10, len(whole) - 10 - 63]
    lengths += ((1 << 20) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 32) - 10)
    for length in lengths:
        # A header of another length parses to something else, or not at all: rule 3 at the latest.
        data = whole[:6] + struct.pack("<I", length) + whole[10:]
        yield file_case(f"header_length_{length}", MALFORMED_FILE, data)
    for name, header in {"empty": b"", "one_byte": b"7", "empty_object": b"{}", "blanks": b"    "}.items():
        yield file_case(f"header_{name}", MALFORMED_FILE, sign_file(header, raw().stored))


def _ends() -> Iterator[Case]:
    draft = raw()
    whole = draft.sign()
    at, last = len(whole) - _SIGNATURE_NBYTES, draft.header["sections"][-1]["wireLength"]
    body, signature = whole[:at], whole[at:]
    yield file_case("bytes_behind_the_signature", BAD_SIGNATURE, whole + b"\0")
    yield file_case("second_signature_behind", MALFORMED_FILE, whole + signature)
    yield file_case("whole_file_behind_the_signature", MALFORMED_FILE, whole + whole)
    yield file_case("byte_before_the_signature", MALFORMED_FILE, body + b"\0" + signature)
    yield file_case("64_bytes_before_the_signature", MALFORMED_FILE, body + bytes(64) + signature)
    yield file_case("last_byte_missing", MALFORMED_FILE, body[:-1] + signature)
    yield file_case("last_section_missing", MALFORMED_FILE, body[:-last] + signature)
    yield file_case("all_sections_missing", MALFORMED_FILE, body[: -len(draft.stored)] + signature)
    yield file_case("sections_twice", MALFORMED_FILE, body + draft.stored + signature)
    yield file_case("byte_before_the_magic", MALFORMED_FILE, b"\0" + whole)
    yield file_case("no_signature", BAD_SIGNATURE, body)
