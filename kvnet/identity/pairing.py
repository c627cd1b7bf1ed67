"""Pairing as a pure state machine: a one-use code makes two nodes sure of each other's identity key.

The inviter gave out the code, the joiner was told it. SPAKE2 over the code, bound to both identity keys and
their roles, gives both one key; a MAC over all that was said proves it to either; only then does either say
who it is. Whoever relays with keys of its own, or guesses the code, fails the proof and has used up a guess.
Source: FORMAT.md §13. Knows keys, codes and messages; no sockets, and of the clock only `now`, in seconds.

Each step makes the next: only a proof that holds makes a `Confirmed`, and nothing else opens an introduction.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import InitVar, dataclass, field
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nacl.bindings import crypto_core_ed25519_is_valid_point
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox
from spake2 import SPAKE2_A, SPAKE2_B, SPAKEError

from kvnet.errors import (
    BadSignature,
    MalformedMessage,
    PairingClosed,
    PairingExpired,
    RequestError,
    WrongCode,
)
from kvnet.format import strict_json
from kvnet.identity.codes import PairingCode
from kvnet.identity.keys import NodeKey, verify_signature
from kvnet.identity.pairing_messages import (
    MAX_MESSAGE_NBYTES,
    NONCE_NBYTES,
    PAIRING_VERSION,
    Answer,
    Introduction,
    InviterProof,
    Join,
    JoinerProof,
    Sealed,
    pack,
)
from kvnet.types import canonical_json, to_plain

LIFE_S: Final = 120.0
MAX_GUESSES: Final = 3
_DOMAIN: Final = b"kvnet/pairing/v1\0"
_INVITER: Final = "inviter"
_JOINER: Final = "joiner"
_NUM_DIGITS: Final = 6
_WITNESS: Final = object()


@dataclass(frozen=True, slots=True)
class _Keys:
    """What both sides derive from SPAKE2's key and all that was said."""

    shared: bytes = field(repr=False)
    transcript: bytes

    def derive(self, label: str) -> bytes:
        """32 bytes for one purpose: HKDF-SHA256 (RFC 5869) with the transcript as its salt."""
        return HKDF(SHA256(), 32, self.transcript, _DOMAIN + label.encode()).derive(self.shared)

    def mac(self, role: str) -> bytes:
        """A role's proof that it has the same key and heard the same words."""
        return hmac.digest(self.derive(f"{role} proof"), self.transcript, "sha256")


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The other side knows the code, and this is its key. Made by a proof that holds alone."""

    peer_public: bytes
    compares: bool
    _keys: _Keys
    _role: str
    _peer_role: str
    _key: NodeKey = field(repr=False)
    _witness: InitVar[object]  # no field, so that dataclasses.replace cannot copy it

    def __post_init__(self, _witness: object) -> None:
        if _witness is not _WITNESS:
            raise TypeError("Confirmed is made by a proof")

    @property
    def short_auth_string(self) -> str:
        """Six digits that are the same on both sides, unless somebody who knows the code stands between."""
        digits = int.from_bytes(self._keys.derive("short authentication string")) % 10**_NUM_DIGITS
        text = f"{digits:0{_NUM_DIGITS}}"
        return f"{text[:3]} {text[3:]}"

    def seal(self, introduction: Introduction) -> Sealed:
        """Box this node's introduction for the other one."""
        return self._box("introduction", canonical_json(to_plain(introduction)))

    def open(self, sealed: Sealed) -> Introduction:
        """Inverse of the other side's `seal`. Raises MalformedMessage."""
        body = self._unbox("introduction", sealed)
        return strict_json.decode(
            Introduction, body, what="pairing introduction", max_nbytes=MAX_MESSAGE_NBYTES
        )

    def agree(self) -> Sealed:
        """That this side keeps the other, signed by the key that it is to be known by."""
        return self._box("agreement", self._key.sign(self._claim(self._role)))

    def require_agreement(self, sealed: Sealed) -> None:
        """That the other side keeps this one, and holds the key that it named.

        The code proves who was told it, and a key is public: without this anybody could claim any.
        Raises BadSignature, MalformedMessage.
        """
        signature = self._unbox("agreement", sealed)
        if not verify_signature(self.peer_public, self._claim(self._peer_role), signature):
            raise BadSignature("pairing agreement: the other node does not hold the key that it named")

    def _claim(self, role: str) -> bytes:
        return _DOMAIN + f"{role} agreement".encode() + b"\0" + self._keys.transcript

    def _box(self, what: str, body: bytes) -> Sealed:
        # A key for each box: none can stand in for another, or come back to who sent it.
        return Sealed(bytes(SecretBox(self._keys.derive(f"{self._role} {what}")).encrypt(body)))

    def _unbox(self, what: str, sealed: Sealed) -> bytes:
        try:
            return SecretBox(self._keys.derive(f"{self._peer_role} {what}")).decrypt(sealed.box)
        except CryptoError as exc:
            raise MalformedMessage(f"pairing {what}: the box does not open; it was altered") from exc


