"""Certificates: who signed one is told by the signature, and a pin binds its key and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnet.errors import BadSignature
from kvnet.identity.certificates import (
    MAX_CERTIFICATE_NBYTES,
    issue_leaf,
    leaf_digest,
    pin,
    server_name,
    signer_of,
)
from kvnet.identity.keys import NodeKey
from tests.identity.leaves import forged_leaf, hinted_leaf

ALICE, BOB = NodeKey(b"a" * 32), NodeKey(b"b" * 32)


@settings(max_examples=10)
@given(st.binary(min_size=32, max_size=32))
def test_leaf_of_any_identity_names_its_signer(seed: bytes) -> None:
    key = NodeKey(seed)
    assert signer_of(issue_leaf(key).chain_pem) == key.public


def test_each_leaf_is_another_one() -> None:
    one, other = issue_leaf(ALICE), issue_leaf(ALICE)
    assert leaf_digest(one.chain_pem) != leaf_digest(other.chain_pem)
    assert one.key_pem != other.key_pem
    assert "PRIVATE" not in repr(one)


def test_pin_is_a_function_of_the_two_keys() -> None:
    assert pin(BOB.public, by=ALICE) == pin(BOB.public, by=ALICE)
    assert pin(BOB.public, by=ALICE) != pin(BOB.public, by=BOB) != pin(ALICE.public, by=BOB)


def test_pin_lets_its_key_sign_leaves_of_its_own_name_alone() -> None:
    found = x509.load_pem_x509_certificate(pin(BOB.public, by=ALICE))
    (subject,) = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert (subject.value, found.issuer != found.subject) == (BOB.node_id, True)
    basic = found.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    names = found.extensions.get_extension_for_class(x509.NameConstraints)
    assert (names.critical, names.value.permitted_subtrees) == (True, [x509.DNSName(server_name(BOB.public))])
    identifier = found.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert identifier.value.digest == found.public_key().public_bytes_raw() == BOB.public  # type: ignore[union-attr]


@pytest.mark.parametrize("year", [1970, 1999, 2038, 2050, 9999])
def test_wrong_clock_locks_nobody_out(year: int) -> None:
    now = datetime(year, 6, 1, tzinfo=UTC)
    for pem in (pin(BOB.public, by=ALICE), issue_leaf(ALICE).chain_pem):
        found = x509.load_pem_x509_certificate(pem)
        assert found.not_valid_before_utc < now < found.not_valid_after_utc


def test_leaf_that_claims_another_signer_is_refused() -> None:
    with pytest.raises(BadSignature, match="has not signed it"):
        signer_of(forged_leaf(ALICE, says=BOB).chain_pem)


def test_leaf_with_the_name_of_another_still_tells_who_signed_it() -> None:
    assert signer_of(forged_leaf(ALICE, name=server_name(BOB.public)).chain_pem) == ALICE.public


def test_altered_leaf_is_refused() -> None:
    found = x509.load_pem_x509_certificate(issue_leaf(ALICE).chain_pem)
    der = bytearray(found.public_bytes(Encoding.DER))
    place = bytes(der).index(server_name(ALICE.public).encode())
    der[place] ^= 1
    with pytest.raises(BadSignature):
        signer_of(x509.load_der_x509_certificate(bytes(der)).public_bytes(Encoding.PEM))


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
        b"x" * (17 << 10),
        issue_leaf(ALICE).key_pem,
        pin(BOB.public, by=ALICE),
    ],
    ids=["nothing", "empty", "too long", "a key", "a pin"],
)
def test_what_is_no_leaf_is_refused(pem: bytes) -> None:
    with pytest.raises(BadSignature, match="certificate: "):
        signer_of(pem)


def test_pins_of_one_node_have_serial_numbers_of_their_own() -> None:
    pins = [x509.load_pem_x509_certificate(pin(key.public, by=ALICE)) for key in (ALICE, BOB)]
    assert len({found.serial_number for found in pins} | {1}) == 3


@pytest.mark.parametrize(
    "leaf",
    [
        forged_leaf(ALICE, under=ec.generate_private_key(ec.SECP256R1())).chain_pem,
        hinted_leaf(x509.AuthorityKeyIdentifier(ALICE.public[:31], None, None), ALICE),
        hinted_leaf(x509.AuthorityKeyIdentifier(None, [x509.DNSName("alice")], 1), ALICE),
    ],
    ids=["by a key of another kind", "a short hint", "a hint that is no key"],
)
def test_leaf_that_no_ed25519_key_can_have_signed_is_refused_before_its_signature_is_checked(
    leaf: bytes,
) -> None:
    with pytest.raises(BadSignature, match="not signed by a node's Ed25519 key"):
        signer_of(leaf)


def test_certificate_with_much_behind_it_is_refused_unread() -> None:
    padded = issue_leaf(ALICE).chain_pem + b"\n" * MAX_CERTIFICATE_NBYTES
    with pytest.raises(BadSignature, match=f"at most {MAX_CERTIFICATE_NBYTES}"):
        signer_of(padded)
