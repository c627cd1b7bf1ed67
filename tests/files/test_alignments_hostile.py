"""Hostile maps and ports: every rule of FORMAT.md §10 broken once, each told in one sentence."""

from __future__ import annotations

import base64
import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnet.errors import BadSignature, KvnetError, MalformedFile, UnsupportedFormat
from kvnet.files.alignments import MAX_ALIGNMENT_NBYTES, read_alignment
from kvnet.types import canonical_json
from tests.builders import SENDER, STRANGER
from tests.files.alignment_files import (
    data_of,
    header_of,
    make_map,
    make_map_file,
    make_port_file,
    make_tensor,
    make_tensors,
    rebuilt,
    signed,
    with_header,
)

MAP = make_map_file()
PORT = make_port_file()
PORT_ID = read_alignment(PORT).manifest.id


def of_map(change: Callable[[Any], Any], **how: Any) -> bytes:
    """The map with its header changed, digested and signed anew."""
    header = header_of(MAP)
    change(header)
    return signed(header, data_of(MAP), **how)


def with_manifest(encoded: bytes, change: Callable[[Any], Any], *, redigest: bool = True) -> bytes:
    """A file whose manifest was changed, digested and signed anew."""
    header = header_of(encoded)
    manifest = json.loads(header["__metadata__"]["manifest"])
    change(manifest)
    header["__metadata__"]["manifest"] = canonical_json(manifest).decode()
    return signed(header, data_of(encoded), redigest=redigest)


def unsigned(change: Callable[[Any], Any]) -> bytes:
    """The map with metadata changed under the old signature."""
    header = header_of(MAP)
    change(header["__metadata__"])
    return rebuilt(header, data_of(MAP))


def setting(*path: str | int, to: Any) -> Callable[[Any], None]:
    """What sets the value under these keys."""

    def change(plain: Any) -> None:
        for key in path[:-1]:
            plain = plain[key]
        plain[path[-1]] = to

    return change


def ends_in_port(plain: Any) -> None:
    """Let a map end in a port; its gate has judged no further use."""
    plain["port"] = PORT_ID
    plain["gate"]["uses"] = []


def dropping(*path: str) -> Callable[[Any], None]:
    """What takes the key at the end of this path away."""

    def change(plain: Any) -> None:
        for key in path[:-1]:
            plain = plain[key]
        del plain[path[-1]]

    return change


def with_far(window: Any, layers: Any) -> bytes:
    """The map with this far window and these far layers, and the numbers of one without."""

    def change(plain: Any) -> None:
        plain |= {"far_window": window, "far_layers": layers}

    return with_manifest(MAP, change)


def with_states(encoded: bytes, layers: Any, hidden_size: Any) -> bytes:
    """The file with these states, and the numbers of one without."""

    def change(plain: Any) -> None:
        plain |= {"state_layers": layers, "hidden_size": hidden_size}

    return with_manifest(encoded, change)


def with_port_and_states(plain: Any) -> None:
    """Let a map end in a port, and in states as well."""
    ends_in_port(plain)
    plain |= {"state_layers": [1], "hidden_size": 8}


def with_known(
    tables: tuple[str, ...] = ("known_mean", "known_scale", "known_bound"),
    *,
    out: int = 48,
    width: int = 2,
    bounds: int = 1,
) -> bytes:
    """The map with these tensors of what it knows, of these widths, where they would lie."""
    shapes = {"known_mean": (out,), "known_scale": (out, width), "known_bound": (bounds,)}
    tensors, source = make_tensors(make_map()), random.Random(0)
    tensors |= {name: make_tensor(shapes[name], source) for name in tables}
    header = header_of(MAP)
    data = b""
    for name in sorted(tensors):
        tensor = tensors[name]
        offsets = [len(data), len(data) + len(tensor.data)]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
        data += tensor.data
    return signed(header, data)


def text_of_manifest(text: str) -> bytes:
    """The map under this text for a manifest, signed."""
    header = header_of(MAP)
    header["__metadata__"]["manifest"] = text
    return signed(header, data_of(MAP), redigest=False)


