"""What a hostile sender may say of who made a memory: refused by its code, and the next transfer succeeds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from kvnet.errors import (
    BadSignature,
    KvnetError,
    MalformedFile,
    MalformedMessage,
    TransferIncomplete,
)
from kvnet.format.awkg import MAX_HEAD_NBYTES
from kvnet.identity.seal import SEAL_TYPE
from kvnet.identity.signing import sign_message
from kvnet.transfer.messages import (
    seal,
)
from kvnet.types import Compression
from tests.builders import (
    SENDER,
    STRANGER,
    make_head,
    make_memory,
)
from tests.transport.attacker import Attacker, expect_refusal
from tests.transport.backend import MEMORY, TOTAL, Pair

HEAD = make_head(MEMORY)


async def commit_without_a_seal(alice: Attacker) -> None:
    await _commit(alice)
    await alice.stream._call.done_writing()  # type: ignore[attr-defined]


async def seal_of_noise(alice: Attacker) -> None:
    await _commit(alice)
    await alice.stream.write_control(sign_message(SENDER, SEAL_TYPE, b"noise"))


async def seal_by_another_than_it_names(alice: Attacker) -> None:
    await _commit(alice)
    await alice.stream.write_control(sign_message(STRANGER, SEAL_TYPE, HEAD.sealed.body))


async def seal_of_another_memory(alice: Attacker) -> None:
    await _commit(alice)
    await alice.stream.write_control(make_head(make_memory(seed=7)).sealed)


async def seal_over_other_digests(alice: Attacker) -> None:
    await _commit(alice)
    await alice.stream.write_control(make_head(MEMORY, wanted=Compression.NONE).sealed)


async def seal_of_another_type(alice: Attacker) -> None:
    await _commit(alice)
    await alice.stream.write_control(sign_message(SENDER, "kvnet/awkg/v2", HEAD.sealed.body))


async def offer_instead_of_a_seal(alice: Attacker) -> None:
    await _commit(alice)
    await alice.stream.write_control(alice.outbound.sealed_offer)


async def seal_altered_on_the_way(alice: Attacker) -> None:
    await _commit(alice)
    body = HEAD.sealed.body.replace(b'"createdBy":"alice"', b'"createdBy":"mabel"')
    await alice.stream.write_control(replace(HEAD.sealed, body=body))


async def seal_over_a_mebibyte(alice: Attacker) -> None:
    await _commit(alice)
    await alice.stream.write_control(sign_message(SENDER, SEAL_TYPE, b" " * (MAX_HEAD_NBYTES + 1)))


async def seal_before_the_commit(alice: Attacker) -> None:
    await alice.send(*range(TOTAL))
    await alice.stream.write_control(HEAD.sealed)


async def chunk_instead_of_a_seal(alice: Attacker) -> None:
    await _commit(alice)
    await alice.send(0)


async def _commit(alice: Attacker) -> None:
    await alice.send(*range(TOTAL))
    await alice.stream.write_control(seal(SENDER, alice.session.commit()))


SEALS: dict[Callable[[Attacker], Awaitable[None]], type[KvnetError]] = {
    commit_without_a_seal: TransferIncomplete,
    seal_of_noise: MalformedFile,
    seal_by_another_than_it_names: BadSignature,
    seal_of_another_memory: BadSignature,
    seal_over_other_digests: BadSignature,
    seal_of_another_type: MalformedMessage,
    offer_instead_of_a_seal: MalformedMessage,
    seal_altered_on_the_way: BadSignature,
    seal_over_a_mebibyte: MalformedFile,
    seal_before_the_commit: MalformedMessage,
    chunk_instead_of_a_seal: MalformedMessage,
}


@pytest.mark.parametrize(("hostile", "wanted"), SEALS.items(), ids=[hostile.__name__ for hostile in SEALS])
async def test_seal_that_is_not_the_memorys_is_refused_and_the_next_transfer_succeeds(
    pair: Pair, hostile: Callable[[Attacker], Awaitable[None]], wanted: type[KvnetError]
) -> None:
    await expect_refusal(pair, hostile, wanted)
