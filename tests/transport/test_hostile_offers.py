"""What a hostile sender may offer: refused by its code before anything is opened for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from kvnet.errors import (
    BadSignature,
    IncompatibleModel,
    KvnetError,
    MalformedMessage,
    ReplayedMessage,
    TransferIncomplete,
)
from kvnet.identity.signing import sign_message
from kvnet.transfer.messages import MAX_OFFER_NBYTES, MAX_TEXT_NBYTES, Accept, Offer, seal
from kvnet.v1 import peer_pb2
from tests.builders import INT8, NOW, SENDER, STRANGER, make_basis, make_fingerprint, make_offer
from tests.transport.attacker import Attacker, attack
from tests.transport.backend import MEMORY, Pair


async def offer_signed_by_another(alice: Attacker) -> None:
    await alice.stream.write_control(seal(STRANGER, alice.session.offer))


async def offer_altered_on_the_way(alice: Attacker) -> None:
    sealed = alice.outbound.sealed_offer
    await alice.stream.write_control(replace(sealed, body=sealed.body.replace(b'"note":""', b'"note":"x"')))


async def offer_that_is_a_commit(alice: Attacker) -> None:
    await alice.stream.write_control(seal(SENDER, alice.session.commit()))


async def chunk_before_the_offer(alice: Attacker) -> None:
    await alice.send(0)


async def offer_for_another_receiver(alice: Attacker) -> None:
    await alice.stream.write_control(seal(SENDER, replace(alice.session.offer, receiver=STRANGER.node_id)))


async def offer_of_yesterday(alice: Attacker) -> None:
    offer = replace(alice.session.offer, created_at=NOW - 86_400, expires_at=NOW - 85_800)
    await alice.stream.write_control(seal(SENDER, offer))


async def offer_of_another_model(alice: Attacker) -> None:
    header = replace(MEMORY.header, fingerprint=make_fingerprint(architecture="Other"))
    await alice.stream.write_control(seal(SENDER, replace(alice.session.offer, memory=header)))


async def offer_of_a_coding_that_does_not_exist(alice: Attacker) -> None:
    header = replace(MEMORY.header, coding=replace(INT8, key_bits=1))
    await alice.stream.write_control(seal(SENDER, replace(alice.session.offer, memory=header)))


async def offer_of_a_scheme_from_the_future(alice: Attacker) -> None:
    body = alice.outbound.sealed_offer.body.replace(b'"scheme":"raw"', b'"scheme":"dream"')
    await alice.stream.write_control(sign_message(SENDER, Offer.TYPE, body))


async def offer_with_a_basis_of_a_tebibyte(alice: Attacker) -> None:
    header = replace(MEMORY.header, coding=replace(make_basis()[0], basis_nbytes=1 << 40))
    await alice.stream.write_control(seal(SENDER, make_offer(header)))


async def control_message_of_nothing(alice: Attacker) -> None:
    await alice.raw(peer_pb2.Frame(control=peer_pb2.SignedMessage()))


async def offer_over_its_bound(alice: Attacker) -> None:
    await alice.stream.write_control(sign_message(SENDER, Offer.TYPE, b" " * (MAX_OFFER_NBYTES + 1)))


async def offer_with_too_long_a_text(alice: Attacker) -> None:
    offer = replace(alice.session.offer, text="é" * (MAX_TEXT_NBYTES // 2) + "a")
    await alice.stream.write_control(seal(SENDER, offer))


async def offer_whose_text_is_half_a_character(alice: Attacker) -> None:
    body = alice.outbound.sealed_offer.body.replace(b'"note":""', b'"note":"","text":"\\ud800"')
    await alice.stream.write_control(sign_message(SENDER, Offer.TYPE, body))


async def offer_whose_text_is_a_list(alice: Attacker) -> None:
    body = alice.outbound.sealed_offer.body.replace(b'"note":""', b'"note":"","text":["a"]')
    await alice.stream.write_control(sign_message(SENDER, Offer.TYPE, body))


async def nothing_at_all(alice: Attacker) -> None:
    await alice.stream._call.done_writing()  # type: ignore[attr-defined]


BAD_OFFERS: dict[Callable[[Attacker], Awaitable[None]], type[KvnetError]] = {
    offer_signed_by_another: BadSignature,
    offer_altered_on_the_way: BadSignature,
    offer_that_is_a_commit: MalformedMessage,
    chunk_before_the_offer: MalformedMessage,
    offer_for_another_receiver: ReplayedMessage,
    offer_of_yesterday: ReplayedMessage,
    offer_of_another_model: IncompatibleModel,
    offer_of_a_coding_that_does_not_exist: MalformedMessage,
    offer_of_a_scheme_from_the_future: MalformedMessage,
    offer_with_a_basis_of_a_tebibyte: MalformedMessage,
    control_message_of_nothing: BadSignature,
    offer_over_its_bound: MalformedMessage,
    offer_with_too_long_a_text: MalformedMessage,
    offer_whose_text_is_half_a_character: MalformedMessage,
    offer_whose_text_is_a_list: MalformedMessage,
    nothing_at_all: TransferIncomplete,
}


@pytest.mark.parametrize(
    ("hostile", "wanted"), BAD_OFFERS.items(), ids=[hostile.__name__ for hostile in BAD_OFFERS]
)
async def test_bad_offers_open_nothing_and_the_next_transfer_succeeds(
    pair: Pair, hostile: Callable[[Attacker], Awaitable[None]], wanted: type[KvnetError]
) -> None:
    async with attack(pair) as alice:
        alice.session.accepted(
            Accept(alice.session.offer.transfer_id, alice.session._offer_digest.hex(), "00" * 16, "AA==")
        )
        await hostile(alice)
        assert type(await alice.refusal()) is wanted
    assert pair.bob.inbound == []
    assert pair.bob.disks == {}
    await pair.push()