HEADER = canonical_json(header_of(MAP))
DATA = data_of(MAP)
TEXT: str = header_of(MAP)["__metadata__"]["manifest"]
OTHER_SIGNATURE = base64.b64encode(b"s" * 64).decode()


def swapped(header: Any) -> None:
    """Two tensors of one size in each other's place."""
    a, b = header["anchor_bias"], header["encoder_bias"]
    a["data_offsets"], b["data_offsets"] = b["data_offsets"], a["data_offsets"]


MALFORMED: dict[str, tuple[bytes, str]] = {
    # Rule 1
    "empty": (b"", "0 bytes, allowed are 8 to"),
    "seven bytes": (MAP[:7], "7 bytes, allowed are 8 to"),
    "no header": (struct.pack("<Q", 0), "a header of 0 bytes"),
    "header not padded": (struct.pack("<Q", len(HEADER) | 1) + HEADER + DATA, "wanted a multiple of 8"),
    "huge header": (struct.pack("<Q", 1 << 63) + HEADER, "a header of 9223372036854775808 bytes"),
    "header beyond the bound": (struct.pack("<Q", (1 << 20) + 8) + b" " * ((1 << 20) + 8), "up to 1048576"),
    "cut within the header": (MAP[:100], "100 bytes, its header alone has more"),
    # Rule 2
    "header is no JSON": (with_header(b"{", DATA), "not strict JSON"),
    "header is a list": (with_header(b"[]", DATA), "its header is a list"),
    "header is not UTF-8": (with_header(b'{"\xff":1}', DATA), "not strict JSON"),
    "header nested too deep": (with_header(b"[" * 17 + b"]" * 17, DATA), "nested deeper than 16"),
    "key twice": (with_header(HEADER[:-1] + b',"anchor":{}}', DATA), "appears twice"),
    "no metadata": (of_map(lambda h: None).replace(b"__metadata__", b"_-metadata-_"), "is it a map or port"),
    "metadata is a text": (rebuilt({"__metadata__": "map"}, DATA), "is it a map or port"),
    "metadata key missing": (unsigned(lambda m: m.pop("signer")), "is it a map or port"),
    "metadata key too many": (unsigned(lambda m: m.update(format="pt")), "is it a map or port"),
    "metadata not a text": (unsigned(setting("manifest", to={})), "something else than texts"),
    "plain safetensors": (safetensors.torch.save({}), "is it a map or port"),
    "manifest too long": (text_of_manifest("x" * 65537), "a manifest of 65537 bytes"),
    # Rule 3
    "signer is no node id": (unsigned(setting("signer", to="me")), "wanted a node id"),
    "signer in upper case": (unsigned(setting("signer", to=SENDER.node_id.upper())), "wanted lower case"),
    "signature is no base64": (unsigned(setting("signature", to="?" * 88)), "not the base64 of 64 bytes"),
    "signature is not ASCII": (unsigned(setting("signature", to="ä")), "not the base64 of 64 bytes"),
    "signature too short": (unsigned(setting("signature", to="AAAA")), "not the base64 of 64 bytes"),
    "signature with other spare bits": (
        unsigned(setting("signature", to=OTHER_SIGNATURE[:-3] + "x==")),
        "not the base64 of 64 bytes",
    ),
    # Rule 4
    "header not sorted": (
        with_header(json.dumps(dict(reversed(header_of(MAP).items())), separators=(",", ":")).encode(), DATA),
        "its header is not written as canonical JSON",
    ),
    "header with blanks": (
        with_header(HEADER.replace(b'":', b'": ', 1), DATA),
        "not written as canonical JSON",
    ),
    "header padded too far": (with_header(HEADER + b" " * 16, DATA), "not written as canonical JSON"),
    # Rule 5
    "manifest is no JSON": (text_of_manifest("{"), "manifest: not strict JSON"),
    "manifest is a list": (text_of_manifest("[]"), "manifest: expected an object, got list"),
    "manifest with a blank": (text_of_manifest(TEXT + " "), "manifest: not written as canonical JSON"),
    "number in another spelling": (text_of_manifest(TEXT.replace('"kl":0.25', '"kl":0.250')), "two names"),
    "default left out": (with_manifest(MAP, dropping("source_geometry", "rope", "extra")), "two names"),
    "NaN": (text_of_manifest(TEXT.replace('"kl":0.25', '"kl":NaN')), "NaN is not a number"),
    "field missing": (with_manifest(MAP, dropping("closing")), "field 'closing' is missing"),
    "field too many": (with_manifest(MAP, setting("more", to=1)), "unknown field 'more'"),
    "field of another type": (with_manifest(MAP, setting("num_rows", to="9")), "num_rows: expected int"),
    "a port's manifest as a map": (
        of_map(setting("__metadata__", "manifest", to=header_of(PORT)["__metadata__"]["manifest"])),
        "unknown field 'geometry'",
    ),
    "unknown method": (with_manifest(MAP, setting("method", to="magic")), "'magic' is none of ridge"),
    "unknown pairing": (with_manifest(MAP, setting("pairing", to="luck")), "'luck' is none of tokens"),
    "unknown strategy": (with_manifest(MAP, setting("layer_strategy", to="")), "is none of linear"),
    "window is a number": (with_manifest(MAP, setting("window", to=3)), "window: expected a list"),
    "window of one": (with_manifest(MAP, setting("window", to=[0])), "wanted two integers"),
    "window of fractions": (with_manifest(MAP, setting("window", to=[0.0, 1.0])), "wanted two integers"),
    "window of truths": (with_manifest(MAP, setting("window", to=[False, True])), "wanted two integers"),
    "window backwards": (with_manifest(MAP, setting("window", to=[1, -1])), "ascending offsets within 64"),
    "window too wide": (with_manifest(MAP, setting("window", to=[-65, 0])), "ascending offsets within 64"),
    "no far window": (with_manifest(MAP, dropping("far_window")), "field 'far_window' is missing"),
    "far window is a number": (with_far(3, [0]), "far_window: expected a list"),
    "far window of one": (with_far([2], [0]), "far_window: .2., wanted two integers"),
    "far window of truths": (with_far([False, True], [0]), "far_window: .* wanted two integers"),
    "far window is empty": (with_far([], [0]), "far_window: .., wanted two integers"),
    "far window backwards": (with_far([-2, -4], [0]), "far_window is -2 to -4, wanted ascending offsets"),
    "far window too far": (with_far([-65, -2], [0]), "far_window is -65 to -2, wanted .* within 64"),
    "far window beyond the other end": (with_far([2, 65], [0]), "wanted ascending offsets within 64"),
    "far window reaches the near one from below": (with_far([-3, -1], [0]), "none of the window's offsets"),
    "far window reaches the near one from above": (with_far([1, 3], [0]), "none of the window's offsets"),
    "far window around the near one": (
        with_far([-3, 3], [0]),
        "wanted none of the window's offsets, -1 to 1",
    ),
    "far window within the near one": (with_far([0, 0], [0]), "wanted none of the window's offsets"),
    "far window without layers": (with_far([-4, -2], []), "far_layers is .., wanted some of 2 layers"),
    "far layers without a window": (with_far(None, [0]), "far_layers without a far_window"),
    "far layer beyond the source": (with_far([-4, -2], [2]), "far_layers is .2., wanted some of 2 layers"),
    "far layer twice": (with_far([-4, -2], [1, 1]), "far_layers is .* ascending"),
    "far layers descending": (with_far([-4, -2], [1, 0]), "far_layers is .* ascending"),
    "far layer negative": (with_far([-4, -2], [-1]), "far_layers.0.: -1 is negative"),
    "numbers for the near window alone": (
        with_far([-4, -2], [0]),
        "tensor anchor is .48, 1., wanted .72, 1.",
    ),
    "no state layers told": (
        with_manifest(PORT, dropping("state_layers")),
        "field 'state_layers' is missing",
    ),
    "no size of states told": (with_manifest(MAP, dropping("hidden_size")), "field 'hidden_size' is missing"),
    "state of the first layer": (with_states(MAP, [0, 1], 8), "state_layers is .0, 1., wanted .* 1 to 2"),
    "state of the first layer of a port": (with_states(PORT, [0], 8), "state_layers is .0., wanted"),
    "state of a layer beyond the last": (
        with_states(MAP, [1, 3], 8),
        "state_layers is .1, 3., wanted .* 1 to 2",
    ),
    "state of a layer beyond the last of a port": (with_states(PORT, [3], 8), "state_layers is .3., wanted"),
    "state layers descending": (with_states(MAP, [2, 1], 8), "state_layers is .2, 1., wanted .* ascending"),
    "state layer twice": (with_states(PORT, [2, 2], 8), "state_layers is .2, 2., wanted .* ascending"),
    "state layer negative": (with_states(MAP, [-1], 8), "state_layers.0.: -1 is negative"),
    "state layer is a truth": (with_states(PORT, [True], 8), "state_layers"),
    "state layers are a number": (with_states(MAP, 1, 8), "state_layers: expected a list"),
    "states of no size": (with_states(MAP, [1], 0), "hidden_size is 0 with 1 state_layers"),
    "states of no size in a port": (with_states(PORT, [1], 0), "hidden_size is 0 with 1 state_layers"),
    "a size of no states": (with_states(MAP, [], 8), "hidden_size is 8 with 0 state_layers, wanted 0"),
    "a size of no states in a port": (with_states(PORT, [], 8), "hidden_size is 8 with 0 state_layers"),
    "states too large": (with_states(PORT, [1], 65537), "hidden_size is 65537 .* at most 65536"),
    "size of states negative": (with_states(MAP, [1], -8), "hidden_size: -8 is negative"),
    "states and a port": (with_manifest(MAP, with_port_and_states), "has state_layers and a port"),
    "states with the numbers of keys and values": (
        with_states(MAP, [1], 8),
        "encoder is .48, 48., wanted .48, 40.",
    ),
    "states with the numbers of keys and values in a port": (
        with_states(PORT, [1, 2], 65536),
        "basis is .3, 48., wanted .3, 131088.",
    ),
    "layer beyond the source": (
        with_manifest(MAP, setting("source_layers", to=[2])),
        "wanted some of 2 layers",
    ),
    "no source layer": (with_manifest(MAP, setting("source_layers", to=[])), "wanted some of 2 layers"),
    "source layer twice": (with_manifest(MAP, setting("source_layers", to=[1, 1])), "each once"),
    "negative lambda": (with_manifest(MAP, setting("relative_lambda", to=-0.5)), "relative_lambda is -0.5"),
    "port of another form": (with_manifest(MAP, setting("port", to="port_../x")), "wanted a port's id"),
    "corpus of another form": (with_manifest(MAP, setting("corpus_digest", to="x")), "corpus_digest is not"),
    "digest of another form": (
        with_manifest(MAP, setting("tensors_digest", to="sha256:" + "A" * 64), redigest=False),
        "tensors_digest is not",
    ),
    "time of another form": (with_manifest(MAP, setting("created_at", to="today")), "created_at is 'today'"),
    "time that never was": (
        with_manifest(MAP, setting("created_at", to="2027-02-30T00:00:00Z")),
        "created_at is '2027-02-30",
    ),
    "no layers": (with_manifest(MAP, setting("source_geometry", "num_layers", to=0)), "num_layers is 0"),
    "too many heads": (
        with_manifest(MAP, setting("receiver_geometry", "num_kv_heads", to=257)),
        "num_kv_heads is 257",
    ),
    "too wide a head": (with_manifest(PORT, setting("geometry", "head_dim", to=1025)), "head_dim is 1025"),
    "rank 0": (with_manifest(PORT, setting("rank", to=0)), "rank is 0, allowed are 1 to 1024"),
    "rank too high": (with_manifest(PORT, setting("rank", to=1025)), "rank is 1025, allowed are 1 to 1024"),
    "recall above 1": (with_manifest(MAP, setting("gate", "recall_text", to=1.5)), "recall_text is 1.5"),
    "negative divergence": (with_manifest(MAP, setting("gate", "kl", to=-0.1)), "gate.kl is -0.1"),
    "negative divergence of the control": (
        with_manifest(MAP, setting("gate", "kl_shuffled", to=-0.1)),
        "gate.kl_shuffled is -0.1",
    ),
    "use that the map has not": (
        with_manifest(MAP, setting("gate", "uses", 0, "use", to="port4")),
        "gate.uses is port4, wanted unclosed",
    ),
    "use that there is not": (
        with_manifest(MAP, setting("gate", "uses", 0, "use", to="port2")),
        "'port2' is none of port4",
    ),
    "recall above 1 in a use": (
        with_manifest(MAP, setting("gate", "uses", 0, "recall_mapped", to=1.5)),
        "recall_mapped is 1.5",
    ),
    "negative divergence in a use": (
        with_manifest(MAP, setting("gate", "uses", 0, "kl", to=-0.1)),
        "gate.uses.unclosed.kl is -0.1",
    ),
    "gap of a use that ends before it begins": (
        with_manifest(MAP, setting("gate", "uses", 0, "gap_recovered", "low", to=0.99)),
        "gap_recovered ends before",
    ),
    "cosine above 1": (with_manifest(MAP, setting("gate", "attention_cosine", to=1.1)), "wanted -1 to 1"),
    "interval backwards": (
        with_manifest(MAP, setting("gate", "gap_recovered", "low", to=0.99)),
        "before it begins",
    ),
    # Rule 6
    "tensor missing": (of_map(dropping("encoder_bias")), "tensors .* wanted anchor, anchor_bias, encoder"),
    "no encoder": (of_map(dropping("encoder")), "wanted anchor, anchor_bias, encoder"),
    "anchor without its bias": (of_map(dropping("anchor_bias")), "wanted anchor, anchor_bias, encoder"),
    "bias without its anchor": (of_map(dropping("anchor")), "wanted encoder, encoder_bias"),
    "tensor too many": (of_map(setting("other", to=header_of(MAP)["anchor"])), "wanted anchor, anchor_bias"),
    "tensor is a list": (of_map(setting("anchor", to=[])), "anchor is not described by"),
    "tensor described by more": (of_map(setting("anchor", "name", to="x")), "anchor is not described by"),
    "bfloat16": (of_map(setting("anchor", "dtype", to="BF16")), "anchor is 'BF16', allowed are F32, F16"),
    "type is a list": (of_map(setting("anchor", "dtype", to=["F32"])), "allowed are F32, F16"),
    "shape of another map": (
        of_map(setting("encoder", "shape", to=[48, 47])),
        "encoder is .*48, 47.* wanted",
    ),
    "shape of a huge map": (
        of_map(setting("encoder", "shape", to=[1 << 40, 1 << 40])),
        "encoder is .* wanted",
    ),
    "shape of truths": (of_map(setting("anchor_bias", "shape", to=[True])), "anchor_bias is .True., wanted"),
    "negative shape": (of_map(setting("anchor_bias", "shape", to=[-1])), "anchor_bias is .-1., wanted"),
    "too many coordinates": (
        with_manifest(of_map(setting("encoder", "shape", to=[48, 1025])), ends_in_port),
        "into 1025 coordinates, allowed are 1 to 1024",
    ),
    "encoder without columns": (
        with_manifest(of_map(setting("encoder", "shape", to=[48])), ends_in_port),
        "into None coordinates",
    ),
    "knows no mean": (with_known(("known_scale", "known_bound")), "wanted .* known_bound, known_mean"),
    "knows no scale": (with_known(("known_mean", "known_bound")), "wanted anchor, anchor_bias, encoder"),
    "knows no bound": (with_known(("known_mean", "known_scale")), "wanted .* known_bound, known_mean"),
    "mean of another width": (with_known(out=47), "known_(mean|scale) is .47.*, wanted .48"),
    "two bounds": (with_known(bounds=2), "known_bound is .2., wanted .1."),
    "knows in no direction": (with_known(width=0), "in 0 directions, allowed are 1 to 64"),
    "knows in too many directions": (with_known(width=65), "in 65 directions, allowed are 1 to 64"),
    "scale without columns": (
        of_map(setting("known_scale", to={"dtype": "F32", "shape": [48], "data_offsets": [0, 192]})),
        "in None directions",
    ),
    "scale is a list": (of_map(setting("known_scale", to=[])), "in None directions"),
    "three offsets": (of_map(setting("anchor", "data_offsets", to=[0, 1, 2])), "wanted two offsets"),
    "negative offset": (of_map(setting("anchor", "data_offsets", to=[-192, 0])), "wanted two offsets"),
    "tensors that overlap": (
        of_map(setting("anchor_bias", "data_offsets", to=[0, 4])),
        "lies at 0 to 4, wanted",
    ),
    "tensors with a hole": (
        of_map(setting("anchor", "data_offsets", to=[8, 200])),
        "lies at 8 to 200, wanted 0",
    ),
    "tensors in another order": (of_map(swapped), "anchor_bias lies at .* wanted"),
    # Rule 7
    "cut short": (MAP[:-1], "its header says"),
    "without numbers": (MAP[: len(MAP) - len(DATA)], "its header says"),
    "something trails": (MAP + b"\0", "its header says"),
}


