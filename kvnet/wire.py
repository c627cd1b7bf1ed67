"""Between kvnet's dataclasses and protobuf, between its errors and gRPC status. Nothing else knows both."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterable
from enum import Enum
from functools import lru_cache
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from kvnet.errors import (
    AlreadyRunning,
    CapacityError,
    KvnetError,
    MalformedMessage,
    OperatorError,
    PeerError,
    PeerNotAdded,
    PeerUnreachable,
    RequestError,
    TextTooLong,
    UnknownAlignment,
    UnknownMemory,
    UnknownPeer,
    error_from_code,
)
from kvnet.format import strict_json
from kvnet.identity.signing import SignedChunk, SignedMessage
from kvnet.v1 import peer_pb2

T = TypeVar("T")
M = TypeVar("M", bound=Message)

_TELLABLE = (PeerError, CapacityError, TextTooLong, UnknownMemory)

ERROR_METADATA_KEY = "kvnet-error-bin"
MAX_ERROR_NBYTES = 4096
_MAX_DETAILS_NBYTES = 3000
_MAX_MESSAGE_NBYTES = 2000

# Of protobuf's encoding: how a field of bytes begins, the number of Frame.chunk, and the longest length.
_LENGTH_DELIMITED = 2
_CHUNK_FIELD = 2
_MAX_LENGTH_NBYTES = 5

# The first class that matches decides; subclasses stand before their bases.
_STATUS: tuple[tuple[type[KvnetError], grpc.StatusCode], ...] = (
    (UnknownMemory, grpc.StatusCode.NOT_FOUND),
    (UnknownPeer, grpc.StatusCode.NOT_FOUND),
    (UnknownAlignment, grpc.StatusCode.NOT_FOUND),
    (PeerNotAdded, grpc.StatusCode.PERMISSION_DENIED),
    (AlreadyRunning, grpc.StatusCode.ALREADY_EXISTS),
    (CapacityError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (PeerUnreachable, grpc.StatusCode.UNAVAILABLE),
    (RequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (PeerError, grpc.StatusCode.FAILED_PRECONDITION),
    (OperatorError, grpc.StatusCode.FAILED_PRECONDITION),
    (KvnetError, grpc.StatusCode.INTERNAL),
)

# What a broken link leaves behind. INTERNAL is grpcio's word for a write that found the stream gone;
# an error of the peer's own comes with metadata, and a bug of its handlers as UNKNOWN.
_LOST = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
)
# gRPC core's words where a record of TLS was changed under way: with status UNKNOWN.
_STREAM_REMOVED = "Stream removed"


def error_to_status(error: KvnetError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """Status code, details and trailing metadata that carry an error to the other side."""
    status = next(code for cls, code in _STATUS if isinstance(error, cls))
    message = _clipped(error.message)
    body = {"code": error.code, "message": message, "details": error.details}
    packed = json.dumps(body).encode()
    if len(packed) > _MAX_DETAILS_NBYTES:
        packed = json.dumps({**body, "details": {}}).encode()
    return status, message, ((ERROR_METADATA_KEY, packed),)


def status_to_error(error: grpc.RpcError, *, peer: str) -> KvnetError:
    """Inverse of `error_to_status`; a bare transport failure becomes PeerUnreachable."""
    call = typing.cast("Any", error)
    carried = _carried(call.trailing_metadata())
    if carried is not None:
        return carried
    code = call.code()
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return CapacityError(f"{peer}: {call.details()}")
    if code in _LOST or (call.details() or "").startswith(_STREAM_REMOVED):
        reason = code.name.lower()
        return PeerUnreachable(f"{peer}: no answer ({reason}); is it up, and can this node reach it?")
    return PeerError(f"{peer}: {code.name.lower()}: {call.details()}")


def peer_status_to_error(error: grpc.RpcError, *, peer: str) -> KvnetError:
    """`status_to_error` for another node's word: it says who said it, and cannot blame this node.

    A peer may report what is wrong with the peer or with the request; a code of another branch of the
    tree would tell this node's operator to act, so it becomes a plain PeerError.
    """
    return peer_refusal(typing.cast("Any", error).trailing_metadata(), peer=peer) or status_to_error(
        error, peer=peer
    )


def peer_refusal(metadata: Any, *, peer: str) -> KvnetError | None:
    """What a peer's trailing metadata says of why it ended a call, told as `peer_status_to_error` does."""
    told = _carried(metadata)
    if told is None:
        return None
    said = "".join(char if char.isprintable() else "?" for char in told.message)
    kind = type(told) if isinstance(told, _TELLABLE) else PeerError
    return kind(f"{peer}: {said}", details=told.details)


