"""Three daemons: one memory for two receivers, of whom the first passes it on, through the command line."""

from __future__ import annotations

import json

from tests.e2e.daemons import Kvnet, MakeDaemon, Pair, introduce, questions, reply


def test_two_receivers_get_one_upload_and_both_answer(pair: Pair, daemon: MakeDaemon, run: Kvnet) -> None:
    carol = daemon("carol")
    carol.start()
    introduce(pair.alice, carol)
    introduce(pair.bob, carol)
    text, question = questions(1, seed=11)[0]
    with pair.alice.node() as alice:
        memory = alice.remember(text)
        expected = reply(alice.ask(question.prompt, memory))
    said = run(
        pair.alice.home.root, "send", memory.id, "--to", "bob,carol/reader", "--codec", "exact", "--json"
    )
    assert said.status == 0, said.stderr
    at_bob, at_carol = (json.loads(line) for line in said.stdout.splitlines())
    assert (at_bob["peer"], at_bob["resumed_chunks"]) == ("bob", 0)
    assert (at_carol["peer"], at_carol["resumed_chunks"]) == ("carol", at_carol["chunks"])
    assert (at_bob["wire_bytes"] > 0, at_carol["wire_bytes"]) == (True, 0)
    with carol.node(agent="reader") as node:
        assert reply(node.ask(question.prompt, memory)) == expected
        (message,) = node.inbox()
        assert (message.sender, message.memory) == (pair.alice.node_id, memory.id)
    with pair.alice.node() as alice:
        alice.remove_peer("carol")
    with pair.bob.node() as bob:
        bob.remove_peer("carol")


def test_a_receiver_that_is_nobody_is_one_sentence_and_nothing_is_sent(pair: Pair, run: Kvnet) -> None:
    said = run(pair.alice.home.root, "send", pair.memory.id, "--to", "bob,nobody")
    assert said.status == 4
    assert said.stderr.startswith("error: peer nobody: not among the added peers")