@pytest.mark.parametrize("width", [1, 64])
def test_what_a_map_knows_of_any_allowed_width_is_read(width: int) -> None:
    assert read_alignment(with_known(width=width)).tables["known_scale"].shape == (48, width)


@pytest.mark.parametrize(("encoded", "why"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_file_is_refused(encoded: bytes, why: str) -> None:
    with pytest.raises(MalformedFile, match=why) as refused:
        read_alignment(encoded)
    assert "\n" not in refused.value.message
    assert len(refused.value.message) < 400


NOT_SIGNED: dict[str, bytes] = {
    "other kind": unsigned(setting("kind", to="port")),
    "other signer": unsigned(setting("signer", to=STRANGER.node_id)),
    "other signature": unsigned(setting("signature", to=OTHER_SIGNATURE)),
    "changed manifest": unsigned(setting("manifest", to=TEXT.replace("0.25", "0.01"))),
    "changed number": MAP[:-1] + bytes([MAP[-1] ^ 1]),
    "other numbers": MAP[: len(MAP) - len(DATA)] + data_of(make_map_file(seed=1)),
}


@pytest.mark.parametrize("encoded", NOT_SIGNED.values(), ids=NOT_SIGNED)
def test_what_was_not_signed_is_refused(encoded: bytes) -> None:
    with pytest.raises(BadSignature, match="signed; get the file again"):
        read_alignment(encoded)


def test_another_kind_is_of_another_format() -> None:
    with pytest.raises(UnsupportedFormat, match="of kind 'adapter', this kvnet reads map and port"):
        read_alignment(of_map(setting("__metadata__", "kind", to="adapter")))


def test_a_signature_over_another_domain_does_not_count() -> None:
    header = copy.deepcopy(header_of(MAP))
    body = SENDER.sign(b"kvnet/message/v1\0" + TEXT.encode())
    header["__metadata__"]["signature"] = base64.b64encode(body).decode()
    with pytest.raises(BadSignature):
        read_alignment(rebuilt(header, DATA))


def test_too_large_a_file_is_refused_before_it_is_read() -> None:
    huge = np.broadcast_to(np.zeros(1, np.uint8), MAX_ALIGNMENT_NBYTES + 1)  # takes one byte
    with pytest.raises(MalformedFile, match="allowed are 8 to 1073741824"):
        read_alignment(memoryview(huge))


@given(position=st.integers(0, len(MAP) - 1), value=st.integers(1, 255))
@settings(max_examples=300)
def test_no_byte_can_be_changed(position: int, value: int) -> None:
    changed = bytearray(MAP)
    changed[position] ^= value
    with pytest.raises((MalformedFile, BadSignature, UnsupportedFormat)):
        read_alignment(bytes(changed))


@given(data=st.binary(max_size=200))
def test_anything_else_is_refused_by_name(data: bytes) -> None:
    for encoded in (data, struct.pack("<Q", len(data)) + data, with_header(data, b"")):
        with pytest.raises(KvnetError):
            read_alignment(encoded)
