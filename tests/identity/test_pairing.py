"""Pairing without sockets: who knows the code is known by its key, and nobody else is."""

from __future__ import annotations

import secrets
from dataclasses import replace

import pytest
import spake2
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnet.errors import (
    BadSignature,
    MalformedMessage,
    PairingClosed,
    PairingExpired,
    RequestError,
    WrongCode,
)
from kvnet.identity import pairing
from kvnet.identity.codes import WORDS, PairingCode
from kvnet.identity.keys import NodeKey
from kvnet.identity.pairing import (
    LIFE_S,
    MAX_GUESSES,
    Confirmed,
    Invitation,
    Joining,
)
from kvnet.identity.pairing_messages import Introduction, InviterProof, JoinerProof, Sealed
from tests.builders import RECEIVER, SENDER, STRANGER

CODE = PairingCode(7, ("guitar", "melody", "canyon"))
OTHER_CODE = PairingCode(7, ("guitar", "melody", "castle"))
ALICE = Introduction("alice", "default", 7447)
BOB = Introduction("bob", "default", 7448)
BAD_POINTS = {
    "zero": bytes(32),
    "identity": bytes([1]) + bytes(31),
    "small order": bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    "not on the curve": bytes([2]) + bytes(31),
    "not canonical": bytes([0xEE]) + bytes([0xFF]) * 30 + bytes([0x7F]),
    "all ones": bytes([0xFF]) * 32,
}


def pair(
    inviter: NodeKey = SENDER,
    joiner: NodeKey = RECEIVER,
    *,
    code: PairingCode = CODE,
    compares: tuple[bool, bool] = (False, False),
) -> tuple[Confirmed, Confirmed]:
    """Both sides of a pairing that nobody disturbs: the inviter's view, and the joiner's."""
    invitation = Invitation(inviter, code, now=0.0, compares=compares[0])
    joining = Joining(joiner, code, compares=compares[1])
    invitation.take_guess(1.0)
    answered = invitation.answer(joining.join)
    proof, proved = joining.prove(answered.answer)
    at_inviter, reply = answered.check(proof)
    invitation.use(2.0)
    return at_inviter, proved.check(reply)


def test_two_that_know_the_code_know_each_others_key() -> None:
    at_inviter, at_joiner = pair()
    assert (at_inviter.peer_public, at_joiner.peer_public) == (RECEIVER.public, SENDER.public)
    assert at_joiner.open(at_inviter.seal(ALICE)) == ALICE
    assert at_inviter.open(at_joiner.seal(BOB)) == BOB
    at_inviter.require_agreement(at_joiner.agree())
    at_joiner.require_agreement(at_inviter.agree())


@settings(max_examples=8, deadline=None)
@given(
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
    st.tuples(*[st.sampled_from(WORDS)] * 3),
    st.builds(Introduction, st.text(max_size=40), st.text(max_size=40), st.integers(0, 65535)),
)
def test_any_two_keys_pair_by_any_code(
    one: bytes, other: bytes, words: tuple[str, ...], said: Introduction
) -> None:
    inviter, joiner = NodeKey(one), NodeKey(bytes([other[0] ^ 1]) + other[1:])
    if inviter.public == joiner.public:
        return
    at_inviter, at_joiner = pair(inviter, joiner, code=PairingCode(1, words))
    assert at_joiner.open(at_inviter.seal(said)) == said
    assert at_inviter.short_auth_string == at_joiner.short_auth_string


@pytest.mark.parametrize("wrong", [OTHER_CODE, PairingCode(8, CODE.words), PairingCode(7, CODE.words[::-1])])
def test_wrong_code_is_found_by_the_inviter_first_and_says_nothing(wrong: PairingCode) -> None:
    answered = Invitation(SENDER, CODE, now=0.0).answer((joining := Joining(RECEIVER, wrong)).join)
    proof, proved = joining.prove(answered.answer)
    with pytest.raises(WrongCode, match="another code"):
        answered.check(proof)
    with pytest.raises(WrongCode, match="does not know the code"):
        proved.check(InviterProof(proof.mac))  # its own words back are no proof either


@pytest.mark.parametrize("relays", ["to the inviter", "to the joiner", "both"])
def test_relay_with_its_own_keys_is_found_by_the_confirmation(relays: str) -> None:
    """It does not know the code, passes SPAKE2 on as it is, and says that it is the other."""
    invitation, joining = Invitation(SENDER, CODE, now=0.0), Joining(RECEIVER, CODE)
    join = joining.join if relays == "to the joiner" else replace(joining.join, public=STRANGER.public)
    answered = invitation.answer(join)
    answer = (
        answered.answer if relays == "to the inviter" else replace(answered.answer, public=STRANGER.public)
    )
    proof, proved = joining.prove(answer)
    with pytest.raises(WrongCode):
        answered.check(proof)
    with pytest.raises(WrongCode):
        proved.check(InviterProof(secrets.token_bytes(32)))


