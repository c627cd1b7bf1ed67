"""Two nodes on a LAN: one types the code that the other shows, and no address; then they hand over."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.daemons import Daemon, cli_command, environment, kvnet, questions, reply
from tests.lan.harness import Lan, require_lan

pytestmark = [pytest.mark.lan, pytest.mark.timeout(180)]


@pytest.fixture
def strangers() -> Iterator[tuple[Daemon, Daemon]]:
    """alice and bob, each in a namespace, listening wherever they can, with empty trust lists."""
    require_lan()
    folder = Path(tempfile.mkdtemp(prefix="kv-"))
    with Lan(2) as lan:
        alice, bob = (
            Daemon(folder / name, name, inside=("ip", "netns", "exec", node), listen="0.0.0.0:0", mdns="1")
            for node, name in zip(lan.nodes, ("alice", "bob"), strict=True)
        )
        try:
            for one in (alice, bob):
                one.launch()
            for one in (alice, bob):
                one.wait_until_ready()
            yield alice, bob
        finally:
            alice.stop()
            bob.stop()
            shutil.rmtree(folder, ignore_errors=True)


def test_nodes_meet_by_a_code_alone_and_hand_over(strangers: tuple[Daemon, Daemon]) -> None:
    alice, bob = strangers
    text, question = questions(1, seed=5)[0]
    inviting = subprocess.Popen(
        cli_command("pair", "--json"), env=environment(alice.home), stdout=subprocess.PIPE, text=True
    )
    with inviting:
        try:
            assert inviting.stdout is not None
            code = json.loads(inviting.stdout.readline())["code"]
            said = kvnet(bob.home.root, "pair", "-", "--json", stdin=f"{code}\n")
            assert said.status == 0, said
            assert json.loads(inviting.communicate(timeout=60)[0])["name"] == "bob"
        finally:
            inviting.kill()
    with alice.node() as here, bob.node() as there:
        memory = here.remember(text)
        report = here.send(memory, "bob", codec="exact", if_off="wait")
        assert report.memory == memory.id
        (message,) = there.inbox(every_agent=True)
        assert (message.memory, message.sender_name) == (memory.id, "alice")
        assert reply(there.ask(question.prompt, memory)) == reply(here.ask(question.prompt, memory))
