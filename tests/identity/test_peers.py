"""The trust list: what was added is found again after a restart, and nothing else is."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvnet.errors import CapacityError, RequestError, StateCorrupt, UnknownPeer
from kvnet.identity.keys import NodeKey, grouped, node_id_of, short_id
from kvnet.identity.peers import (
    FILE_VERSION,
    MAX_NAME_CHARS,
    AddedPeer,
    PeerList,
    Permission,
    Verified,
)
from kvnet.types import NodeId

ALICE = AddedPeer(NodeKey(b"a" * 32).node_id, "alice", "10.0.0.1:7447", "2026-01-01T00:00:00Z")
BOB = AddedPeer(NodeKey(b"b" * 32).node_id, "bob", "", "2026-01-02T00:00:00Z")
# Two ids that start alike: a public key is any 32 bytes here.
TWIN = AddedPeer(node_id_of(BOB.public[:31] + bytes([BOB.public[31] ^ 1])), "twin", "", "")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "peers.json"


@pytest.fixture
def peers(path: Path) -> PeerList:
    """Alice and Bob."""
    found = PeerList(path)
    found.add(ALICE)
    found.add(BOB)
    return found


def test_no_file_means_no_peers(path: Path) -> None:
    assert PeerList(path).all() == ()
    assert not path.exists()


def test_peers_are_the_same_after_a_restart(path: Path, peers: PeerList) -> None:
    assert PeerList(path).all() == peers.all() == (ALICE, BOB)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["peers.json"]


_printable = st.characters(exclude_categories=("C", "Z"), exclude_characters="/")
_names = st.text(_printable, min_size=1, max_size=MAX_NAME_CHARS)
_peers = st.builds(
    AddedPeer,
    st.binary(min_size=32, max_size=32).map(node_id_of),
    _names,
    st.sampled_from(["", "10.0.0.1:7447", "box.local:1", "[fe80::1%eth0]:65535"]),
    st.text(max_size=20),
)


@settings(max_examples=25)
@given(st.lists(_peers, max_size=5, unique_by=(lambda peer: peer.node_id, lambda peer: peer.name)))
def test_any_peers_survive_the_file(tmp_path_factory: pytest.TempPathFactory, found: list[AddedPeer]) -> None:
    path = tmp_path_factory.mktemp("peers") / "peers.json"
    written = PeerList(path)
    for peer in found:
        written.add(peer)
    assert PeerList(path).all() == tuple(found)


def test_removed_peer_is_gone_at_once_and_after_a_restart(path: Path, peers: PeerList) -> None:
    assert peers.remove("alice") == ALICE
    assert peers.get(ALICE.node_id) is None
    assert PeerList(path).all() == (BOB,)


@pytest.mark.parametrize(
    "wanted", ["bob", BOB.node_id, BOB.node_id[:4], grouped(BOB.node_id), BOB.node_id.upper()]
)
def test_peer_is_found_by_name_id_start_or_groups(peers: PeerList, wanted: str) -> None:
    assert peers.find(wanted) == BOB


def test_peer_is_looked_up_by_whole_id_and_by_short_id(peers: PeerList) -> None:
    assert peers.get(BOB.node_id) == BOB
    assert peers.get(BOB.node_id[:51]) is None
    assert peers.by_short_id(short_id(BOB.node_id)) == BOB
    assert peers.by_short_id(short_id(TWIN.node_id[::-1])) is None


@pytest.mark.parametrize("wanted", ["carol", "", BOB.node_id[:3], "Bob"])
def test_unknown_peer_is_refused_with_those_that_are_known(peers: PeerList, wanted: str) -> None:
    with pytest.raises(UnknownPeer, match="alice, bob"):
        peers.find(wanted)


def test_start_of_several_ids_is_refused_and_a_whole_id_is_not(peers: PeerList) -> None:
    peers.add(TWIN)
    with pytest.raises(RequestError, match="2 peers match"):
        peers.find(BOB.node_id[:10])
    assert peers.find(TWIN.node_id) == TWIN


def test_name_that_is_taken_is_refused_and_changes_nothing(path: Path, peers: PeerList) -> None:
    with pytest.raises(RequestError, match="already names"):
        peers.add(replace(TWIN, name="bob"))
    assert peers.all() == PeerList(path).all() == (ALICE, BOB)


HOSTILE_NAMES = [
    "",
    "bob/agent",
    "/",
    "a b",
    " ",
    "\x1b[31mbob",
    "bob\n",
    "bob\x00",
    "bob\u202e",
    "bob\u00a0",
    "b" * (MAX_NAME_CHARS + 1),
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_name_that_could_be_taken_for_something_else_is_refused(
    path: Path, peers: PeerList, name: str
) -> None:
    with pytest.raises(RequestError, match="printable"):
        peers.add(replace(TWIN, name=name))
    assert peers.usable_name(name, otherwise="other") == "other"
    assert peers.all() == PeerList(path).all() == (ALICE, BOB)


@pytest.mark.parametrize("name", ["alice", BOB.node_id[:4], BOB.node_id[:13], BOB.node_id])
def test_name_a_node_gives_itself_is_not_used_where_it_means_another(peers: PeerList, name: str) -> None:
    assert peers.usable_name(name, otherwise="other") == "other"


@pytest.mark.parametrize("name", ["carol", "ali", "Grüße-1", "b" * MAX_NAME_CHARS])
def test_name_a_node_gives_itself_is_used_where_it_is_free(peers: PeerList, name: str) -> None:
    assert peers.usable_name(name, otherwise="other") == name


def test_list_in_memory_stays_as_it_is_when_it_cannot_be_written(path: Path, peers: PeerList) -> None:
    away = path.parent.with_name("away")
    path.parent.rename(away)
    for change in (lambda: peers.add(TWIN), lambda: peers.remove("bob")):
        with pytest.raises(FileNotFoundError):
            change()
        assert peers.all() == (ALICE, BOB)
        assert peers.get(TWIN.node_id) is None
    away.rename(path.parent)
    assert PeerList(path).all() == peers.all() == (ALICE, BOB)
    assert peers.add(TWIN) == TWIN


def test_adding_again_renames_and_keeps_the_known_address(peers: PeerList) -> None:
    assert peers.add(replace(ALICE, name="anna", address="")) == replace(ALICE, name="anna")
    assert peers.add(replace(ALICE, address="10.0.0.9:1")).address == "10.0.0.9:1"
    assert len(peers.all()) == 2


def test_id_written_in_groups_is_the_plain_id(path: Path, peers: PeerList) -> None:
    peers.add(replace(TWIN, node_id=NodeId(grouped(TWIN.node_id).upper())))
    assert peers.get(TWIN.node_id) == TWIN
    text = path.read_text().replace(ALICE.node_id, grouped(ALICE.node_id))
    path.write_text(text)
    assert PeerList(path).get(ALICE.node_id) == ALICE


def test_id_that_is_no_key_is_refused(peers: PeerList) -> None:
    with pytest.raises(RequestError, match="base32"):
        peers.add(replace(ALICE, node_id=NodeId("alice")))


def test_full_list_takes_no_stranger_and_still_takes_changes(peers: PeerList, path: Path) -> None:
    full = PeerList(path, max_peers=2)
    with pytest.raises(CapacityError, match="remove one"):
        full.add(TWIN)
    assert full.add(replace(BOB, name="robert")).name == "robert"
    assert peers.add(TWIN) == TWIN


def document(**changes: Any) -> str:
    """A peer file with one peer, changed."""
    return json.dumps({"version": FILE_VERSION, "peers": [asdict(ALICE)], **changes})


CORRUPT = {
    "empty": "",
    "noise": "\x00\x01\x02",
    "cut short": document()[:-20],
    "newer version": document(version=FILE_VERSION + 1, surprise=1),
    "unknown field": document(surprise=1),
    "no peers": '{"version":1}',
    "peer without a name": document(peers=[{"node_id": ALICE.node_id}]),
    "id that is no key": document(peers=[{**asdict(ALICE), "node_id": "alice"}]),
    "version 0": document(version=0),
    "version that is text": document(version="2"),
    "peer twice": document(peers=[asdict(ALICE), {**asdict(ALICE), "name": "anna"}]),
    "name twice": document(peers=[asdict(ALICE), {**asdict(BOB), "name": "alice"}]),
    "name with a blank": document(peers=[{**asdict(ALICE), "name": "a b"}]),
    "unknown permission": document(peers=[{**asdict(ALICE), "permissions": ["send", "root"]}]),
    "permissions as text": document(peers=[{**asdict(ALICE), "permissions": "send"}]),
    "negative quota": document(peers=[{**asdict(ALICE), "quota_nbytes": -1}]),
    "unknown way of being sure": document(peers=[{**asdict(ALICE), "verified": "surely"}]),
    "peer twice in one object": '{"version":1,"peers":[],"peers":[]}',
}


@pytest.mark.parametrize("text", CORRUPT.values(), ids=CORRUPT)
def test_corrupt_file_is_refused_and_left_untouched(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(StateCorrupt, match=r"peers\.json.*untouched"):
        PeerList(path)
    assert path.read_text() == text


def test_file_of_a_newer_version_says_so(path: Path) -> None:
    path.write_text(CORRUPT["newer version"])
    with pytest.raises(StateCorrupt, match=f"version {FILE_VERSION + 1} of a newer kvnet"):
        PeerList(path)


def test_file_of_version_1_is_brought_over_with_the_next_change(path: Path) -> None:
    old = {"node_id": ALICE.node_id, "name": "alice", "address": "10.0.0.1:7447", "added_at": ALICE.added_at}
    path.write_text(json.dumps({"version": 1, "peers": [old]}))
    peers = PeerList(path)
    assert peers.all() == (ALICE,)
    assert peers.get(ALICE.node_id).permissions == tuple(Permission)  # type: ignore[union-attr]
    peers.add(BOB)
    assert json.loads(path.read_text())["version"] == FILE_VERSION
    assert PeerList(path).all() == (ALICE, BOB)


def test_peer_of_a_file_of_version_3_may_not_have_this_node_pass_things_on(path: Path) -> None:
    known = [one for one in Permission if one is not Permission.RELAY]
    path.write_text(json.dumps({"version": 3, "peers": [{**asdict(ALICE), "permissions": known}]}))
    assert PeerList(path).find("alice").permissions == tuple(known)


def test_revoked_peer_is_remembered_and_trusted_no_more(path: Path, peers: PeerList) -> None:
    assert peers.revoke("bob", at="then").revoked_at == "then"
    assert peers.revoke("bob", at="later").revoked_at == "then"
    for found in (peers, PeerList(path)):
        assert found.trusted(BOB.public) is None
        assert found.trusted(ALICE.public) == ALICE
        assert found.find_any("bob").revoked_at == "then"
        with pytest.raises(UnknownPeer, match=r"peer bob: was revoked at then; .*kvnet peer trust bob"):
            found.find("bob")


def test_trust_ends_a_revocation_and_an_alarm_and_changes_what_is_given(peers: PeerList) -> None:
    peers.revoke("bob", at="then")
    assert peers.sound_alarm(BOB.node_id, "two nodes") is not None
    assert peers.sound_alarm(BOB.node_id, "and again") is None
    assert peers.trust("bob") == BOB
    narrow = peers.trust(
        "bob", permissions=(Permission.PULL, Permission.SEND, Permission.PULL), quota_nbytes=9
    )
    assert (narrow.permissions, narrow.quota_nbytes) == ((Permission.SEND, Permission.PULL), 9)
    assert peers.trust("bob", permissions=()).permissions == ()
    assert peers.find("bob").quota_nbytes == 9


def test_adding_again_trusts_again_and_widens_nothing(peers: PeerList) -> None:
    peers.trust("bob", permissions=(Permission.SEND,), quota_nbytes=9)
    peers.revoke("bob", at="then")
    again = peers.add(replace(BOB, verified=Verified.PAIRING))
    assert (again.permissions, again.quota_nbytes, again.revoked_at) == ((Permission.SEND,), 9, "")
    assert peers.add(BOB).verified is Verified.PAIRING


def test_rotation_replaces_the_key_and_keeps_the_rest(path: Path, peers: PeerList) -> None:
    peers.trust("bob", permissions=(Permission.SEND,))
    fresh = peers.rotate(BOB.node_id, TWIN.node_id)
    assert (fresh.name, fresh.permissions, fresh.rotated_from) == ("bob", (Permission.SEND,), BOB.node_id)
    assert peers.trusted(BOB.public) is None
    assert PeerList(path).all() == peers.all() == (ALICE, fresh)
    with pytest.raises(RequestError, match="here already"):
        peers.rotate(fresh.node_id, ALICE.node_id)
    peers.revoke("bob", at="then")
    with pytest.raises(UnknownPeer, match="revoked"):
        peers.rotate(fresh.node_id, BOB.node_id)


def test_watchers_hear_of_every_change_once_it_is_kept(path: Path, peers: PeerList) -> None:
    heard: list[bool] = []
    peers.watch(lambda: heard.append(PeerList(path).all() == peers.all()))
    peers.add(TWIN)
    peers.revoke("twin", at="then")
    peers.trust("twin")
    peers.remove("twin")
    assert heard == [True] * 4


def test_who_has_no_peers_is_told_so(path: Path) -> None:
    with pytest.raises(UnknownPeer, match=r"added peers \(none\)"):
        PeerList(path).find("alice")


@pytest.mark.parametrize("mode", [0o666, 0o660, 0o620, 0o602])
def test_list_that_others_can_write_is_refused(path: Path, peers: PeerList, mode: int) -> None:
    path.chmod(mode)
    with pytest.raises(StateCorrupt, match=f"mode {mode:04o} lets others change"):
        PeerList(path)
    path.chmod(0o644)
    assert PeerList(path).find("bob") == BOB


def test_list_is_written_for_this_user_alone_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        PeerList(path).add(ALICE)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_list_that_is_no_file_is_a_sentence(path: Path) -> None:
    path.mkdir()
    with pytest.raises(StateCorrupt, match="cannot be read"):
        PeerList(path)


@pytest.mark.parametrize("num_chars", [5, 40])
@pytest.mark.parametrize("spelt", [str, str.upper, grouped])
def test_start_of_another_peers_id_is_no_name(
    peers: PeerList, spelt: Callable[[str], str], num_chars: int
) -> None:
    assert peers.usable_name(spelt(BOB.node_id)[:num_chars], otherwise="refused") == "refused"