@pytest.mark.parametrize("field", ["pake", "commitment", "compares", "public"])
def test_whatever_a_relay_changes_in_the_join_fails_the_proof(field: str) -> None:
    joining = Joining(RECEIVER, CODE)
    other = Joining(STRANGER, OTHER_CODE, compares=True).join
    answered = Invitation(SENDER, CODE, now=0.0).answer(
        replace(joining.join, **{field: getattr(other, field)})
    )
    proof, _ = joining.prove(answered.answer)
    with pytest.raises(WrongCode):
        answered.check(proof)


@pytest.mark.parametrize("field", ["pake", "nonce", "compares", "public"])
def test_whatever_a_relay_changes_in_the_answer_fails_the_proof(field: str) -> None:
    joining = Joining(RECEIVER, CODE)
    invitation = Invitation(SENDER, CODE, now=0.0)
    other = Invitation(STRANGER, OTHER_CODE, now=0.0, compares=True).answer(joining.join).answer
    answered = invitation.answer(joining.join)
    proof, _ = joining.prove(replace(answered.answer, **{field: getattr(other, field)}))
    with pytest.raises(WrongCode):
        answered.check(proof)


def test_proof_of_one_pairing_is_none_in_another() -> None:
    first = Invitation(SENDER, CODE, now=0.0).answer((joining := Joining(RECEIVER, CODE)).join)
    proof, _ = joining.prove(first.answer)
    second = Invitation(SENDER, CODE, now=0.0).answer(joining.join)
    with pytest.raises(WrongCode):
        second.check(proof)


