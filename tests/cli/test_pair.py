"""`kvnet pair` and `kvnet peer`, against two nodes whose control sockets are open."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from kvnetd.services import Services

from kvnet.client import Node
from kvnet.errors import PairingDeclined, RequestError
from kvnet.identity.keys import NodeKey, grouped
from kvnet.identity.peers import AddedPeer, Permission
from kvnet.identity.rotation import make_statement
from tests.builders import RECEIVER, SENDER
from tests.cli.outcomes import Kvnet, json_of, refused
from tests.kvnetd.control_node import control_node

pytestmark = pytest.mark.timeout(90)
NEW = NodeKey(b"\x05" * 32)
ADDED_AT = "2026-01-01T00:00:00.000Z"
LATER = 1_800_000_000


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Services, Services]]:
    """alice and bob."""
    with ExitStack() as stack:
        found = [stack.enter_context(control_node(key=key)) for key in (SENDER, RECEIVER)]
        for services, port in zip(found, (7447, 7448), strict=True):
            services.listening.address = f"127.0.0.1:{port}"
        yield found[0], found[1]


@pytest.fixture
def alice(nodes: tuple[Services, Services]) -> Iterator[Services]:
    yield nodes[0]
    forget(nodes[0])


@pytest.fixture
def bob(
    nodes: tuple[Services, Services], kvnet: Kvnet, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Services]:
    """The node that `kvnet` talks to."""
    monkeypatch.setenv("KVNET_HOME", str(nodes[1].config.home.root))
    yield nodes[1]
    forget(nodes[1])


def forget(services: Services) -> None:
    for peer in services.peers.all():
        services.peers.remove(peer.node_id)


class Inviter:
    """`kvnet pair` at alice, as a process of its own."""

    def __init__(self, services: Services, *options: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kvnet.cli.main", "pair", *options],
            env={**os.environ, "KVNET_HOME": str(services.config.home.root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Inviter:
        return self

    def __exit__(self, *raised: object) -> None:
        self._process.kill()
        self._process.communicate()

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def invitation(self) -> tuple[str, str]:
        """The code, and where it counts."""
        found: dict[str, Any] = json.loads(self.line())
        assert found["expires_in_s"] == 120
        return found["code"], "127.0.0.1:" + found["addresses"][0].rpartition(":")[2]

    def end(self, said: str = "") -> tuple[int, str, str]:
        out, err = self._process.communicate(said, timeout=60)
        return self._process.returncode, out, err


def test_code_that_one_machine_shows_pairs_the_other(alice: Services, bob: Services, kvnet: Kvnet) -> None:
    with Inviter(alice, "--json") as inviter:
        code, at = inviter.invitation()
        said = json_of(kvnet("pair", code, "--at", at, "--json"))
        assert (said["node_id"], said["verified"]) == (SENDER.node_id, "pairing")
        status, out, _ = inviter.end()
    assert status == 0
    assert json.loads(out)["node_id"] == RECEIVER.node_id
    assert alice.peers.trusted(RECEIVER.public) is not None
    assert bob.peers.trusted(SENDER.public) is not None


def test_code_comes_on_stdin_and_people_compare_digits(
    alice: Services, bob: Services, kvnet: Kvnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Inviter(alice, "--json", "--verify") as inviter:
        code, at = inviter.invitation()
        inviter._process.stdin.write("y\n")  # type: ignore[union-attr]
        inviter._process.stdin.flush()  # type: ignore[union-attr]
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{code.upper()}\nyes\n"))
        said = kvnet("pair", "-", "--at", at, "--name", "desk")
        assert said.status == 0, said
        digits = json.loads(inviter.line())["digits"]
        assert f"the other machine must show: {digits}\n" in said.out
        assert "paired with desk" in said.out
        assert inviter.end()[0] == 0


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_anything_but_yes_keeps_nobody(
    alice: Services, bob: Services, kvnet: Kvnet, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    with Inviter(alice, "--json", "--verify") as inviter:
        code, at = inviter.invitation()
        inviter._process.stdin.write("y\n")  # type: ignore[union-attr]
        inviter._process.stdin.flush()  # type: ignore[union-attr]
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        said = kvnet("pair", code, "--at", at)
        assert said.status in (PairingDeclined.exit_status, RequestError.exit_status)
        status, _, err = inviter.end()
    assert status == PairingDeclined.exit_status
    assert err.rstrip().splitlines()[-1].startswith("error: ")
    assert alice.peers.all() == bob.peers.all() == ()


def test_wrong_code_is_one_sentence_here_and_a_warning_there(
    alice: Services, bob: Services, kvnet: Kvnet
) -> None:
    with Inviter(alice) as inviter:
        code = inviter.line().removeprefix("code: ").strip()
        assert f"kvnet pair {code}" in inviter.line()
        at = "127.0.0.1:" + inviter.line().rpartition(":")[2].strip()
        number, *words = code.split("-")
        wrong = "-".join([str(int(number) % 99 + 1), *words])
        for _ in range(3):
            refused(kvnet("pair", wrong, "--at", at), "wrong_code", 5)
        status, _, err = inviter.end()
        refused(kvnet("pair", code, "--at", at), "peer_unreachable", 5)
    assert status == 5
    assert "a wrong code came from 127.0.0.1; 2 more and the code is closed" in err
    assert err.rstrip().endswith("[pairing_closed]")


def test_interrupted_pairing_closes_its_port(alice: Services, bob: Services, kvnet: Kvnet) -> None:
    with Inviter(alice, "--json") as inviter:
        code, at = inviter.invitation()
    for _ in range(100):
        said = kvnet("pair", code, "--at", at)
        if said.err.rstrip().endswith("[peer_unreachable]"):
            break
    refused(said, "peer_unreachable", 5)


@pytest.mark.parametrize(
    "arguments", [("guitar",), ("7-guitar-melody-canyon", "--at", "nowhere"), ("--at", "127.0.0.1:1")]
)
def test_bad_request_is_one_sentence(bob: Services, kvnet: Kvnet, arguments: tuple[str, ...]) -> None:
    refused(kvnet("pair", *arguments), "request_invalid", 4)


def test_sdk_pairs_by_a_code_and_declines_where_people_shall_compare(alice: Services, bob: Services) -> None:
    for verify in (False, True):
        with (
            Inviter(alice, "--json", *["--verify"] * verify) as inviter,
            Node(home=bob.config.home.root) as node,
        ):
            code, at = inviter.invitation()
            if verify:
                with pytest.raises(PairingDeclined):
                    node.pair(code, address=at)
            else:
                assert node.pair(code, address=at, name="desk").name == "desk"
                forget(bob)
    with Node(home=bob.config.home.root) as node, pytest.raises(RequestError, match="wants the code"):
        node.pair("")


@pytest.fixture
def carol(bob: Services) -> AddedPeer:
    """A peer that bob added."""
    return bob.peers.add(AddedPeer(SENDER.node_id, "carol", "127.0.0.1:1", ADDED_AT))


def test_peers_are_listed_by_either_name_of_the_command(carol: AddedPeer, kvnet: Kvnet) -> None:
    for command in (("peers",), ("peer", "ls")):
        said = kvnet(*command, "--no-probe")
        assert "carol" in said.out
        assert "by hand" in said.out
        (listed,) = json_of(kvnet(*command, "--no-probe", "--json"))
        assert listed["permissions"] == [one.value for one in Permission]


def test_peer_is_shown_with_what_it_may_and_what_is_wrong(
    bob: Services, carol: AddedPeer, kvnet: Kvnet
) -> None:
    bob.peers.sound_alarm(carol.node_id, "two nodes use its key at once")
    said = kvnet("peer", "show", "carol")
    assert said.status == 0
    assert grouped(carol.node_id) in said.out
    assert "send, pull, read, ask" in said.out
    assert "ALARM    two nodes use its key at once; revoke it" in said.out
    assert json_of(kvnet("peer", "show", "carol", "--json"))["alarm"].startswith("two nodes")


def test_revoked_peer_is_listed_as_such_and_trusted_again(
    bob: Services, carol: AddedPeer, kvnet: Kvnet
) -> None:
    assert kvnet("peer", "revoke", "carol").out.startswith("revoked carol ")
    assert bob.peers.trusted(SENDER.public) is None
    assert "revoked 20" in kvnet("peer", "ls", "--no-probe").out
    assert json_of(kvnet("peer", "trust", "carol", "--json"))["revoked_at"] == ""
    assert bob.peers.trusted(SENDER.public) is not None


def test_permissions_and_quota_are_changed_and_kept(bob: Services, carol: AddedPeer, kvnet: Kvnet) -> None:
    said = kvnet("peer", "trust", "carol", "--allow", "send", "--allow", "ask", "--quota", "1000000")
    assert "may      send, ask" in said.out
    assert "quota    1.0 MB" in said.out
    assert json_of(kvnet("peer", "trust", "carol", "--json"))["permissions"] == ["send", "ask"]
    assert "may      nothing" in kvnet("peer", "trust", "carol", "--allow-nothing").out
    assert bob.peers.find("carol").permissions == ()
    refused(kvnet("peer", "trust", "carol", "--allow", "ask", "--allow-nothing"), "request_invalid", 4)
    refused(kvnet("peer", "revoke", "dave"), "unknown_peer", 4)


def test_new_key_of_a_peer_comes_from_a_file(
    bob: Services, carol: AddedPeer, kvnet: Kvnet, tmp_path: Path
) -> None:
    path = tmp_path / "rotation.json"
    path.write_bytes(make_statement(SENDER, NEW, rotated_at=LATER))
    assert kvnet("peer", "rotate", path).out == f"carol has a new key: {grouped(NEW.node_id)}\n"
    assert bob.peers.find("carol").rotated_from == SENDER.node_id
    refused(kvnet("peer", "rotate", path), "unknown_peer", 4)
    path.write_bytes(b"{}")
    refused(kvnet("peer", "rotate", path), "malformed_message", 5)
    refused(kvnet("peer", "rotate", tmp_path / "none"), "request_invalid", 4)


def test_own_key_is_rotated_and_the_daemon_stops(kvnet: Kvnet, monkeypatch: pytest.MonkeyPatch) -> None:
    with control_node(AddedPeer(SENDER.node_id, "carol", "127.0.0.1:1", ADDED_AT), key=RECEIVER) as services:
        home = services.config.home
        home.identity.parent.mkdir(mode=0o700, exist_ok=True)
        monkeypatch.setenv("KVNET_HOME", str(home.root))
        said = kvnet("peer", "rotate")
        assert said.status == 0, said
        new = NodeKey.load_or_create(home.identity)
        assert f"new node id {grouped(new.node_id)}" in said.out
        assert "not told: carol" in said.out
        statement = next(home.identity.parent.glob("rotation-*.json"))
        assert str(statement) in said.out
