"""The valid files that the recipes break, and what a case of the corpus is. Fixed seeds, fixed keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.hostile.frames import lz4_zeros
from tests.second_reader.awkg_builder import Draft, make_draft, make_header, sign_file

MALFORMED_FILE = "malformed_file"
MALFORMED_CHUNK = "malformed_chunk"
MALFORMED_PACKAGE = "malformed_package"
BAD_SIGNATURE = "bad_signature"
NOT_FINITE = "not_finite"
OK = "ok"

Header = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One input and the code it is refused as ("ok" for the few that sit on the right side of a border).

    `files` is one `.awkg` or `.zip` (the only key is ""), or a folder by relative path. `links` are
    symbolic links in that folder; a folder with links, or with names that not every disk can hold, is never
    in git (`made_at_test`).
    """

    name: str
    code: str
    suffix: str
    files: dict[str, bytes]
    links: dict[str, str] = field(default_factory=dict)
    made_at_test: bool = False


def file_case(name: str, code: str, data: bytes) -> Case:
    """A case that is one memory file."""
    return Case(name, code, ".awkg", {"": data})


def raw(**changes: Any) -> Draft:
    """Six sections: keys, values and attention metadata of two layers, two heads, three tokens, float32."""
    return make_draft(make_header({"scheme": "raw"}, **({"attentionHeads": 2} | changes)), seed=1)


def small() -> Draft:
    """Two sections: one layer without attention metadata."""
    return make_draft(make_header({"scheme": "raw"}, numLayers=1), seed=1)


def grouped(key_bits: int = 8, value_bits: int = 4, *, hadamard: bool = False, **changes: Any) -> Draft:
    """One layer, 11 tokens of 3 channels: the last group of keys is short and the last byte of codes is half
    empty.
    """
    coding = {"scheme": "grouped", "keyBits": key_bits, "valueBits": value_bits, "groupSize": 8}
    small = {"numLayers": 1, "numKvHeads": 1, "headDim": 3, "sequenceLength": 11, "dtype": "float16"}
    return make_draft(make_header(coding | {"hadamard": hadamard}, **(small | changes)), seed=2)


def transform(*, coding: Header | None = None, **changes: Any) -> Draft:
    """One layer, 11 tokens of 6 channels, three of them exact: one first and two last."""
    small = {"numLayers": 1, "numKvHeads": 2, "headDim": 3, "sequenceLength": 11, "dtype": "float16"}
    wanted = {"scheme": "transform", "sinkTokens": 1, "recentTokens": 2} | (coding or {})
    return make_draft(make_header(wanted, **(small | {"keySpace": "content"} | changes)), seed=15)


def zeros(dtype: str = "float32", seq_len: int = 64) -> Draft:
    """One layer of zeros: bytes that every codec shrinks. 8 channels, so 32 bytes a token in float32."""
    changes: Header = {"numLayers": 1, "sequenceLength": seq_len, "dtype": dtype}
    draft = make_draft(make_header({"scheme": "raw"}, **changes), seed=4)
    draft.raws = [bytes(len(raw)) for raw in draft.raws]
    draft.codecs, draft.wires = ["none", "lz4"], [draft.raws[0], lz4_zeros(len(draft.raws[1]))]
    return draft.describe()


def changed(
    name: str, change: Callable[[Header], Any], code: str = MALFORMED_FILE, draft: Draft | None = None
) -> Case:
    """A file whose header was changed before it was signed."""
    draft = draft or raw()
    change(draft.header)
    return file_case(name, code, draft.sign())


def texted(name: str, change: Callable[[str], str | bytes], code: str = MALFORMED_FILE) -> Case:
    """A file whose header text was changed before it was signed."""
    draft = small()
    before = json.dumps(draft.header, ensure_ascii=False)
    text = change(before)
    assert text != before, name
    return file_case(name, code, sign_file(text if isinstance(text, bytes) else text.encode(), draft.stored))


def rawed(name: str, index: int, change: Callable[[bytearray], Any], code: str, draft: Draft) -> Case:
    """A file one of whose chunks was changed before it was digested and signed."""
    raw_bytes = bytearray(draft.raws[index])
    change(raw_bytes)
    draft.raws[index] = bytes(raw_bytes)
    return file_case(name, code, draft.pack().describe().sign())


def wired(name: str, codec: str, wire: bytes, code: str, draft: Draft | None = None) -> Case:
    """A file whose first section holds these wire bytes in this codec."""
    draft = draft or zeros()
    draft.codecs[0], draft.wires[0] = codec, wire
    return file_case(name, code, draft.describe().sign())
