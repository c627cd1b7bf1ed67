"""The node's Ed25519 key and the text form of its public half. Knows files and keys; no messages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from kvnet.errors import RequestError
from kvnet.identity.secret_file import load_or_create_secret, load_secret
from kvnet.types import NodeId, base32, unbase32

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PUBLIC_KEY_NBYTES = 32
SHORT_ID_CHARS = 13
_SEED_NBYTES = 32


class NodeKey:
    """A node's identity: the private key stays in here."""

    __slots__ = ("_signing", "node_id", "public")

    def __init__(self, seed: bytes) -> None:
        self._signing = SigningKey(seed)
        self.public = bytes(self._signing.verify_key)
        self.node_id = node_id_of(self.public)

    def sign(self, message: bytes) -> bytes:
        """64 bytes of Ed25519 over `message` (RFC 8032)."""
        return self._signing.sign(message).signature

    def issuer(self) -> Ed25519PrivateKey:
        """The key as what signs certificates. Only `identity.certificates` has a use for it."""
        # Here, not above: the CLI reads ids and must not wait for a library it does not need.
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Ed25519PrivateKey.from_private_bytes(bytes(self._signing))

    @classmethod
    def generate(cls) -> NodeKey:
        """A fresh identity."""
        return cls(os.urandom(_SEED_NBYTES))

    @classmethod
    def load_or_create(cls, path: Path) -> NodeKey:
        """Read the key file, or make one with mode 0600.

        Raises StateCorrupt when the file is not a key or when others can read it.
        """
        return cls(load_or_create_secret(path, what="identity"))

    @classmethod
    def load(cls, path: Path) -> NodeKey | None:
        """Read the key file; None where there is none. Raises as `load_or_create`."""
        seed = load_secret(path, what="identity")
        return None if seed is None else cls(seed)


def verify_signature(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` over `message` was made by the holder of `public`."""
    if len(public) != PUBLIC_KEY_NBYTES or len(signature) != 64:
        return False
    try:
        VerifyKey(public).verify(message, signature)
    except BadSignatureError:
        return False
    return True


def node_id_of(public: bytes) -> NodeId:
    """The text form of a public key."""
    return NodeId(base32(public))


def public_key_of(node_id: str) -> bytes:
    """Inverse of `node_id_of`. Accepts groups and upper case. Raises RequestError on anything else."""
    text = node_id.replace("-", "").replace(" ", "").lower()
    try:
        public = unbase32(text)
    except ValueError:
        public = b""
    if len(public) != PUBLIC_KEY_NBYTES:
        raise RequestError(
            f"node id {node_id:.60}: not the base32 of a 32-byte key; "
            "copy it from `kvnet status` on that node"
        )
    return public


def short_id(node_id: str) -> str:
    """The form for logs and for mDNS."""
    return node_id[:SHORT_ID_CHARS]


def grouped(node_id: str) -> str:
    """The form for reading aloud: groups of thirteen."""
    return "-".join(node_id[i : i + SHORT_ID_CHARS] for i in range(0, len(node_id), SHORT_ID_CHARS))
