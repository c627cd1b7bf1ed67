"""What memories are sealed with at rest, and the key for it. Knows bytes and files; not what they mean.

A frame is one libsodium secretstream (XChaCha20-Poly1305) of one message, `TAG_FINAL`: 24 bytes of header,
the ciphertext, 17 bytes of tag. Each section is a frame of its own, so any can be read without those before
it. The key lies in the identity folder: whoever holds the store alone holds noise.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

from nacl import bindings
from nacl.exceptions import RuntimeError as WrongBytes

from kvnet.durable import write_durably
from kvnet.errors import StateCorrupt

KEY_NBYTES: Final = bindings.crypto_secretstream_xchacha20poly1305_KEYBYTES
_HEADER_NBYTES: Final = bindings.crypto_secretstream_xchacha20poly1305_HEADERBYTES
SEAL_NBYTES: Final = _HEADER_NBYTES + bindings.crypto_secretstream_xchacha20poly1305_ABYTES
_FINAL: Final = bindings.crypto_secretstream_xchacha20poly1305_TAG_FINAL
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
        return hashlib.blake2b(b"kvnet/vault/v1", key=self._key, digest_size=16).hexdigest()

    def seal(self, data: bytes | memoryview, *, what: str) -> bytes:
        """A frame of `data`, SEAL_NBYTES longer. It opens as the same `what` only."""
        state = bindings.crypto_secretstream_xchacha20poly1305_state()
        header = bindings.crypto_secretstream_xchacha20poly1305_init_push(state, self._key)
        sealed = bindings.crypto_secretstream_xchacha20poly1305_push(state, bytes(data), _bound(what), _FINAL)
        return header + sealed

    def open(self, frame: bytes, *, what: str) -> bytes:
        """Inverse of `seal`. Raises StateCorrupt for bytes that this key did not seal as `what`."""
        if len(frame) < SEAL_NBYTES:
            raise StateCorrupt(f"a frame of {len(frame)} bytes; the shortest has {SEAL_NBYTES}")
        state = bindings.crypto_secretstream_xchacha20poly1305_state()
        bindings.crypto_secretstream_xchacha20poly1305_init_pull(state, frame[:_HEADER_NBYTES], self._key)
        try:
            data, tag = bindings.crypto_secretstream_xchacha20poly1305_pull(
                state, frame[_HEADER_NBYTES:], _bound(what)
            )
        except WrongBytes as exc:
            raise StateCorrupt("these bytes were changed, or sealed with another key") from exc
        if tag != _FINAL:
            raise StateCorrupt("a frame that goes on behind its end")
        return data

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
    return b"kvnet/rest/v1/" + what.encode()
