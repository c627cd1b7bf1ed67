"""What two nodes say to each other while they pair, and its bytes. Source: FORMAT.md §13.

A message is a kind byte and fields of fixed width, so that a stranger's bytes are refused by their length;
only a box varies. Knows bytes; no keys' meaning, no sockets.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, ClassVar, Final, TypeVar, cast

from kvnet.errors import (
    KvnetError,
    MalformedMessage,
    PairingClosed,
    PairingDeclined,
    PairingExpired,
    ProtocolMismatch,
    RequestError,
    TooBusy,
    WrongCode,
)

PAIRING_VERSION: Final = 2
MAX_MESSAGE_NBYTES: Final = 4096
NONCE_NBYTES: Final = 16
MAC_NBYTES: Final = 32
PAKE_NBYTES: Final = 33  # the side, and a point of Ed25519's group


class Refusal(IntEnum):
    """Why a node ends a pairing."""

    WRONG_CODE = 1
    EXPIRED = 2
    CLOSED = 3
    BUSY = 4
    DECLINED = 5
    VERSION = 6
    MALFORMED = 7
    ITSELF = 8


# What the node that is told so raises.
_TOLD: dict[Refusal, tuple[type[KvnetError], str]] = {
    Refusal.WRONG_CODE: (WrongCode, "the code is not the one it shows; look again, and try once more"),
    Refusal.EXPIRED: (PairingExpired, "its code is older than two minutes; run `kvnet pair` there again"),
    Refusal.CLOSED: (PairingClosed, "its code was used, or guessed too often; run `kvnet pair` there again"),
    Refusal.BUSY: (TooBusy, "others dial it just now; try again in a few seconds"),
    Refusal.DECLINED: (PairingDeclined, "it ended the pairing; nothing was kept on either side"),
    Refusal.VERSION: (ProtocolMismatch, "it pairs in another way; install the same kvnet on both nodes"),
    Refusal.MALFORMED: (MalformedMessage, "it did not understand this node; install the same kvnet on both"),
    Refusal.ITSELF: (RequestError, "is this very node; type the code on the other machine"),
}
_REASONS: tuple[tuple[type[KvnetError], Refusal], ...] = (
    (WrongCode, Refusal.WRONG_CODE),
    (PairingExpired, Refusal.EXPIRED),
    (PairingClosed, Refusal.CLOSED),
    (TooBusy, Refusal.BUSY),
    (ProtocolMismatch, Refusal.VERSION),
    (MalformedMessage, Refusal.MALFORMED),
    (RequestError, Refusal.ITSELF),
)


@dataclass(frozen=True, slots=True)
class Join:
    """The joiner's first word: its key, its half of the key exchange, a promise of its nonce."""

    KIND: ClassVar[int] = 1
    LAYOUT: ClassVar[struct.Struct] = struct.Struct(f"<B?32s{PAKE_NBYTES}s32s")

    version: int
    compares: bool  # shall people compare a number before it counts
    public: bytes
    pake: bytes
    commitment: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """The inviter's: its key, its half, and its nonce."""

    KIND: ClassVar[int] = 2
    LAYOUT: ClassVar[struct.Struct] = struct.Struct(f"<B?32s{PAKE_NBYTES}s{NONCE_NBYTES}s")

    version: int
    compares: bool
    public: bytes
    pake: bytes
    nonce: bytes


@dataclass(frozen=True, slots=True)
class JoinerProof:
    """The nonce that was promised, and that the joiner knows the code."""

    KIND: ClassVar[int] = 3
    LAYOUT: ClassVar[struct.Struct] = struct.Struct(f"<{NONCE_NBYTES}s{MAC_NBYTES}s")

    nonce: bytes
    mac: bytes


@dataclass(frozen=True, slots=True)
class InviterProof:
    """That the inviter knows it too."""

    KIND: ClassVar[int] = 4
    LAYOUT: ClassVar[struct.Struct] = struct.Struct(f"<{MAC_NBYTES}s")

    mac: bytes


@dataclass(frozen=True, slots=True)
class Sealed:
    """A box that only the two can open."""

    KIND: ClassVar[int] = 5

    box: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """The end, and why."""

    KIND: ClassVar[int] = 6
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<B")

    reason: int


@dataclass(frozen=True, slots=True)
class Introduction:
    """What a node says of itself once both have proved the code; strict JSON in a box."""

    name: str
    namespace: str
    port: int  # of its peer API


Message = Join | Answer | JoinerProof | InviterProof | Sealed | Refused
M = TypeVar("M", bound=Message)


def pack(message: Message) -> bytes:
    """The kind and the fields (FORMAT.md §13). Raises ValueError for a box that is too long."""
    if isinstance(message, Sealed):
        if not 0 < len(message.box) < MAX_MESSAGE_NBYTES:
            raise ValueError(f"a box of {len(message.box)} bytes does not fit into a message")
        return bytes([message.KIND]) + message.box
    values = [getattr(message, spec.name) for spec in fields(message)]
    return bytes([message.KIND]) + message.LAYOUT.pack(*values)


def unpack(data: bytes, wanted: type[M], *, who: str) -> M:
    """Inverse of `pack`, for the one kind of message that may come now.

    Raises what a Refused says, ProtocolMismatch for another version, MalformedMessage for anything else.
    """
    if data[:1] == bytes([Refused.KIND]) and len(data) == 2 and wanted is not Refused:
        raise refusal_to_error(data[1], who=who)
    if data[:1] != bytes([wanted.KIND]):
        raise MalformedMessage(
            f"{who}: sent kind {data[:1].hex() or 'nothing'} where {wanted.__name__} was due"
        )
    body = data[1:]
    if wanted in (Join, Answer) and body[:1] != bytes([PAIRING_VERSION]):
        raise ProtocolMismatch(
            f"{who}: pairs by version {body[:1].hex() or 'none'} (needs {PAIRING_VERSION:02x}); "
            "install the same kvnet on both nodes"
        )
    made = _lift(body, wanted)
    if made is None or pack(made) != data:  # one message, one spelling: a flag is 0 or 1
        raise MalformedMessage(f"{who}: {len(data)} bytes are no {wanted.__name__}")
    return made


def error_to_refusal(error: BaseException) -> Refused:
    """What the other side is told of why this node ends the pairing; nothing of what is wrong here."""
    return Refused(next((reason for cls, reason in _REASONS if isinstance(error, cls)), Refusal.DECLINED))


def refusal_to_error(reason: int, *, who: str) -> KvnetError:
    """Inverse of `error_to_refusal`, told by `who`."""
    try:
        kind, why = _TOLD[Refusal(reason)]
    except ValueError:
        return PairingDeclined(
            f"{who}: ended the pairing for a reason that this node does not know ({reason})"
        )
    return kind(f"{who}: {why}")


def _lift(body: bytes, wanted: type[M]) -> M | None:
    plain: Any = wanted
    if wanted is Sealed:
        made = plain(body) if 0 < len(body) < MAX_MESSAGE_NBYTES else None
    else:
        made = plain(*plain.LAYOUT.unpack(body)) if len(body) == plain.LAYOUT.size else None
    return cast("M | None", made)
