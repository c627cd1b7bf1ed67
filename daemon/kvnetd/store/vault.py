"""What memories are sealed with at rest, and the key for it. Knows bytes and files; not what they mean.

A frame is 24 random bytes, and AES-256-GCM (NIST SP 800-38D) of one message under a key of its own: the keyed
BLAKE3 of those bytes. So no key is used twice, and its nonce may be zero (after Gueron and Lindell, CCS 17).
Each section is a frame of its own, so any can be read without those before it. The vault's key lies in the
identity folder: whoever holds the store alone holds noise.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kvnet.durable import write_durably
from kvnet.errors import StateCorrupt

KEY_NBYTES: Final = 32
_SALT_NBYTES: Final = 24
_TAG_NBYTES: Final = 16
_NONCE: Final = bytes(12)
SEAL_NBYTES: Final = _SALT_NBYTES + _TAG_NBYTES
SEALED_SUFFIX: Final = ".sealed"


class Vault:
    """Seals and opens. With `seals` false it only opens: new files are written in clear."""

    def __init__(self, key: bytes, *, seals: bool = True) -> None:
        if len(key) != KEY_NBYTES:
            raise ValueError(f"a key of {len(key)} bytes, wanted {KEY_NBYTES}")
        self._key = key
        self.seals = seals

    @classmethod
    def in_clear(cls) -> Vault:
        """One that writes everything in clear and opens nothing that was sealed before."""
        return cls(os.urandom(KEY_NBYTES), seals=False)

    @property
    def key_id(self) -> str:
        """Tells two keys apart, and says nothing else of them."""
        return hashlib.blake2b(b"kvnet/vault/v2", key=self._key, digest_size=16).hexdigest()

    def seal(self, data: bytes | memoryview, *, what: str) -> bytes:
        """A frame of `data`, SEAL_NBYTES longer. It opens as the same `what` only."""
        salt = os.urandom(_SALT_NBYTES)
        return salt + self._cipher(salt).encrypt(_NONCE, data, _bound(what))

    def open(self, frame: bytes, *, what: str) -> bytes:
        """Inverse of `seal`. Raises StateCorrupt for bytes that this key did not seal as `what`."""
        if len(frame) < SEAL_NBYTES:
            raise StateCorrupt(f"a frame of {len(frame)} bytes; the shortest has {SEAL_NBYTES}")
        view = memoryview(frame)
        try:
            return self._cipher(frame[:_SALT_NBYTES]).decrypt(_NONCE, view[_SALT_NBYTES:], _bound(what))
        except InvalidTag as exc:
            raise StateCorrupt("these bytes were changed, or sealed with another key") from exc

    def _cipher(self, salt: bytes) -> AESGCM:
        return AESGCM(blake3(b"kvnet/vault/v2" + salt, key=self._key).digest())

    def write(self, path: Path, data: bytes) -> Path:
        """Keep a small file durably at `path`, or sealed beside it; returns where."""
        if not self.seals:
            write_durably(path, data)
            return path
        sealed = path.with_suffix(SEALED_SUFFIX)
        write_durably(sealed, self.seal(data, what=path.stem))
        return sealed

    def read(self, path: Path) -> bytes:
        """What `write` kept, in clear or sealed. Raises OSError, StateCorrupt."""
        place = place_of(path)
        data = place.read_bytes()
        if place == path:
            return data
        try:
            return self.open(data, what=path.stem)
        except StateCorrupt as exc:
            raise StateCorrupt(f"{place}: {exc.message}; remove it or restore it") from exc


def place_of(path: Path) -> Path:
    """Where a file lies: sealed if it is, else `path`, whether there is one or not."""
    sealed = path.with_suffix(SEALED_SUFFIX)
    return sealed if sealed.exists() else path


def _bound(what: str) -> bytes:
    return b"kvnet/rest/v2/" + what.encode()