def test_who_knows_the_code_and_breaks_its_promise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a one could choose its nonce last, so that two short strings come out alike."""
    monkeypatch.setattr(pairing, "_commit", lambda nonce: b"c" * 32)
    joining = Joining(RECEIVER, CODE)
    monkeypatch.undo()
    answered = Invitation(SENDER, CODE, now=0.0).answer(joining.join)
    proof, _ = joining.prove(answered.answer)
    with pytest.raises(MalformedMessage, match="promised"):
        answered.check(proof)


@pytest.mark.parametrize("point", BAD_POINTS.values(), ids=BAD_POINTS)
def test_point_outside_the_group_is_refused_before_any_arithmetic(
    point: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_arithmetic(exchange: object, pake: bytes) -> bytes:
        raise AssertionError("reached")

    joining = Joining(RECEIVER, CODE)
    invitation = Invitation(SENDER, CODE, now=0.0)
    answer = invitation.answer(joining.join).answer
    monkeypatch.setattr(spake2.SPAKE2_A, "finish", no_arithmetic)
    monkeypatch.setattr(spake2.SPAKE2_B, "finish", no_arithmetic)
    with pytest.raises(MalformedMessage, match="no point"):
        invitation.answer(replace(joining.join, pake=b"B" + point))
    with pytest.raises(MalformedMessage, match="no point"):
        joining.prove(replace(answer, pake=b"A" + point))


def test_half_for_the_same_role_is_refused() -> None:
    joining = Joining(RECEIVER, CODE)
    invitation = Invitation(SENDER, CODE, now=0.0)
    pake = joining.join.pake
    with pytest.raises(MalformedMessage, match="same role"):
        invitation.answer(replace(joining.join, pake=b"A" + pake[1:]))
    with pytest.raises(MalformedMessage, match="same role"):
        joining.prove(replace(invitation.answer(joining.join).answer, pake=pake))


def test_node_does_not_pair_with_itself() -> None:
    joining = Joining(SENDER, CODE)
    invitation = Invitation(SENDER, CODE, now=0.0)
    with pytest.raises(RequestError, match="other machine"):
        invitation.answer(joining.join)
    answer = invitation.answer(Joining(RECEIVER, CODE).join).answer
    with pytest.raises(RequestError, match="other machine"):
        joining.prove(answer)


def test_code_counts_for_two_minutes() -> None:
    invitation = Invitation(SENDER, CODE, now=50.0)
    invitation.take_guess(50.0 + LIFE_S - 0.001)
    for act in (invitation.take_guess, invitation.use, invitation.require_open):
        with pytest.raises(PairingExpired, match="120 s"):
            act(50.0 + LIFE_S)


def test_code_that_expires_between_answer_and_proof_is_not_used() -> None:
    invitation, joining = Invitation(SENDER, CODE, now=0.0), Joining(RECEIVER, CODE)
    invitation.take_guess(LIFE_S - 1)
    answered = invitation.answer(joining.join)
    answered.check(joining.prove(answered.answer)[0])
    with pytest.raises(PairingExpired):
        invitation.use(LIFE_S + 1)


def test_code_is_used_once_even_by_two_that_prove_it() -> None:
    invitation = Invitation(SENDER, CODE, now=0.0)
    for key in (RECEIVER, STRANGER):
        joining = Joining(key, CODE)
        invitation.take_guess(1.0)
        answered = invitation.answer(joining.join)
        answered.check(joining.prove(answered.answer)[0])
    invitation.use(2.0)
    for act in (invitation.use, invitation.take_guess):
        with pytest.raises(PairingClosed, match="was used"):
            act(3.0)


def test_third_guess_is_the_last_even_if_its_proof_never_comes() -> None:
    invitation = Invitation(SENDER, CODE, now=0.0)
    for left in range(MAX_GUESSES - 1, -1, -1):
        invitation.take_guess(1.0)
        assert invitation.guesses_left == left
    with pytest.raises(PairingClosed, match="3 wrong guesses"):
        invitation.take_guess(1.0)


def test_box_opens_for_the_other_side_alone_and_for_its_purpose_alone() -> None:
    at_inviter, at_joiner = pair()
    elsewhere, _ = pair()
    sealed = at_inviter.seal(ALICE)
    flipped = Sealed(sealed.box[:-1] + bytes([sealed.box[-1] ^ 1]))
    for who, box in (
        (at_inviter, sealed),  # what it said itself comes back
        (elsewhere, sealed),
        (at_joiner, at_inviter.agree()),
        (at_joiner, flipped),
        (at_joiner, Sealed(b"short")),
    ):
        with pytest.raises(MalformedMessage, match="does not open"):
            who.open(box)
    with pytest.raises(MalformedMessage, match="does not open"):
        at_joiner.require_agreement(sealed)


@pytest.mark.parametrize("compares", [(True, False), (False, True), (True, True)])
def test_both_compare_where_one_wants_to(compares: tuple[bool, bool]) -> None:
    at_inviter, at_joiner = pair(compares=compares)
    assert at_inviter.compares
    assert at_joiner.compares
    assert at_inviter.short_auth_string == at_joiner.short_auth_string
    digits = at_inviter.short_auth_string
    assert len(digits) == 7
    assert digits.replace(" ", "").isdigit()


def test_one_in_the_middle_who_knows_the_code_is_betrayed_by_the_short_string() -> None:
    """It pairs with either side under its own key; one in a million such attempts shows the same digits."""
    at_alice, _ = pair(SENDER, STRANGER)
    _, at_bob = pair(STRANGER, RECEIVER)
    assert at_alice.short_auth_string != at_bob.short_auth_string


def test_confirmed_is_made_by_a_proof_alone() -> None:
    at_inviter, _ = pair()
    with pytest.raises(TypeError, match="by a proof"):
        replace(at_inviter, peer_public=STRANGER.public, _witness=object())
    with pytest.raises((TypeError, ValueError)):
        replace(at_inviter, peer_public=STRANGER.public)


def test_secrets_are_not_in_what_is_printed() -> None:
    invitation, joining = Invitation(SENDER, CODE, now=0.0), Joining(RECEIVER, CODE)
    answered = invitation.answer(joining.join)
    proof, proved = joining.prove(answered.answer)
    shared = proved._keys.shared
    assert isinstance(proof, JoinerProof)
    for shown in (repr(answered), repr(proved), repr(answered.check(proof))):
        assert repr(shared) not in shown


class Claimed:
    """A key that somebody names who does not hold it: public is public."""

    public = RECEIVER.public

    def __init__(self, own: NodeKey) -> None:
        self.sign = own.sign


def test_key_that_is_named_and_not_held_is_refused() -> None:
    at_inviter, at_joiner = pair(joiner=Claimed(STRANGER))  # type: ignore[arg-type]
    assert at_inviter.peer_public == RECEIVER.public
    with pytest.raises(BadSignature, match="does not hold the key"):
        at_inviter.require_agreement(at_joiner.agree())


def test_agreement_counts_for_its_side_and_its_pairing_alone_and_says_no_more() -> None:
    at_inviter, at_joiner = pair()
    _, elsewhere = pair()
    for signature in (
        RECEIVER.sign(elsewhere._claim("joiner")),
        RECEIVER.sign(at_joiner._claim("inviter")),
        RECEIVER.sign(at_joiner._claim("joiner")) + b"and more",
        b"",
    ):
        with pytest.raises(BadSignature):
            at_inviter.require_agreement(at_joiner._box("agreement", signature))