def carries_error(error: grpc.RpcError) -> bool:
    """Whether the status was made by `error_to_status`, and not by the transport itself."""
    metadata = typing.cast("Any", error).trailing_metadata() or ()
    return any(key == ERROR_METADATA_KEY for key, _ in metadata)


def to_wire(value: Any, message_type: type[M]) -> M:
    """A dataclass as the protobuf message with the same field names."""
    message = message_type()
    _fill(message, value)
    return message


def from_wire(message: Message, cls: type[T]) -> T:
    """Inverse of `to_wire`. Raises MalformedMessage for values the dataclass cannot hold."""
    plain_cls: Any = cls
    hints = _hints(plain_cls)
    values: dict[str, Any] = {}
    for spec in dataclasses.fields(plain_cls):
        hint = hints[spec.name]
        if f"{spec.name}_json" in message.DESCRIPTOR.fields_by_name:
            text = getattr(message, f"{spec.name}_json")
            values[spec.name] = _read_json(text, f"{cls.__name__}.{spec.name}")
        elif _optional(hint) and not message.HasField(spec.name):
            values[spec.name] = None
        else:
            values[spec.name] = _lift(getattr(message, spec.name), hint, f"{cls.__name__}.{spec.name}")
    return cls(**values)


def message_to_wire(message: SignedMessage) -> peer_pb2.SignedMessage:
    """A control message for the peer API."""
    return to_wire(message, peer_pb2.SignedMessage)


def message_from_wire(message: peer_pb2.SignedMessage) -> SignedMessage:
    """Inverse of `message_to_wire`; nothing is verified."""
    return SignedMessage(message.type, message.body, message.signer, message.signature)


def frame_of_control(message: SignedMessage) -> bytes:
    """A control message as a frame of the peer API."""
    return peer_pb2.Frame(control=message_to_wire(message)).SerializeToString()


def frame_of_ack(indices: Iterable[int]) -> bytes:
    """Indices of durable chunks as a frame of the peer API."""
    return peer_pb2.Frame(ack=peer_pb2.Ack(index=indices)).SerializeToString()


def frame_of_chunk(chunk: SignedChunk) -> bytes:
    """A chunk as a frame of the peer API: protobuf's own bytes, with one copy of the payload, not three."""
    parts = (_field(1, chunk.envelope), _field(2, chunk.signature), _field_head(3, len(chunk.payload)))
    nbytes = sum(map(len, parts)) + len(chunk.payload)
    return b"".join((_field_head(_CHUNK_FIELD, nbytes), *parts, chunk.payload))


def read_frame(data: bytes) -> SignedMessage | SignedChunk | list[int] | None:
    """Inverse of the three; None for an empty frame. Nothing is verified, and a payload is not copied.

    Raises MalformedMessage for bytes that are no frame.
    """
    chunk = _chunk_within(data)
    if chunk is not None:
        return chunk
    try:
        frame = peer_pb2.Frame.FromString(data)
    except DecodeError as exc:
        raise MalformedMessage(f"frame: {len(data)} bytes that are no frame") from exc
    which = frame.WhichOneof("frame")
    if which == "control":
        return message_from_wire(frame.control)
    if which == "chunk":
        return SignedChunk(frame.chunk.envelope, frame.chunk.signature, frame.chunk.payload)
    return list(frame.ack.index) if which == "ack" else None


def _chunk_within(data: bytes) -> SignedChunk | None:
    """The chunk in a frame that is laid out as `frame_of_chunk` does; protobuf reads all others."""
    start, stop = _field_within(data, _CHUNK_FIELD, 0)
    envelope_at, envelope_stop = _field_within(data, 1, start)
    signature_at, signature_stop = _field_within(data, 2, envelope_stop)
    payload_at, payload_stop = _field_within(data, 3, signature_stop)
    if not 0 < start < payload_at <= payload_stop == stop == len(data):
        return None
    payload = memoryview(data)[payload_at:]
    return SignedChunk(data[envelope_at:envelope_stop], data[signature_at:signature_stop], payload)


