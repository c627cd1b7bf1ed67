"""Pairing as the daemon does it: found on the LAN or at an address, kept by both sides or by neither."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from kvnetd.actions import pair as pair_action
from kvnetd.actions.pair import Pairings, PairRequest, Step
from kvnetd.meeting import MeetingPlace, own_addresses
from kvnetd.services import Services

from kvnet.api import PairingAttempt, PairingComparison, PairingInvitation, PeerInfo
from kvnet.errors import (
    KvnetError,
    PairingClosed,
    PairingDeclined,
    PeerUnreachable,
    RequestError,
    TooBusy,
    WrongCode,
    WrongNamespace,
)
from kvnet.identity.codes import PairingCode, parse_code
from kvnet.identity.keys import short_id
from kvnet.identity.pairing import Invitation
from kvnet.identity.pairing_messages import Join, JoinerProof
from kvnet.identity.peers import AddedPeer, PeerList, Permission, Verified
from kvnet.transport.pairing import _Wire
from tests.builders import RECEIVER, SENDER, STRANGER
from tests.kvnetd.nodes import AT, events, services_of

pytestmark = pytest.mark.timeout(60)


class Node:
    """A node that pairs, and the steps that it was told of."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.pairings = Pairings(services)
        self.steps: list[Step] = []
        self.digits: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.code: asyncio.Future[PairingInvitation] = asyncio.get_running_loop().create_future()

    async def pair(self, *, same: bool = True, **request: Any) -> PeerInfo:
        """Pair to the end; who is asked to compare says `same`."""
        async with aclosing(self.pairings.pair(PairRequest(**request))) as steps:
            async for step in steps:
                self.steps.append(step)
                if isinstance(step, PairingInvitation):
                    self.code.set_result(step)
                elif isinstance(step, PairingComparison):
                    self.digits.set_result(step.digits)
                    self.pairings.answer(same=same)
        assert isinstance(step, PeerInfo)
        return step

    async def join(
        self, invitation: PairingInvitation, *, by_address: bool = True, **request: Any
    ) -> PeerInfo:
        address = invitation.addresses[0] if by_address else ""
        return await self.pair(code=invitation.code, address=address, **request)

    def known(self) -> tuple[AddedPeer, ...]:
        """The trust list as it is on disk."""
        return PeerList(self.services.config.home.peers).all()


@asynccontextmanager
async def node(root: Path, name: str, key: Any, **settings: Any) -> AsyncIterator[Node]:
    settings = {"name": name, "listen": "127.0.0.1:0", "mdns": False, **settings}
    async with services_of(root / name, key, **settings) as services:
        services.listening.address = f"127.0.0.1:{7447 if name == 'alice' else 7448}"
        yield Node(services)


@pytest.fixture
async def alice(tmp_path: Path) -> AsyncIterator[Node]:
    async with node(tmp_path, "alice", SENDER) as made:
        yield made


@pytest.fixture
async def bob(tmp_path: Path) -> AsyncIterator[Node]:
    async with node(tmp_path, "bob", RECEIVER) as made:
        yield made


async def test_two_nodes_know_each_other_after_it(alice: Node, bob: Node) -> None:
    inviting = asyncio.create_task(alice.pair())
    joined = await bob.join(await alice.code)
    invited = await inviting
    assert (joined.node_id, joined.name, joined.addresses) == (SENDER.node_id, "alice", ("127.0.0.1:7447",))
    assert (invited.node_id, invited.name, invited.verified) == (RECEIVER.node_id, "bob", "pairing")
    (at_alice,), (at_bob,) = alice.known(), bob.known()
    assert (at_alice.public, at_bob.public) == (RECEIVER.public, SENDER.public)
    assert at_alice.verified is at_bob.verified is Verified.PAIRING
    assert at_alice.permissions == tuple(Permission)
    assert [line["peer"] for line in events(alice.services, "peer")] == ["bob"]


async def test_nodes_find_each_other_by_mdns_in_their_namespace(tmp_path: Path) -> None:
    space = secrets.token_hex(8)
    lan: dict[str, Any] = {"mdns": True, "namespace": space}
    async with node(tmp_path, "alice", SENDER, **lan) as alice, node(tmp_path, "bob", RECEIVER, **lan) as bob:
        inviting = asyncio.create_task(alice.pair())
        assert (await bob.join(await alice.code, by_address=False)).name == "alice"
        assert (await inviting).name == "bob"


async def test_nobody_who_shows_the_number_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvnetd.meeting.SEARCH_S", 0.2)
    async with node(tmp_path, "bob", RECEIVER, mdns=True, namespace=secrets.token_hex(8)) as bob:
        with pytest.raises(PeerUnreachable, match=r"the number 7.*--at"):
            await bob.pair(code="7-guitar-melody-canyon")


