"""The messages of pairing: one spelling each, and nothing else is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnet.errors import (
    CapacityError,
    MalformedMessage,
    PairingClosed,
    PairingDeclined,
    PairingExpired,
    PeerError,
    ProtocolMismatch,
    RequestError,
    TooBusy,
    WrongCode,
)
from kvnet.identity.pairing_messages import (
    MAX_MESSAGE_NBYTES,
    PAIRING_VERSION,
    Answer,
    InviterProof,
    Join,
    JoinerProof,
    Message,
    Refusal,
    Refused,
    Sealed,
    error_to_refusal,
    pack,
    refusal_to_error,
    unpack,
)

KINDS: tuple[type[Message], ...] = (Join, Answer, JoinerProof, InviterProof, Sealed)


def nbytes(count: int) -> st.SearchStrategy[bytes]:
    """Exactly so many bytes."""
    return st.binary(min_size=count, max_size=count)


joins = st.builds(Join, st.just(PAIRING_VERSION), st.booleans(), nbytes(32), nbytes(33), nbytes(32))
messages: st.SearchStrategy[Message] = st.one_of(
    joins,
    st.builds(Answer, st.just(PAIRING_VERSION), st.booleans(), nbytes(32), nbytes(33), nbytes(16)),
    st.builds(JoinerProof, nbytes(16), nbytes(32)),
    st.builds(InviterProof, nbytes(32)),
    st.builds(Sealed, st.binary(min_size=1, max_size=MAX_MESSAGE_NBYTES - 1)),
)


@given(messages)
def test_packed_message_is_unpacked_as_it_was(message: Message) -> None:
    assert unpack(pack(message), type(message), who="bob") == message


@given(messages, st.data())
def test_changed_message_is_another_one_or_refused(message: Message, data: st.DataObject) -> None:
    packed = pack(message)
    place = data.draw(st.integers(0, len(packed) - 1))
    changed = bytearray(packed)
    changed[place] ^= data.draw(st.integers(1, 255))
    try:
        found = unpack(bytes(changed), type(message), who="bob")
    except (MalformedMessage, PeerError, RequestError, CapacityError):
        return
    assert found != message
    assert pack(found) == bytes(changed)


@given(st.binary(max_size=200), st.sampled_from(KINDS))
def test_any_bytes_are_a_message_or_refused_in_a_sentence(data: bytes, wanted: type[Message]) -> None:
    said = ""
    try:
        assert pack(unpack(data, wanted, who="bob")) == data
    except (PeerError, RequestError, CapacityError) as refused:
        said = refused.message
    assert not said or said.startswith("bob: ")


@given(messages)
def test_no_message_is_taken_for_one_of_another_kind_or_length(message: Message) -> None:
    packed = pack(message)
    for wanted in set(KINDS) - {type(message)}:
        with pytest.raises(MalformedMessage, match="was due"):
            unpack(packed, wanted, who="bob")
    if not isinstance(message, Sealed):
        for other in (packed[:-1], packed + b"\0"):
            with pytest.raises(MalformedMessage):
                unpack(other, type(message), who="bob")


@given(joins)
def test_a_flag_is_zero_or_one(join: Join) -> None:
    packed = bytearray(pack(join))
    packed[2] = 2
    with pytest.raises(MalformedMessage, match="are no Join"):
        unpack(bytes(packed), Join, who="bob")


def test_other_version_is_told_before_the_length() -> None:
    with pytest.raises(ProtocolMismatch, match="version 01"):
        unpack(bytes([Join.KIND, 1]) + b"another layout", Join, who="bob")


def test_box_that_fits_no_frame_is_not_packed() -> None:
    for box in (b"", b"x" * MAX_MESSAGE_NBYTES):
        with pytest.raises(ValueError, match="does not fit"):
            pack(Sealed(box))


@pytest.mark.parametrize("wanted", KINDS)
@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (Refusal.WRONG_CODE, WrongCode),
        (Refusal.EXPIRED, PairingExpired),
        (Refusal.CLOSED, PairingClosed),
        (Refusal.BUSY, TooBusy),
        (Refusal.DECLINED, PairingDeclined),
        (Refusal.VERSION, ProtocolMismatch),
        (Refusal.MALFORMED, MalformedMessage),
        (Refusal.ITSELF, RequestError),
        (200, PairingDeclined),
    ],
)
def test_refusal_is_raised_as_what_it_says(
    wanted: type[Message], reason: int, error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"^bob: "):
        unpack(pack(Refused(reason)), wanted, who="bob")


@pytest.mark.parametrize("reason", Refusal)
def test_reason_is_the_same_on_both_sides(reason: Refusal) -> None:
    assert error_to_refusal(refusal_to_error(reason, who="bob")) == Refused(reason)


def test_what_is_wrong_here_is_not_told() -> None:
    assert error_to_refusal(KeyError("secret")) == Refused(Refusal.DECLINED)


@pytest.mark.parametrize("data", [b"\x06", b"\x06\x03\x00"], ids=["no reason", "a byte too many"])
def test_refusal_of_another_length_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedMessage, match="sent kind 06 where Join was due"):
        unpack(data, Join, who="bob")


def test_refusal_that_is_due_is_read_and_not_raised() -> None:
    assert unpack(pack(Refused(Refusal.CLOSED)), Refused, who="bob") == Refused(Refusal.CLOSED)
