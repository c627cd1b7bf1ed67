"""Two daemons that never heard of each other: after a code a memory goes across, after a revocation none."""

from __future__ import annotations

import json
import subprocess

import pytest

from kvnet.errors import KvnetError, PeerNotAdded
from kvnet.paths import Home
from tests.e2e.daemons import Daemon, MakeDaemon, cli_command, environment, kvnet, questions, reply

pytestmark = pytest.mark.slow


@pytest.fixture
def strangers(daemon: MakeDaemon) -> tuple[Daemon, Daemon]:
    """alice and bob, up, with empty trust lists."""
    alice, bob = daemon("alice"), daemon("bob")
    for one in (alice, bob):
        one.launch()
    for one in (alice, bob):
        one.wait_until_ready()
    return alice, bob


def test_memory_goes_across_after_a_code_and_not_after_a_revocation(
    strangers: tuple[Daemon, Daemon],
) -> None:
    alice, bob = strangers
    text, question = questions(1, seed=3)[0]
    with alice.node() as node:
        memory = node.remember(text)
    inviting = subprocess.Popen(
        cli_command("pair", "--json"),
        env=environment(Home(alice.home.root)),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert inviting.stdout is not None
        invitation = json.loads(inviting.stdout.readline())
        said = kvnet(bob.home.root, "pair", invitation["code"], "--at", invitation["addresses"][0], "--json")
        assert said.status == 0, said
        assert said.json["name"] == "alice"
        told, _ = inviting.communicate(timeout=60)
    finally:
        inviting.kill()
        inviting.wait()
    assert json.loads(told)["name"] == "bob"
    with alice.node() as here, bob.node() as there:
        here.send(memory, "bob", codec="exact")
        assert reply(there.ask(question.prompt, memory)) == reply(here.ask(question.prompt, memory))
        there.revoke_peer("alice")
        with pytest.raises(KvnetError) as refused:
            here.pull(memory.id, "bob")
    assert isinstance(refused.value, PeerNotAdded)


def test_peer_goes_on_after_a_key_was_rotated(strangers: tuple[Daemon, Daemon]) -> None:
    alice, bob = strangers
    with alice.node() as node:
        node.add_peer(bob.grpc, node_id=bob.node_id, name="bob")
        memory = node.remember(questions(1, seed=4)[0][0])
    with bob.node() as node:
        node.add_peer(alice.grpc, node_id=alice.node_id, name="alice")
    said = kvnet(alice.home.root, "peer", "rotate", "--json")
    assert said.status == 0, said
    assert (said.json["told"], said.json["untold"]) == (["bob"], [])
    assert alice.process is not None
    assert alice.process.wait(30) == 0
    assert alice.start().node_id == said.json["new_id"]
    with alice.node() as node:
        assert node.send(memory, "bob", codec="exact").peer == "bob"
    with bob.node() as node:
        (message,) = node.inbox(every_agent=True)
        assert (message.sender, message.sender_name) == (said.json["new_id"], "alice")