async def test_three_that_do_not_know_the_code_are_tried_and_no_fourth(
    alice: Node, bob: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them may guess once: a flood of adverts gets no more than three guesses."""
    code = parse_code("7-guitar-melody-canyon")
    dialled = []

    async def flood(self: Pairings, code: PairingCode, address: str) -> AsyncIterator[Any]:
        for number in range(10):
            yield pair_action.Candidate(f"rogue {number // 2}", pair_action.Endpoint("127.0.0.1", 1 + number))

    async def refuse(host: str, port: int, joining: object, **more: object) -> None:
        dialled.append(port)
        raise WrongCode("not it")

    monkeypatch.setattr(Pairings, "_candidates", flood)
    monkeypatch.setattr(pair_action, "dial", refuse)
    with pytest.raises(WrongCode):
        await bob.pair(code=str(code))
    assert dialled == [1, 3, 5]


async def test_wrong_code_is_told_to_both_and_leaves_the_code_open(alice: Node, bob: Node) -> None:
    inviting = asyncio.create_task(alice.pair())
    invitation = await alice.code
    right = parse_code(invitation.code)
    wrong = PairingCode(right.number, right.words[1:] + right.words[:1])
    if wrong == right:
        wrong = PairingCode(right.number % 99 + 1, right.words)
    with pytest.raises(WrongCode):
        await bob.pair(code=str(wrong), address=invitation.addresses[0])
    assert (await bob.join(invitation)).name == "alice"
    await inviting
    assert [s for s in alice.steps if isinstance(s, PairingAttempt)] == [PairingAttempt("127.0.0.1", 2)]
    assert [line.get("error") for line in events(alice.services, "peer")] == ["wrong_code", None]


async def test_three_wrong_guesses_end_it_on_this_side_too(alice: Node, bob: Node) -> None:
    inviting = asyncio.create_task(alice.pair())
    invitation = await alice.code
    right = parse_code(invitation.code)
    wrong = PairingCode(right.number % 99 + 1, right.words)
    for _ in range(3):
        with pytest.raises(WrongCode):
            await bob.pair(code=str(wrong), address=invitation.addresses[0])
    with pytest.raises(PairingClosed, match="3 wrong guesses"):
        await inviting
    with pytest.raises(PeerUnreachable, match="nobody pairs there"):
        await bob.join(invitation)
    assert alice.known() == bob.known() == ()


@pytest.mark.parametrize("asks", ["inviter", "joiner"])
async def test_both_compare_the_same_digits_where_one_asks(alice: Node, bob: Node, asks: str) -> None:
    inviting = asyncio.create_task(alice.pair(verify=asks == "inviter"))
    joining = bob.join(await alice.code, verify=asks == "joiner")
    assert (await joining).name == "alice"
    assert (await inviting).name == "bob"
    assert await alice.digits == await bob.digits


@pytest.mark.parametrize("says_no", ["inviter", "joiner"])
async def test_one_who_says_that_the_digits_differ_leaves_no_peer_anywhere(
    alice: Node, bob: Node, says_no: str
) -> None:
    inviting = asyncio.create_task(alice.pair(verify=True, same=says_no != "inviter"))
    ended = await asyncio.gather(
        inviting, bob.join(await alice.code, same=says_no != "joiner"), return_exceptions=True
    )
    assert [type(one) for one in ended] == [PairingDeclined, PairingDeclined]
    assert alice.known() == bob.known() == ()


async def test_answer_without_a_question_is_refused(alice: Node) -> None:
    with pytest.raises(RequestError, match="no digits are compared"):
        alice.pairings.answer(same=True)


async def test_nodes_of_two_namespaces_do_not_pair(tmp_path: Path, alice: Node) -> None:
    inviting = asyncio.create_task(alice.pair())
    async with node(tmp_path, "bob", RECEIVER, namespace="lab") as bob:
        ended = await asyncio.gather(inviting, bob.join(await alice.code), return_exceptions=True)
        assert {type(one) for one in ended} <= {WrongNamespace, PairingDeclined}
        assert WrongNamespace in {type(one) for one in ended}
        assert alice.known() == bob.known() == ()


async def test_one_pairing_at_a_time_and_the_next_after_it_was_ended(alice: Node, bob: Node) -> None:
    inviting = asyncio.create_task(alice.pair())
    invitation = await alice.code
    with pytest.raises(TooBusy, match="another"):
        await alice.pair()
    inviting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await inviting
    with pytest.raises(PeerUnreachable, match="nobody pairs there"):
        await bob.join(invitation)
    again = Node(alice.services)
    again.pairings = alice.pairings
    inviting = asyncio.create_task(again.pair())
    assert (await bob.join(await again.code)).name == "alice"
    await inviting


BAD_REQUESTS: dict[str, tuple[dict[str, str], str]] = {
    "no code": ({"code": "guitar"}, "wants a number"),
    "address without a code": ({"address": "127.0.0.1:1"}, "for whoever has a code"),
    "no address": ({"code": "7-guitar-melody-canyon", "address": "nowhere"}, "HOST:PORT"),
    "mDNS is off": ({"code": "7-guitar-melody-canyon"}, "mDNS is off"),
}


@pytest.mark.parametrize(("request_", "why"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
async def test_request_that_cannot_be_is_refused_in_a_sentence(
    alice: Node, request_: dict[str, str], why: str
) -> None:
    with pytest.raises(RequestError, match=why):
        await alice.pair(**request_)


async def test_name_that_is_given_counts_and_one_that_is_taken_ends_it(alice: Node, bob: Node) -> None:
    alice.services.peers.add(AddedPeer(STRANGER.node_id, "carol", "", AT))
    inviting = asyncio.create_task(alice.pair(name="carol"))
    ended = await asyncio.gather(inviting, bob.join(await alice.code), return_exceptions=True)
    assert isinstance(ended[0], RequestError)
    assert isinstance(ended[1], KvnetError)
    assert [peer.node_id for peer in alice.known()] == [STRANGER.node_id]
    assert bob.known() == ()


async def test_name_of_another_peer_is_not_taken_over(alice: Node, bob: Node) -> None:
    alice.services.peers.add(AddedPeer(STRANGER.node_id, "bob", "", AT))
    inviting = asyncio.create_task(alice.pair())
    await bob.join(await alice.code)
    assert (await inviting).name == short_id(RECEIVER.node_id)


async def test_peer_that_was_revoked_is_trusted_again_and_keeps_what_it_may(alice: Node, bob: Node) -> None:
    peers = alice.services.peers
    peers.add(AddedPeer(RECEIVER.node_id, "robert", "", AT, permissions=(Permission.SEND,)))
    peers.revoke("robert", at=AT)
    inviting = asyncio.create_task(alice.pair(verify=True))
    await bob.join(await alice.code)
    await inviting
    (peer,) = alice.known()
    assert (peer.name, peer.permissions, peer.verified) == ("robert", (Permission.SEND,), Verified.PAIRING)
    assert peer.is_trusted


async def test_revocation_is_not_lifted_by_a_code_alone(alice: Node, bob: Node) -> None:
    alice.services.peers.add(AddedPeer(RECEIVER.node_id, "robert", "", AT))
    alice.services.peers.revoke("robert", at=AT)
    inviting = asyncio.create_task(alice.pair())
    with pytest.raises(KvnetError):
        await bob.join(await alice.code)
    with pytest.raises(RequestError, match=r"was revoked.*--verify.*kvnet peer trust robert"):
        await inviting
    assert not alice.known()[0].is_trusted
    assert bob.known() == ()


async def test_three_that_hang_up_on_the_proof_have_had_their_guesses(
    alice: Node, bob: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each proof tells whoever gets it whether one code is the right one, answer or none."""
    right = parse_code("7-guitar-melody-canyon")
    proofs: list[JoinerProof] = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = _Wire(reader, writer, who="bob")
        answered = Invitation(STRANGER, right, now=0.0).answer(await wire.receive(Join))
        await wire.send(answered.answer)
        proofs.append(await wire.receive(JoinerProof))
        wire.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]

        async def flood(self: Pairings, code: PairingCode, address: str) -> AsyncIterator[Any]:
            for number in range(10):
                yield pair_action.Candidate(f"rogue {number}", pair_action.Endpoint("127.0.0.1", port))

        monkeypatch.setattr(Pairings, "_candidates", flood)
        with pytest.raises(PeerUnreachable):
            await bob.pair(code=str(right))
    assert len(proofs) == 3


def test_the_meeting_place_tells_the_number_and_nothing_of_the_node() -> None:
    code = parse_code("7-guitar-melody-canyon")
    places = [MeetingPlace(space, code, None)._advert(1) for space in ("default", "default", "lab")]
    assert places[0].short_id != places[1].short_id
    assert places[0].namespace == places[1].namespace != places[2].namespace
    assert places[0].namespace.endswith("/7")
    assert not any(word.encode() in places[0].to_txt() for word in (*code.words, "default"))


def test_listener_on_one_address_is_dialled_there() -> None:
    assert own_addresses("127.0.0.1", None) == ("127.0.0.1",)
    assert own_addresses("0.0.0.0", ("lo",)) == ("127.0.0.1",)  # noqa: S104  # not bound
