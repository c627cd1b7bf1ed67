"""What travels when one node reads for another: three messages, and a reading as bytes.

Source: FORMAT.md §11. Knows no sockets and no clock; keys and values stay bytes.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final

from kvnet.errors import (
    BadSignature,
    IncompatibleModel,
    MalformedChunk,
    MalformedMessage,
    ReplayedMessage,
    RequestError,
)
from kvnet.format import strict_json
from kvnet.identity.keys import NodeKey, public_key_of
from kvnet.identity.signing import MAX_BODY_NBYTES, SignedMessage, verify_message
from kvnet.plan import decoded_nbytes, plan_chunks
from kvnet.transfer.messages import Hello, Limits, open_sealed, seal
from kvnet.types import (
    Fingerprint,
    Geometry,
    KeySpace,
    MemoryHeader,
    NodeId,
    RawMemory,
    Scheme,
    chunk_digest,
    content_digest,
    sha256_hex,
)

WINDOW: Final = 8  # texts that may be without an answer
MAX_TEXT_NBYTES: Final = 64 << 10
MAX_CLOSING_NBYTES: Final = 256
MAX_TEXTS: Final = 1 << 20
MAX_READING_NBYTES: Final = 1 << 30
MAX_ADDED_TOKENS: Final = 16  # around a text, of which every other token is a byte or more
PIECE_NBYTES: Final = 1 << 20
_MAX_TEXT_BODY_NBYTES: Final = MAX_BODY_NBYTES + 6 * MAX_TEXT_NBYTES  # JSON writes a byte in at most six
_SPAN: Final = struct.Struct("<II")

Span = tuple[int, int]  # first character and the one after the last


@dataclass(frozen=True, slots=True)
class Reading:
    """What a peer's model made of one text.

    `memory` is raw-coded and of the text with the request's closing behind it; its first `num_sinks` slots
    are the model's own. `spans` are the characters of each slot, (0, 0) of a sink; empty where the peer's
    tokenizer does not tell.
    """

    index: int
    memory: RawMemory
    num_sinks: int
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """Ask a peer to read texts: `sender` asks, `receiver` reads."""

    TYPE: ClassVar[str] = "kvnet/read/v1"

    request_id: str  # 128 random bits, 32 hex digits
    sender: NodeId
    receiver: NodeId
    closing: str  # read behind every text
    num_texts: int
    corpus_digest: str  # sha256:<hex> of what the texts are taken from, by the sender's word
    created_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class ReadText:
    """One text of a request."""

    TYPE: ClassVar[str] = "kvnet/read-text/v1"

    request_id: str
    index: int
    text: str = field(default="", repr=False, metadata={"max_chars": MAX_TEXT_NBYTES})


@dataclass(frozen=True, slots=True)
class ReadingHead:
    """What one text became; the payload follows: the spans, then the memory's raw chunks."""

    TYPE: ClassVar[str] = "kvnet/reading/v1"

    request_id: str
    request_digest: str  # of the request's body, 64 hex digits
    index: int
    text_digest: str
    memory: MemoryHeader
    num_sinks: int
    num_spans: int
    payload_digest: str
    payload_nbytes: int


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it was signed."""

    request: ReadRequest
    digest: str


def sign_request(key: NodeKey, request: ReadRequest) -> tuple[SignedMessage, Asked]:
    """A request for the wire, and what its answers must name."""
    sealed = seal(key, request)
    return sealed, Asked(request, hashlib.sha256(sealed.body).hexdigest())


def open_request(sealed: SignedMessage, *, signer: bytes) -> Asked:
    """Verify a request and check what does not depend on the node. Raises PeerError subclasses."""
    request, verified = open_sealed(ReadRequest, sealed, signer=signer)
    if len(request.closing.encode()) > MAX_CLOSING_NBYTES:
        raise MalformedMessage(f"read: a closing of more than {MAX_CLOSING_NBYTES} bytes; shorten it")
    if not 1 <= request.num_texts <= MAX_TEXTS:
        raise MalformedMessage(f"read: {request.num_texts} texts, allowed are 1 to {MAX_TEXTS}")
    return Asked(request, verified.digest.hex())


def sign_text(key: NodeKey, asked: Asked, index: int, text: str) -> SignedMessage:
    """A text for the wire. Raises RequestError for one that is no UTF-8 or too long."""
    try:
        nbytes = len(text.encode())
    except UnicodeEncodeError as exc:
        raise RequestError(f"text {index}: is not UTF-8 at character {exc.start}; mend it") from exc
    if nbytes > MAX_TEXT_NBYTES:
        raise RequestError(f"text {index}: {nbytes} bytes, a peer reads at most {MAX_TEXT_NBYTES}; cut it")
    return seal(key, ReadText(asked.request.request_id, index, text))


def open_text(sealed: SignedMessage, asked: Asked, index: int) -> str:
    """Inverse of `sign_text`: the text, if it is this one of this request.

    Raises MalformedMessage, ReplayedMessage, BadSignature.
    """
    signer = public_key_of(asked.request.sender)
    bound = _MAX_TEXT_BODY_NBYTES
    verified = verify_message(sealed, type_=ReadText.TYPE, signer=signer, max_nbytes=bound)
    said = strict_json.decode(ReadText, verified.body, what=ReadText.TYPE, max_nbytes=bound)
    if said.request_id != asked.request.request_id:
        raise ReplayedMessage(f"text {index}: belongs to another request")
    if said.index != index:
        raise MalformedMessage(f"text {index}: says it is text {said.index}")
    if len(said.text.encode()) > MAX_TEXT_NBYTES:
        raise MalformedMessage(f"text {index}: more than {MAX_TEXT_NBYTES} bytes")
    return said.text


def encode_reading(reading: Reading, asked: Asked, text: str) -> tuple[ReadingHead, bytes]:
    """A reading as what is signed and its payload."""
    spans = b"".join(_SPAN.pack(*span) for span in reading.spans)
    payload = b"".join((spans, *reading.memory.chunks))
    head = ReadingHead(
        request_id=asked.request.request_id,
        request_digest=asked.digest,
        index=reading.index,
        text_digest=sha256_hex(text.encode()),
        memory=reading.memory.header,
        num_sinks=reading.num_sinks,
        num_spans=len(reading.spans),
        payload_digest=sha256_hex(payload),
        payload_nbytes=len(payload),
    )
    return head, payload


def open_head(sealed: SignedMessage, asked: Asked, index: int, text: str, hello: Hello) -> ReadingHead:
    """Verify what a peer says of a reading, before any of its payload is taken.

    It is signed by whom was asked, of this request and text, by the model of the peer's hello, no longer than
    the text allows, and as long as its memory makes it.
    Raises BadSignature, ReplayedMessage, MalformedMessage, IncompatibleModel.
    """
    head, _ = open_sealed(ReadingHead, sealed, signer=public_key_of(asked.request.receiver))
    if (head.request_id, head.request_digest) != (asked.request.request_id, asked.digest):
        raise ReplayedMessage(f"reading {index}: belongs to another request")
    if head.index != index:
        raise MalformedMessage(f"reading {index}: says it is reading {head.index}; they come in order")
    if head.text_digest != sha256_hex(text.encode()):
        raise MalformedMessage(f"reading {index}: of another text than was asked for")
    _check_memory(head, index, hello, text + asked.request.closing)
    _check_sizes(head, index)
    return head


def decode_reading(head: ReadingHead, payload: bytearray, num_chars: int) -> Reading:
    """The reading whose head was opened; its chunks are views of `payload`, nothing is copied. Blocks.

    `num_chars` is the length of the text and its closing. Raises BadSignature for a payload that was not
    signed, MalformedChunk for spans or contents that contradict their head.
    """
    what = f"reading {head.index}"
    if "sha256:" + hashlib.sha256(payload).hexdigest() != head.payload_digest:
        raise BadSignature(f"{what}: the payload is not what was signed")
    spans_nbytes = head.num_spans * _SPAN.size
    spans = tuple(_SPAN.iter_unpack(memoryview(payload)[:spans_nbytes]))
    _check_spans(spans, head, num_chars)
    header, chunks, place = head.memory, [], spans_nbytes
    for key in plan_chunks(header.geometry, header.seq_len):
        nbytes = decoded_nbytes(header.geometry, key)
        chunks.append(memoryview(payload)[place : place + nbytes])
        place += nbytes
    if content_digest([chunk_digest(chunk) for chunk in chunks]) != header.content_digest:
        raise MalformedChunk(f"{what}: its contents are not those that its memory names")
    return Reading(head.index, RawMemory(header, tuple(chunks)), head.num_sinks, spans)


def check_source(hello: Hello) -> None:
    """That readings by the model of this hello can be planned. Raises MalformedMessage."""
    geometry, limits = hello.geometry, Limits(max_seq_len=0)
    bounds = (
        ("num_layers", geometry.num_layers, limits.max_layers),
        ("num_kv_heads", geometry.num_kv_heads, limits.max_kv_heads),
        ("head_dim", geometry.head_dim, limits.max_head_dim),
    )
    for name, value, most in bounds:
        if not 1 <= value <= most:
            raise MalformedMessage(f"hello: {name} {value}, allowed are 1 to {most}")


def _check_memory(head: ReadingHead, index: int, hello: Hello, text: str) -> None:
    memory = head.memory
    details = _differences(memory.fingerprint, hello.fingerprint) | _differences(
        memory.geometry, hello.geometry
    )
    if details:
        first, (found, wanted) = next(iter(details.items()))
        raise IncompatibleModel(
            f"reading {index}: by a model with {first} {found:.60}, its hello says {wanted:.60}; ask again",
            details=details,
        )
    plain = MemoryHeader(
        memory.fingerprint,
        memory.geometry,
        seq_len=memory.seq_len,
        start_pos=0,
        key_space=KeySpace.ROTATED,
        token_digest=memory.token_digest,
        content_digest=memory.content_digest,
    )
    if memory != plain:
        raise MalformedMessage(
            f"reading {index}: of a memory that is not {Scheme.RAW}, plain and from position 0"
        )
    most = hello.limits.max_seq_len
    if not 1 <= memory.seq_len <= most:
        raise MalformedMessage(f"reading {index}: {memory.seq_len} slots, its model's context holds {most}")
    most = len(text.encode()) + MAX_ADDED_TOKENS
    if memory.seq_len > most:
        raise MalformedMessage(f"reading {index}: {memory.seq_len} slots, its text has {most} at most")


def _check_sizes(head: ReadingHead, index: int) -> None:
    seq_len = head.memory.seq_len
    if head.num_sinks >= seq_len:
        raise MalformedMessage(
            f"reading {index}: {head.num_sinks} sinks of {seq_len} slots; nothing was read"
        )
    if head.num_spans not in (0, seq_len):
        raise MalformedMessage(
            f"reading {index}: {head.num_spans} spans for {seq_len} slots, wanted all or none"
        )
    nbytes = head.memory.raw_nbytes + head.num_spans * _SPAN.size
    if head.payload_nbytes != nbytes or nbytes > MAX_READING_NBYTES:
        raise MalformedMessage(
            f"reading {index}: a payload of {head.payload_nbytes} bytes, its memory and spans have {nbytes}, "
            f"and at most {MAX_READING_NBYTES} are taken"
        )


def _check_spans(spans: tuple[Span, ...], head: ReadingHead, num_chars: int) -> None:
    what = f"reading {head.index}"
    if spans and spans[: head.num_sinks] != ((0, 0),) * head.num_sinks:
        raise MalformedChunk(f"{what}: a sink covers characters")
    before = (0, 0)
    for slot, (start, stop) in enumerate(spans):
        if not (before[0] <= start <= stop <= num_chars and before[1] <= stop):
            raise MalformedChunk(
                f"{what}: slot {slot} covers characters {start} to {stop} after {before[0]} to {before[1]}, "
                f"of {num_chars}; spans ascend within the text"
            )
        before = (start, stop)


def _differences(found: Fingerprint | Geometry, wanted: Fingerprint | Geometry) -> dict[str, list[str]]:
    """Field -> [found, wanted] where they differ; the name for people does not count."""
    if isinstance(found, Fingerprint) and isinstance(wanted, Fingerprint):
        found = replace(found, model=wanted.model)
    pairs = ((name, getattr(found, name), getattr(wanted, name)) for name in found.__dataclass_fields__)
    return {name: [str(one), str(other)] for name, one, other in pairs if one != other}
