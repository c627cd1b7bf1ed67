"""Every dataclass and its protobuf twin have the same fields; every error survives the crossing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

import kvnet.api
import kvnet.files.documents
import kvnet.types
from kvnet import wire
from kvnet.errors import (
    CapacityError,
    IncompatibleModel,
    KvnetError,
    MalformedMessage,
    PeerError,
    PeerUnreachable,
    TextTooLong,
    UnknownMemory,
    all_error_types,
)
from kvnet.files.lineage import Lineage
from kvnet.identity.signing import SignedChunk, sign_message
from kvnet.v1 import control_pb2, peer_pb2, types_pb2
from tests.builders import SENDER, make_geometry, make_memory

# Made by the client, of what it wrote itself: they never cross.
_LOCAL = {"AlignmentExport", "ExportReport", "PackReport", "PackagedAlignment"}
_INTEGERS = {
    FieldDescriptor.TYPE_SINT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
}
_json_scalars = st.booleans() | st.integers(-(2**60), 2**60) | st.floats(-1e9, 1e9) | st.text(max_size=5)


def _pairs() -> dict[str, tuple[type[Message], type[Any]]]:
    found: dict[str, tuple[type[Message], type[Any]]] = {
        "MemoryLineage": (control_pb2.MemoryLineage, Lineage)
    }
    homes = (kvnet.api, kvnet.types, kvnet.files.documents)
    for module in (types_pb2, control_pb2):
        for name in module.DESCRIPTOR.message_types_by_name:
            twin = next((getattr(home, name) for home in homes if hasattr(home, name)), None)
            if twin is not None:
                found[name] = (getattr(module, name), twin)
    return found


PAIRS = _pairs()


def values(cls: type[Any], descriptor: Descriptor) -> st.SearchStrategy[Any]:
    """Any value of `cls` that its message can carry."""
    hints = typing.get_type_hints(cls)
    parts = {
        spec.name: _entries(hints[spec.name], descriptor.fields_by_name.get(spec.name))
        for spec in dataclasses.fields(cls)
    }
    return st.builds(cls, **parts)


def _entries(hint: Any, spec: FieldDescriptor | None) -> st.SearchStrategy[Any]:
    hint = getattr(hint, "__supertype__", hint)
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        (inner,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
        return st.none() | _entries(inner, spec)
    if origin is Mapping:
        return st.dictionaries(st.text(max_size=5), _json_scalars, max_size=3)
    if origin is tuple:
        assert spec is not None
        return st.lists(_items(typing.get_args(hint)[0], spec), max_size=3).map(tuple)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        assert spec is not None
        return values(hint, spec.message_type)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(hint)
    if hint is int:
        assert spec is not None
        return _INTEGERS[spec.type]
    return {
        str: st.text(max_size=8),
        float: st.floats(allow_nan=False),
        bool: st.booleans(),
    }[hint]


def _items(hint: Any, spec: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Entries of a repeated field; a tuple in a tuple is a message that holds one list."""
    if typing.get_origin(hint) is tuple:
        (inner,) = spec.message_type.fields
        return _entries(hint, inner)
    return _entries(hint, spec)


def test_every_dataclass_of_the_api_has_a_twin() -> None:
    classes = {name for name, value in vars(kvnet.api).items() if dataclasses.is_dataclass(value)}
    assert classes - _LOCAL <= set(PAIRS)
    assert not _LOCAL & set(PAIRS)
    assert {"Rope", "Geometry", "Fingerprint", "MemoryHeader", "Coding", "Measurement"} <= set(PAIRS)


@pytest.mark.parametrize("name", PAIRS)
def test_twins_have_the_same_fields_in_the_same_order(name: str) -> None:
    message, cls = PAIRS[name]
    on_wire = [field.name.removesuffix("_json") for field in message.DESCRIPTOR.fields]
    assert on_wire == [spec.name for spec in dataclasses.fields(cls)]


@pytest.mark.parametrize("name", PAIRS)
@given(data=st.data())
def test_from_wire_is_the_inverse_of_to_wire(name: str, data: st.DataObject) -> None:
    message, cls = PAIRS[name]
    value = data.draw(values(cls, message.DESCRIPTOR))
    sent = wire.to_wire(value, message).SerializeToString()
    assert wire.from_wire(message.FromString(sent), cls) == value


def test_pairs_of_numbers_cross_as_pairs() -> None:
    coding = kvnet.types.Coding(pruned_heads=((0, 1), (2, 0)))
    message = wire.to_wire(coding, types_pb2.Coding)
    assert [list(head.place) for head in message.pruned_heads] == [[0, 1], [2, 0]]
    assert wire.from_wire(message, kvnet.types.Coding) == coding