def _field(number: int, value: bytes) -> bytes:
    return _field_head(number, len(value)) + value


def _field_head(number: int, nbytes: int) -> bytes:
    """What stands before a value of so many bytes: its tag, and its length as a varint."""
    head = bytearray((number << 3 | _LENGTH_DELIMITED,))
    while nbytes > 0x7F:
        head.append(nbytes & 0x7F | 0x80)
        nbytes >>= 7
    head.append(nbytes)
    return bytes(head)


def _field_within(data: bytes, number: int, at: int) -> tuple[int, int]:
    """Where the value of the field at `at` starts and stops; past everything where it is another."""
    nowhere = (len(data) + 1, len(data) + 1)
    if at >= len(data) or data[at] != number << 3 | _LENGTH_DELIMITED:
        return nowhere
    nbytes = 0
    for step, byte in enumerate(data[at + 1 : at + 1 + _MAX_LENGTH_NBYTES]):
        nbytes |= (byte & 0x7F) << 7 * step
        if byte < 0x80:
            start = at + 2 + step
            return start, start + nbytes
    return nowhere


def _carried(metadata: Any) -> KvnetError | None:
    found = (_read_error(value) for key, value in metadata or () if key == ERROR_METADATA_KEY)
    return next((error for error in found if error is not None), None)


def _clipped(message: str) -> str:
    # Trailing metadata has 8 KiB in all, and JSON writes up to 12 bytes for a character.
    text = message[:1000].encode("utf-8", "replace").decode()
    while len(json.dumps(text)) > _MAX_MESSAGE_NBYTES:
        text = text[: len(text) * 3 // 4]
    return text


def _read_error(packed: bytes) -> KvnetError | None:
    try:
        body = strict_json.loads(packed, what="error", max_nbytes=MAX_ERROR_NBYTES)
        details = {name: [str(value) for value in pair] for name, pair in body["details"].items()}
        return error_from_code(str(body["code"]), str(body["message"]), details)
    except (MalformedMessage, AttributeError, KeyError, TypeError):
        return None


def _read_json(text: str, what: str) -> dict[str, Any]:
    found = strict_json.loads(text.encode(), what=what) if text else {}
    if not isinstance(found, dict):
        raise MalformedMessage(f"{what}: expected an object, got {type(found).__name__}")
    return found


def _fill(message: Message, value: Any) -> None:
    for spec in dataclasses.fields(value):
        entry = getattr(value, spec.name)
        if f"{spec.name}_json" in message.DESCRIPTOR.fields_by_name:
            setattr(message, f"{spec.name}_json", json.dumps(entry, sort_keys=True) if entry else "")
        elif entry is None:
            continue
        elif dataclasses.is_dataclass(entry):
            getattr(message, spec.name).SetInParent()
            _fill(getattr(message, spec.name), entry)
        elif isinstance(entry, tuple | list):
            _fill_repeated(getattr(message, spec.name), entry)
        else:
            setattr(message, spec.name, entry.value if isinstance(entry, Enum) else entry)


def _fill_repeated(repeated: Any, entries: tuple[Any, ...] | list[Any]) -> None:
    for entry in entries:
        if dataclasses.is_dataclass(entry):
            _fill(repeated.add(), entry)
        elif isinstance(entry, tuple):
            # Protobuf has no lists of lists: a message with a single list stands for the inner one.
            getattr(added := repeated.add(), added.DESCRIPTOR.fields[0].name).extend(entry)
        else:
            repeated.append(entry)


def _lift(value: Any, hint: Any, what: str) -> Any:
    if _optional(hint):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if isinstance(value, Message):
            value = getattr(value, value.DESCRIPTOR.fields[0].name)
        return tuple(_lift(entry, item, what) for entry in value)
    if isinstance(hint, typing.NewType):
        hint = hint.__supertype__
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_wire(value, hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        try:
            return hint(value)
        except ValueError as exc:
            raise MalformedMessage(f"{what}: unknown value {value!r:.40}") from exc
    return value


def _optional(hint: Any) -> bool:
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return union and type(None) in typing.get_args(hint)


@lru_cache(maxsize=128)
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)
