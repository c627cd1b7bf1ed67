"""Mutual TLS in which identities are pinned: what either end shows and takes, and who answers at an address.

Knows certificates and gRPC's credentials; which keys are trusted it is told. Source: FORMAT.md §12.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import grpc

from kvnet.address import parse_address
from kvnet.errors import BadSignature
from kvnet.identity.certificates import issue_leaf, leaf_digest, pin, server_name, signer_of
from kvnet.identity.keys import NodeKey
from kvnet.transport.limits import Options

LOOK_DEADLINE_S = 3.0


class Shown(NamedTuple):
    """What the other end of a connection has shown: its identity key, and SHA-256 of its leaf."""

    public: bytes
    leaf: bytes


class Credentials:
    """This node's leaf, made anew at each start, and the pins of whom it dials and lets in."""

    def __init__(self, key: NodeKey) -> None:
        self._key = key
        self._leaf = issue_leaf(key)
        self._pins: dict[bytes, bytes] = {}
        # At most the newest: gRPC's threads take it at the next handshake.
        self._fresh: deque[grpc.ServerCertificateConfiguration] = deque(maxlen=1)

    def channel(self, address: str, public: bytes, options: Options) -> grpc.aio.Channel:
        """A channel at whose other end that key alone can be: a client cannot look, so it has one root."""
        credentials = grpc.ssl_channel_credentials(
            pin(public, by=self._key), self._leaf.key_pem, self._leaf.chain_pem
        )
        named = (*options, ("grpc.ssl_target_name_override", server_name(public)))
        return grpc.aio.secure_channel(address, credentials, options=named)

    def server(self, keys: Iterable[bytes]) -> grpc.ServerCredentials:
        """Credentials that let in these keys, until `admit` says otherwise, and nobody without one."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration(keys),
            self._take_fresh,  # type: ignore[arg-type]  # None is "as before", which the stubs forget
            True,
        )

    def admit(self, keys: Iterable[bytes]) -> None:
        """Let in these keys and no others from the next handshake on, resumed sessions included."""
        self._fresh.append(self._configuration(keys))

    def _configuration(self, keys: Iterable[bytes]) -> grpc.ServerCertificateConfiguration:
        # Its own is among them, for gRPC takes no empty set: whoever has that key is this node.
        wanted = {self._key.public, *keys}
        self._pins = {public: self._pins.get(public) or pin(public, by=self._key) for public in wanted}
        return grpc.ssl_server_certificate_configuration(
            [(self._leaf.key_pem, self._leaf.chain_pem)], b"".join(self._pins.values())
        )

    def _take_fresh(self) -> grpc.ServerCertificateConfiguration | None:
        try:
            return self._fresh.pop()
        except IndexError:
            return None


def caller_of(context: grpc.aio.ServicerContext[Any, Any]) -> Shown:
    """Who calls, by the signature on its leaf. Raises BadSignature."""
    certificates = tuple(context.auth_context().get("x509_pem_cert", ()))
    if len(certificates) != 1:
        raise BadSignature("the calling node: shows no certificate")
    return _shown(certificates[0])


async def who_answers(address: str, *, deadline_s: float = LOOK_DEADLINE_S) -> Shown | None:
    """Who could be dialled at HOST:PORT: the handshake alone is made, and this node stays unknown.

    None where nobody answers that has a node's certificate. That it holds the key the handshake proves.
    Raises RequestError for what is no address.
    """
    host, port = parse_address(address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # whose certificate it is, is what we want to know
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(deadline_s):
            _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname="")
    except (OSError, TimeoutError):
        return None
    found: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    try:
        return _shown(ssl.DER_cert_to_PEM_cert(found or b"").encode())
    except BadSignature:
        return None


@lru_cache(maxsize=512)
def _shown(leaf_pem: bytes) -> Shown:
    return Shown(signer_of(leaf_pem), leaf_digest(leaf_pem))
