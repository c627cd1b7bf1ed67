"""Certificates for mutual TLS, made from identity keys. Knows X.509; no sockets, no trust list.

A node shows a P-256 leaf that its Ed25519 key has signed (gRPC takes no Ed25519 leaf). Whoever trusts a node
pins its key by a CA certificate of its own making: a trust anchor is a name, a key and constraints; no one
looks at its signature. So a node id is all that is needed to make one, and the constraints are those of the
node that pins. Source: FORMAT.md §12.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, SignatureAlgorithmOID

from kvnet.errors import BadSignature
from kvnet.identity.keys import PUBLIC_KEY_NBYTES, NodeKey, node_id_of, verify_signature

MAX_CERTIFICATE_NBYTES = 16 << 10
# No practical expiry, in either direction: a wrong clock must not lock nodes out. The trust list ends trust.
_NOT_BEFORE = datetime(1970, 1, 1, tzinfo=UTC)
_NOT_AFTER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_SERIAL_NBYTES = 19  # X.509 allows 20 and wants them positive


@dataclass(frozen=True, slots=True)
class LeafCertificate:
    """What a node shows in a handshake, in PEM, and the key that goes with it."""

    chain_pem: bytes
    key_pem: bytes = field(repr=False)


def server_name(public: bytes) -> str:
    """The DNS name that stands in a node's leaf: `<node id>.kvnet`, whatever address it is dialled at."""
    return f"{node_id_of(public)}.kvnet"


def issue_leaf(key: NodeKey) -> LeafCertificate:
    """A fresh P-256 key and a certificate for it, signed by the identity `key`."""
    fresh = ec.generate_private_key(ec.SECP256R1())
    usage = _usage(certifies=False)
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
    name = x509.SubjectAlternativeName([x509.DNSName(server_name(key.public))])
    issuer = x509.AuthorityKeyIdentifier(key.public, None, None)
    certificate = (
        _dated(x509.CertificateBuilder())
        .subject_name(x509.Name([]))
        .issuer_name(_name(key.public))
        .public_key(fresh.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(purposes, critical=False)
        .add_extension(name, critical=True)  # the subject is empty, so this is the name (RFC 5280 §4.1.2.6)
        .add_extension(issuer, critical=False)
        .sign(key.issuer(), algorithm=None)
    )
    return LeafCertificate(
        certificate.public_bytes(serialization.Encoding.PEM),
        fresh.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def pin(public: bytes, *, by: NodeKey) -> bytes:
    """A CA certificate, in PEM, for the key of a node that `by` trusts; always the same bytes.

    Leaves under it may bear that node's name only, and none may be a CA. The subject is unique and the
    subject key identifier is the key itself, so that among many pins the right one is found.
    """
    usage = _usage(certifies=True)
    names = x509.NameConstraints([x509.DNSName(server_name(public))], None)
    serial = int.from_bytes(hashlib.sha256(public).digest()[:_SERIAL_NBYTES], "big") or 1
    certificate = (
        _dated(x509.CertificateBuilder())
        .subject_name(_name(public))
        # A name that is no pin's subject: a path must end here, not go on to a pin of the issuer's own key.
        .issuer_name(_name(by.public, "pins of "))
        .public_key(Ed25519PublicKey.from_public_bytes(public))
        .serial_number(serial)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(names, critical=True)
        .add_extension(x509.SubjectKeyIdentifier(public), critical=False)
        .sign(by.issuer(), algorithm=None)
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def signer_of(leaf_pem: bytes) -> bytes:
    """The Ed25519 key that signed a leaf: found by its hint, proven by the signature, never by a name.

    Raises BadSignature for anything that is not one certificate that such a key has signed.
    """
    certificate = _parsed(leaf_pem)
    try:
        hint = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as exc:
        raise BadSignature("certificate: does not say which key signed it") from exc
    public = hint.key_identifier or b""
    is_ed25519 = certificate.signature_algorithm_oid == SignatureAlgorithmOID.ED25519
    if not is_ed25519 or len(public) != PUBLIC_KEY_NBYTES:
        raise BadSignature("certificate: not signed by a node's Ed25519 key")
    if not verify_signature(public, certificate.tbs_certificate_bytes, certificate.signature):
        raise BadSignature("certificate: the key that it names has not signed it")
    return public


def leaf_digest(leaf_pem: bytes) -> bytes:
    """SHA-256 of a leaf: which start of a node this is, for each makes a leaf of its own."""
    return _parsed(leaf_pem).fingerprint(hashes.SHA256())


def _parsed(leaf_pem: bytes) -> x509.Certificate:
    if len(leaf_pem) > MAX_CERTIFICATE_NBYTES:
        raise BadSignature(
            f"certificate: {len(leaf_pem)} bytes, a node's has at most {MAX_CERTIFICATE_NBYTES}"
        )
    try:
        return x509.load_pem_x509_certificate(leaf_pem)
    except ValueError as exc:
        raise BadSignature("certificate: cannot be read") from exc


def _name(public: bytes, prefix: str = "") -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, prefix + node_id_of(public))])


def _dated(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
    return builder.not_valid_before(_NOT_BEFORE).not_valid_after(_NOT_AFTER)


def _usage(*, certifies: bool) -> x509.KeyUsage:
    """What a key may sign: certificates, or else what is said in a handshake."""
    return x509.KeyUsage(
        digital_signature=not certifies,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certifies,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
