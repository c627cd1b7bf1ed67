"""Leaves that no honest node makes."""

from __future__ import annotations

from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from kvnet.identity.certificates import LeafCertificate, server_name
from kvnet.identity.keys import NodeKey

_Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def forged_leaf(
    signer: NodeKey,
    *,
    says: NodeKey | None = None,
    name: str = "",
    is_ca: bool = False,
    own: _Key | None = None,
    under: _Key | None = None,
    issuer: str = "",
    hint: bool = True,
) -> LeafCertificate:
    """A leaf that `signer` signs, or the bare key `under`; it may claim another signer, name or issuer."""
    fresh = own or ec.generate_private_key(ec.SECP256R1())
    said = says or signer
    wanted = name or server_name(said.public)
    signing: _Key = under or signer.issuer()
    builder = (
        x509.CertificateBuilder()
        .not_valid_before(datetime(1970, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(9999, 12, 31, tzinfo=UTC))
        .subject_name(x509.Name([]))  # one like its issuer would make it look self-signed
        .issuer_name(_named(issuer or said.node_id))
        .public_key(fresh.public_key())
        .serial_number(1)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(wanted)]), critical=False)
    )
    if hint:
        builder = builder.add_extension(x509.AuthorityKeyIdentifier(said.public, None, None), critical=False)
    certificate = builder.sign(signing, algorithm=_hash_of(signing))
    return LeafCertificate(
        certificate.public_bytes(serialization.Encoding.PEM),
        fresh.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


def _hash_of(key: _Key) -> hashes.SHA256 | None:
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def hinted_leaf(hint: x509.AuthorityKeyIdentifier, signer: NodeKey) -> bytes:
    """A leaf, in PEM, that `signer` signs and that says so in another way, or not at all."""
    fresh = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .not_valid_before(datetime(1970, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(9999, 12, 31, tzinfo=UTC))
        .subject_name(x509.Name([]))
        .issuer_name(_named(signer.node_id))
        .public_key(fresh.public_key())
        .serial_number(1)
        .add_extension(hint, critical=False)
        .sign(signer.issuer(), algorithm=None)
    )
    return certificate.public_bytes(serialization.Encoding.PEM)