def test_unknown_scheme_inside_a_header_is_refused() -> None:
    message = wire.to_wire(make_memory().header, types_pb2.MemoryHeader)
    message.coding.scheme = "from_the_future"
    with pytest.raises(MalformedMessage, match="from_the_future"):
        wire.from_wire(message, kvnet.types.MemoryHeader)


def test_unknown_enum_value_is_refused() -> None:
    message = wire.to_wire(make_geometry(), types_pb2.Geometry)
    message.dtype = "float8"
    with pytest.raises(MalformedMessage, match="float8"):
        wire.from_wire(message, kvnet.types.Geometry)


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 5000, '{"a":NaN}'])
def test_broken_json_field_is_refused(text: str) -> None:
    message = wire.to_wire(make_geometry().rope, types_pb2.Rope)
    message.extra_json = text
    with pytest.raises(MalformedMessage):
        wire.from_wire(message, kvnet.types.Rope)


def test_signed_messages_and_chunks_cross_unchanged() -> None:
    message = sign_message(SENDER, "kvnet/test/v1", b"body")
    chunk = SignedChunk(b"envelope", b"signature", memoryview(b"payload"))
    assert wire.message_from_wire(wire.message_to_wire(message)) == message
    assert wire.read_frame(wire.frame_of_control(message)) == message
    assert wire.read_frame(wire.frame_of_chunk(chunk)) == chunk
    assert wire.read_frame(wire.frame_of_ack([0, 7, 1 << 20])) == [0, 7, 1 << 20]
    assert wire.read_frame(b"") is None


@pytest.mark.parametrize("nbytes", [0, 1, 127, 128, 1 << 14, (1 << 20) + 1])
def test_frame_of_a_chunk_is_protobufs_own(nbytes: int) -> None:
    """What is laid out by hand here, protobuf reads, and the other way round; a payload is not copied."""
    payload = bytes(nbytes)
    chunk = SignedChunk(bytes(208), bytes(64), payload)
    theirs = peer_pb2.Frame.FromString(wire.frame_of_chunk(chunk)).chunk
    assert (theirs.envelope, theirs.signature, theirs.payload) == (bytes(208), bytes(64), payload)
    packed = peer_pb2.Frame(chunk=theirs).SerializeToString()
    assert wire.read_frame(packed) == chunk
    if nbytes:
        assert packed == wire.frame_of_chunk(chunk)
        found = wire.read_frame(packed)
        assert isinstance(found, SignedChunk)
        assert isinstance(found.payload, memoryview)


def test_frame_that_says_a_field_twice_is_read_as_protobuf_reads_it() -> None:
    chunk = SignedChunk(b"envelope", b"signature", b"payload")
    twice = wire.frame_of_chunk(chunk) * 2
    assert wire.read_frame(twice) == chunk
    both = wire.frame_of_chunk(chunk) + wire.frame_of_ack([3])
    assert wire.read_frame(both) == [3]


@pytest.mark.parametrize("cut", [1, 2, 5, 20, 100, 250])
def test_torn_frame_is_malformed(cut: int) -> None:
    whole = wire.frame_of_chunk(SignedChunk(bytes(208), bytes(64), b"payload"))
    with pytest.raises(MalformedMessage, match="no frame"):
        wire.read_frame(whole[:-cut])


@given(st.binary(max_size=64))
def test_any_bytes_are_a_frame_or_malformed(data: bytes) -> None:
    for begun in (data, b"\x12" + data, b"\x12" + bytes([len(data)]) + data):
        with contextlib.suppress(MalformedMessage):
            wire.read_frame(begun)


def failed_call(
    status: grpc.StatusCode, details: str = "", metadata: tuple[tuple[str, bytes], ...] = ()
) -> grpc.aio.AioRpcError:
    """What a gRPC client raises."""
    return grpc.aio.AioRpcError(status, grpc.aio.Metadata(), grpc.aio.Metadata(*metadata), details)


@pytest.mark.parametrize("code", sorted(all_error_types()))
def test_error_keeps_its_type_message_and_details(code: str) -> None:
    error = all_error_types()[code]("layer 7: head_dim 96, wanted 64 — é", details={"head_dim": ["96", "64"]})
    call = failed_call(*wire.error_to_status(error))
    back = wire.status_to_error(call, peer="bob")
    assert (type(back), back.message, back.details) == (type(error), error.message, error.details)
    assert wire.carries_error(call)