class Invitation:
    """A code that was given out: it lives two minutes, is used once, and closes at the third wrong guess."""

    __slots__ = ("_expires_at", "_guesses_left", "_key", "_used", "code", "compares")

    def __init__(self, key: NodeKey, code: PairingCode, *, now: float, compares: bool = False) -> None:
        self.code = code
        self.compares = compares
        self._key = key
        self._expires_at = now + LIFE_S
        self._guesses_left = MAX_GUESSES
        self._used = False

    @property
    def expires_at(self) -> float:
        """On the clock that `now` is of."""
        return self._expires_at

    @property
    def guesses_left(self) -> int:
        """How many more times somebody may try the code."""
        return self._guesses_left

    def require_open(self, now: float) -> None:
        """Raise PairingClosed or PairingExpired where the code counts no more."""
        if self._used:
            raise PairingClosed("pairing: this code was used; make another with `kvnet pair`")
        if now >= self._expires_at:
            raise PairingExpired(f"pairing: nobody used the code in {LIFE_S:.0f} s; run `kvnet pair` again")

    def take_guess(self, now: float) -> None:
        """Count a guess before it is answered: its end may never be heard. Raises as `require_open`."""
        self.require_open(now)
        if self._guesses_left == 0:
            raise self.too_many_guesses()
        self._guesses_left -= 1

    def too_many_guesses(self) -> PairingClosed:
        """Why a code is closed that nobody used."""
        return PairingClosed(
            f"pairing: closed after {MAX_GUESSES} wrong guesses; if they were not yours, somebody on the "
            "network tries codes; run `kvnet pair` again"
        )

    def answer(self, join: Join) -> Answered:
        """Answer whoever may know the code; one `take_guess` for each. Costs five scalar multiplications.

        Raises MalformedMessage for a point that is none, RequestError for this node's own key.
        """
        _refuse_self(self._key, join.public)
        mine = _identity(_INVITER, self._key.public)
        exchange = SPAKE2_A(self.code.secret, idA=mine, idB=_identity(_JOINER, join.public))
        answer = Answer(
            PAIRING_VERSION, self.compares, self._key.public, exchange.start(), os.urandom(NONCE_NBYTES)
        )
        return Answered(join, answer, self._key, _finish(exchange, join.pake))

    def use(self, now: float) -> None:
        """Use the code up; of two that prove it at once, one is too late. Raises as `require_open`."""
        self.require_open(now)
        self._used = True


