"""signature.sig: the signed list of a package's files. Knows bytes and keys; no folders and no zips."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Final

from kvnet.errors import MalformedPackage, RequestError
from kvnet.files.document_coding import Rule, decode_document, encode_document, matching
from kvnet.files.documents import Label
from kvnet.files.package.names import REQUIRED_PATHS, SIGNATURE_PATH, check_paths
from kvnet.format.strict_json import MAX_DOCUMENT_NBYTES
from kvnet.identity.keys import node_id_of, public_key_of
from kvnet.identity.signing import SignedMessage, verify_message
from kvnet.types import NodeId, canonical_json, to_plain

PACKAGE_TYPE: Final = "kvnet/package/v1"
LISTING_VERSION: Final = 1

Version = Annotated[int, Rule(lambda version: version == LISTING_VERSION, str(LISTING_VERSION))]
Sign = Callable[[bytes], SignedMessage]


@dataclass(frozen=True, slots=True)
class PackageFile:
    """One file of a package, as its signer saw it."""

    path: Label
    size: int  # bytes
    sha256: Annotated[str, matching(r"[0-9a-f]{64}", "64 lower-case hex digits")]


@dataclass(frozen=True, slots=True)
class Listing:
    """The document signature.sig."""

    files: tuple[PackageFile, ...]
    signed_by: Annotated[NodeId, matching(r"[a-z2-7]{51}[aq]", "a node id")]
    signature: Annotated[str, matching(r"[A-Za-z0-9+/]{86}==", "base64 of 64 bytes")]
    version: Version

    @property
    def by_path(self) -> Mapping[str, PackageFile]:
        """The files by their path."""
        return {file.path: file for file in self.files}


def encode_listing(files: Mapping[str, PackageFile], sign: Sign) -> bytes:
    """signature.sig over `files`; `sign` signs a body as PACKAGE_TYPE with a key that may live elsewhere."""
    ordered = tuple(files[path] for path in sorted(files))
    signed = sign(_body(ordered))
    if signed.type != PACKAGE_TYPE or signed.body != _body(ordered):
        raise ValueError(f"sign made a {signed.type} message over another body")
    signature = base64.b64encode(signed.signature).decode()
    listing = Listing(ordered, node_id_of(signed.signer), signature, LISTING_VERSION)
    return encode_document(listing, what=SIGNATURE_PATH)


def decode_listing(encoded: bytes) -> Listing:
    """Inverse of `encode_listing`: a list whose names and signature hold.

    Raises MalformedPackage and BadSignature. Source: FORMAT.md §9.
    """
    listing = decode_document(Listing, encoded, what=SIGNATURE_PATH)
    _check_files(listing.files)
    public, signature = _public_key(listing.signed_by), _signature(listing.signature)
    signed = SignedMessage(PACKAGE_TYPE, _body(listing.files), public, signature)
    verify_message(signed, type_=PACKAGE_TYPE, max_nbytes=MAX_DOCUMENT_NBYTES)
    return listing


def check_listing(body: bytes) -> None:
    """Refuse what is not the body of a list that `decode_listing` would take: MalformedPackage."""
    wrapped = b'{"files":' + body + b"}"
    files = decode_document(_Body, wrapped, what=SIGNATURE_PATH).files
    _check_files(files)
    if _body(files) != body:
        raise MalformedPackage(f"{SIGNATURE_PATH}: the list is not in canonical form (FORMAT.md §1)")


@dataclass(frozen=True, slots=True)
class _Body:
    files: tuple[PackageFile, ...]


def _check_files(files: tuple[PackageFile, ...]) -> None:
    paths = [file.path for file in files]
    check_paths(paths, what=SIGNATURE_PATH)
    if paths != sorted(paths):
        raise MalformedPackage(f"{SIGNATURE_PATH}: the paths are not in code-point order")
    for path in (SIGNATURE_PATH, *sorted(REQUIRED_PATHS)):
        if (path in paths) == (path == SIGNATURE_PATH):
            raise MalformedPackage(
                f"{SIGNATURE_PATH}: {path} is {'' if path in paths else 'not '}in the list"
            )


def _body(files: tuple[PackageFile, ...]) -> bytes:
    return canonical_json([to_plain(file) for file in files])


def _public_key(node_id: str) -> bytes:
    try:
        return public_key_of(node_id)
    except RequestError as exc:
        raise MalformedPackage(f"{SIGNATURE_PATH}: signedBy {node_id:.60} is no node id") from exc


def _signature(text: str) -> bytes:
    signature = base64.b64decode(text)
    if base64.b64encode(signature).decode() != text:
        raise MalformedPackage(f"{SIGNATURE_PATH}: the signature is not canonical base64")
    return signature