@pytest.mark.parametrize("message", ["😀" * 4000, "a" * 4000, "\x00\n\u202e"])
def test_error_of_any_length_fits_the_metadata_and_keeps_its_type(message: str) -> None:
    error = IncompatibleModel(message, details={f"field {i}": ["x" * 100, "y" * 100] for i in range(50)})
    status, details, metadata = wire.error_to_status(error)
    assert len(metadata[0][1]) <= wire.MAX_ERROR_NBYTES
    assert len(details.encode()) <= wire.MAX_ERROR_NBYTES
    assert type(wire.status_to_error(failed_call(status, details, metadata), peer="bob")) is IncompatibleModel


def test_stream_that_ended_on_changed_bytes_is_a_lost_link() -> None:
    details = "Stream removed (Unwrap failed (TSI_DATA_CORRUPTED))"
    call = failed_call(grpc.StatusCode.UNKNOWN, details, ())
    assert type(wire.peer_status_to_error(call, peer="bob")) is PeerUnreachable


@pytest.mark.parametrize(
    ("status", "wanted"),
    [
        (grpc.StatusCode.UNAVAILABLE, PeerUnreachable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, PeerUnreachable),
        (grpc.StatusCode.CANCELLED, PeerUnreachable),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, CapacityError),
        (grpc.StatusCode.UNKNOWN, PeerError),
    ],
)
def test_status_that_is_not_ours_becomes_what_it_means(
    status: grpc.StatusCode, wanted: type[KvnetError]
) -> None:
    call = failed_call(status, "why")
    error = wire.status_to_error(call, peer="bob")
    assert type(error) is wanted
    assert error.message.startswith("bob: ")
    assert not wire.carries_error(call)


@pytest.mark.parametrize("code", sorted(all_error_types()))
def test_error_of_a_peer_says_whose_it_is_and_cannot_blame_this_node(code: str) -> None:
    error = all_error_types()[code]("head_dim 96", details={"head_dim": ["96", "64"]})
    back = wire.peer_status_to_error(failed_call(*wire.error_to_status(error)), peer="bob at 10.0.0.2:1")
    assert back.message == "bob at 10.0.0.2:1: head_dim 96"
    assert back.details == error.details
    is_tellable = isinstance(error, PeerError | CapacityError | UnknownMemory | TextTooLong)
    assert type(back) is (type(error) if is_tellable else PeerError)


def test_control_characters_of_a_peer_do_not_reach_a_terminal() -> None:
    error = PeerError("\x1b[31mred\r\n\x00\u202e\x9b é 😀")
    back = wire.peer_status_to_error(failed_call(*wire.error_to_status(error)), peer="bob")
    assert back.message == "bob: ?[31mred????? é 😀"


def test_broken_link_to_a_peer_is_told_as_one() -> None:
    back = wire.peer_status_to_error(failed_call(grpc.StatusCode.UNAVAILABLE, "why"), peer="bob")
    assert type(back) is PeerUnreachable
    assert back.message.startswith("bob: no answer")


def test_code_from_a_newer_version_becomes_the_base() -> None:
    body = json.dumps({"code": "from_the_future", "message": "what", "details": {}}).encode()
    call = failed_call(grpc.StatusCode.UNKNOWN, "", ((wire.ERROR_METADATA_KEY, body),))
    assert type(wire.status_to_error(call, peer="bob")) is KvnetError


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"[" * 4000,
        b'{"code":1}',
        b'{"code":"peer","message":"m","details":[1]}',
        b'{"code":"peer","message":"m","details":{"a":1}}',
        b'{"code":"peer","message":"\\ud800","details":{}}',
        b"x" * (wire.MAX_ERROR_NBYTES + 1),
    ],
)
def test_hostile_error_metadata_is_ignored(body: bytes) -> None:
    call = failed_call(grpc.StatusCode.UNAVAILABLE, "why", ((wire.ERROR_METADATA_KEY, body),))
    assert type(wire.status_to_error(call, peer="bob")) is PeerUnreachable


STATUS = {
    "unknown_memory": grpc.StatusCode.NOT_FOUND,
    "unknown_peer": grpc.StatusCode.NOT_FOUND,
    "request_invalid": grpc.StatusCode.INVALID_ARGUMENT,
    "already_running": grpc.StatusCode.ALREADY_EXISTS,
    "state_corrupt": grpc.StatusCode.FAILED_PRECONDITION,
    "peer_not_added": grpc.StatusCode.PERMISSION_DENIED,
    "peer_unreachable": grpc.StatusCode.UNAVAILABLE,
    "bad_signature": grpc.StatusCode.FAILED_PRECONDITION,
    "store_full": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "too_busy": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "internal": grpc.StatusCode.INTERNAL,
}


@pytest.mark.parametrize("code", STATUS)
def test_status_says_to_any_grpc_client_what_kind_of_error_it_is(code: str) -> None:
    assert wire.error_to_status(all_error_types()[code]("why"))[0] is STATUS[code]
