"""The signature of a memory file: who wrote it, over a head that binds every byte. Source: FORMAT.md §7.

Knows heads and keys; no files. Only `verify_head` and `verify_head_bytes` make a VerifiedHead; who
reads a file's sections accepts nothing else.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import Final

from kvnet.errors import BadSignature, KvnetError, MalformedFile, MalformedMessage, RequestError
from kvnet.format.awkg import (
    MAX_HEAD_NBYTES,
    SIGNATURE_NBYTES,
    AwkgHeader,
    check_head,
    pack_head,
    unpack_head,
)
from kvnet.identity.keys import NodeKey, node_id_of, public_key_of, short_id
from kvnet.identity.signing import SignedMessage, sign_message, verify_message
from kvnet.types import MemoryId

SEAL_TYPE: Final = "kvnet/awkg/v3"
_WITNESS: Final = object()


@dataclass(frozen=True, slots=True)
class VerifiedHead:
    """The head of a file whose signature holds and which agrees with itself."""

    header: AwkgHeader
    sealed: SignedMessage
    _witness: InitVar[object]  # no field, so that dataclasses.replace cannot copy it

    def __post_init__(self, _witness: object) -> None:
        if _witness is not _WITNESS:
            raise TypeError("VerifiedHead is made by verify_head")

    @property
    def memory_id(self) -> MemoryId:
        """The id of the memory in the file."""
        return self.header.memory.id

    @property
    def file_nbytes(self) -> int:
        """Length of the whole file: head, sections and signature."""
        return len(self.sealed.body) + self.header.sections_nbytes + SIGNATURE_NBYTES


def seal_head(key: NodeKey, header: AwkgHeader) -> SignedMessage:
    """Pack and sign a header; the message's body is the file's head.

    Raises RequestError for a header that is too long, ValueError for one that `verify_head` would refuse.
    """
    if header.signed_by != key.node_id:
        raise ValueError(f"a header signed by {header.signed_by} cannot be sealed by {key.node_id}")
    sealed = sign_message(key, SEAL_TYPE, pack_head(header))
    try:
        verify_head(sealed)
    except KvnetError as exc:
        raise ValueError(f"a header that no reader takes: {exc.message}") from exc
    return sealed


def verify_head(sealed: SignedMessage) -> VerifiedHead:
    """Check a head and its signature by the key it names: rules 1 to 7 of FORMAT.md §7.2, in this order.

    Raises MalformedFile, UnsupportedFormat or BadSignature; MalformedMessage for another type of message.
    """
    if sealed.type != SEAL_TYPE:
        raise MalformedMessage(f"expected a {SEAL_TYPE} message, got {sealed.type!r:.40}")
    return _verify(unpack_head(sealed.body), sealed)


def verify_head_bytes(head: bytes, signature: bytes) -> VerifiedHead:
    """`verify_head` of a file's first bytes and its last 64; raises as it does."""
    header = unpack_head(head)
    sealed = SignedMessage(SEAL_TYPE, head, _signer_of(header), signature)
    try:
        return _verify(header, sealed)
    except BadSignature as exc:
        raise BadSignature(
            f"memory file: not what {short_id(header.signed_by)} signed; it was altered or cut short"
        ) from exc


def _verify(header: AwkgHeader, sealed: SignedMessage) -> VerifiedHead:
    verify_message(sealed, type_=SEAL_TYPE, signer=_signer_of(header), max_nbytes=MAX_HEAD_NBYTES)
    check_head(header)
    return VerifiedHead(header, sealed, _WITNESS)


def _signer_of(header: AwkgHeader) -> bytes:
    """The public key behind `signedBy`, which has one spelling only."""
    try:
        public = public_key_of(header.signed_by)
    except RequestError as exc:
        raise MalformedFile(f"memory file: signedBy is {header.signed_by!r:.60}, wanted a node id") from exc
    if node_id_of(public) != header.signed_by:
        raise MalformedFile(
            f"memory file: signedBy is {header.signed_by!r:.60}, wanted lower case, ungrouped"
        )
    return public
