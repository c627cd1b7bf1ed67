"""The fixed-width chunk envelope: what a chunk's signature covers. Knows bytes only; no keys, no tensors.

Layout, little-endian, 208 bytes (FORMAT.md §4):

    0    16  domain tag "kvnet/chunk/v2" + two zero bytes
    16   32  sender's Ed25519 public key
    48   32  receiver's Ed25519 public key
    80   16  transfer id
    96   16  receiver's nonce
    112  32  SHA-256 of the offer's body
    144   4  layer index
    148   1  kind            0 key, 1 value, 2 attention, 3 basis, 4 coordinates
    149   1  compression     0 none, 1 lz4, 2 zstd, 3 split
    150   2  zero
    152   4  first token
    156   4  token after the last
    160   4  chunk index
    164   4  chunks in the transfer
    168   4  raw length
    172   4  wire length
    176  32  BLAKE3 of the wire bytes
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from kvnet.errors import MalformedChunk
from kvnet.plan import MAX_CHUNK_RAW_NBYTES, ChunkKey
from kvnet.types import Compression, Kind

DOMAIN = b"kvnet/chunk/v2\0\0"
_LAYOUT = struct.Struct("<16s32s32s16s16s32sIBBHIIIIII32s")
ENVELOPE_NBYTES = _LAYOUT.size
_KINDS = frozenset(int(kind) for kind in Kind)
_COMPRESSIONS = frozenset(int(compression) for compression in Compression)


@dataclass(frozen=True, slots=True)
class Envelope:
    """Everything a chunk claims about itself."""

    sender_key: bytes
    receiver_key: bytes
    transfer_id: bytes
    nonce: bytes
    offer_digest: bytes
    key: ChunkKey
    total: int
    compression: Compression
    raw_nbytes: int
    wire_nbytes: int
    wire_digest: bytes

    def pack(self) -> bytes:
        """The 208 bytes that are signed."""
        return _LAYOUT.pack(
            DOMAIN,
            self.sender_key,
            self.receiver_key,
            self.transfer_id,
            self.nonce,
            self.offer_digest,
            self.key.layer_idx,
            self.key.kind,
            self.compression,
            0,
            self.key.start,
            self.key.stop,
            self.key.index,
            self.total,
            self.raw_nbytes,
            self.wire_nbytes,
            self.wire_digest,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Envelope:
        """Inverse of `pack`. Raises MalformedChunk on any byte sequence `pack` cannot produce."""
        if len(data) != ENVELOPE_NBYTES:
            raise MalformedChunk(f"envelope: {len(data)} bytes, FORMAT.md §4 has {ENVELOPE_NBYTES}")
        domain, sender, receiver, transfer, nonce, offer, *rest = _LAYOUT.unpack(data)
        layer, kind, comp, zero, start, stop, index, total, raw, wire, digest = rest
        if domain != DOMAIN:
            raise MalformedChunk("envelope: wrong domain tag; the peer speaks another version")
        if zero or kind not in _KINDS or comp not in _COMPRESSIONS:
            raise MalformedChunk(f"envelope: kind {kind}, compression {comp}, reserved {zero} are not of §4")
        if raw > MAX_CHUNK_RAW_NBYTES or wire > raw:
            raise MalformedChunk(f"envelope: raw {raw} and wire {wire} bytes, at most {MAX_CHUNK_RAW_NBYTES}")
        if comp == Compression.NONE and wire != raw:
            raise MalformedChunk(f"envelope: {wire} wire bytes uncompressed, but {raw} raw bytes")
        key = ChunkKey(index, layer, Kind(kind), start, stop)
        return cls(sender, receiver, transfer, nonce, offer, key, total, Compression(comp), raw, wire, digest)