@dataclass(frozen=True, slots=True)
class Answered:
    """The inviter has answered and waits for the joiner's proof."""

    join: Join
    answer: Answer
    _key: NodeKey = field(repr=False)
    _shared: bytes = field(repr=False)

    def check(self, proof: JoinerProof) -> tuple[Confirmed, InviterProof]:
        """Who joins, and this side's own proof for it. Raises WrongCode, MalformedMessage."""
        keys = _Keys(self._shared, _transcript(self.join, self.answer, proof.nonce))
        if not hmac.compare_digest(proof.mac, keys.mac(_JOINER)):
            raise WrongCode("pairing: a node tried another code, or something between changed its words")
        if _commit(proof.nonce) != self.join.commitment:
            raise MalformedMessage("pairing: the joining node's nonce is not the one that it promised")
        compares = self.join.compares or self.answer.compares
        confirmed = Confirmed(self.join.public, compares, keys, _INVITER, _JOINER, self._key, _WITNESS)
        return confirmed, InviterProof(keys.mac(_INVITER))


class Joining:
    """The joiner's side before it is answered."""

    __slots__ = ("_exchange", "_key", "_nonce", "join")

    def __init__(self, key: NodeKey, code: PairingCode, *, compares: bool = False) -> None:
        self._key = key
        self._nonce = os.urandom(NONCE_NBYTES)
        self._exchange = SPAKE2_B(code.secret, idB=_identity(_JOINER, key.public))
        self.join = Join(PAIRING_VERSION, compares, key.public, self._exchange.start(), _commit(self._nonce))

    def prove(self, answer: Answer) -> tuple[JoinerProof, Proved]:
        """This side's proof for the inviter, and what waits for the inviter's. Once only.

        Raises MalformedMessage for a point that is none, RequestError for this node's own key.
        """
        _refuse_self(self._key, answer.public)
        # Only now is it known who invites; the library reads both identities when it finishes, not before.
        self._exchange.idA = _identity(_INVITER, answer.public)
        shared = _finish(self._exchange, answer.pake)
        keys = _Keys(shared, _transcript(self.join, answer, self._nonce))
        proved = Proved(answer.public, self.join.compares or answer.compares, self._key, keys)
        return JoinerProof(self._nonce, keys.mac(_JOINER)), proved


@dataclass(frozen=True, slots=True)
class Proved:
    """The joiner has proved the code and waits for the inviter to do so."""

    peer_public: bytes
    compares: bool
    _key: NodeKey = field(repr=False)
    _keys: _Keys

    def check(self, proof: InviterProof) -> Confirmed:
        """Who invited. Raises WrongCode."""
        if not hmac.compare_digest(proof.mac, self._keys.mac(_INVITER)):
            raise WrongCode("pairing: the node that answered does not know the code; look whom you dialled")
        return Confirmed(self.peer_public, self.compares, self._keys, _JOINER, _INVITER, self._key, _WITNESS)


def _identity(role: str, public: bytes) -> bytes:
    return _DOMAIN + role.encode() + b"\0" + public


def _commit(nonce: bytes) -> bytes:
    """A promise: whoever stands between cannot choose a nonce that makes two short strings alike."""
    return hashlib.sha256(_DOMAIN + b"nonce\0" + nonce).digest()


def _transcript(join: Join, answer: Answer, nonce: bytes) -> bytes:
    """SHA-256 of everything said before the proofs; both messages have a fixed length."""
    return hashlib.sha256(_DOMAIN + pack(join) + pack(answer) + nonce).digest()


def _finish(exchange: SPAKE2_A | SPAKE2_B, pake: bytes) -> bytes:
    """SPAKE2's 32-byte key. Raises MalformedMessage where the other half is no point, or of our role."""
    # Before the pure-Python group sees it: canonical, on the curve, of the prime order.
    if not crypto_core_ed25519_is_valid_point(pake[1:]):
        raise MalformedMessage("pairing: the other half of the key exchange is no point of the group")
    try:
        return bytes(exchange.finish(pake))
    except SPAKEError as exc:
        raise MalformedMessage("pairing: the other half of the key exchange is for the same role") from exc


def _refuse_self(key: NodeKey, public: bytes) -> None:
    if public == key.public:
        raise RequestError("pairing: this code is this very node's; type it on the other machine")
