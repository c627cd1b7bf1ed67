"""A memory at a node of another model, over the command line: refused, read as its text, and explained."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.daemons import Daemon, Kvnet, Pair, introduce
from tests.e2e.outcomes import assert_refused_both_ways, prints

TEXT = "Zoltan's tool is a platypus."
PROMPT = "What is Zoltan's tool?"
EXPLAINED = {"memory", "model", "tier", "policy", "differences", "map", "has_text", "advice"}


def test_memory_is_read_as_its_text_where_nothing_else_is_possible(
    pair: Pair, rambler: Daemon, run: Kvnet
) -> None:
    introduce(pair.alice, rambler)
    alice, other = pair.alice.home.root, rambler.home.root
    memory = run(alice, "remember", TEXT, "--name", "zoltan", "--keep-text", "--json").json
    assert_refused_both_ways(run, alice, ("send", "zoltan", "--to", "rambler"), "incompatible_model", 5)
    sent = run(alice, "send", "zoltan", "--to", "rambler", "--with-text", "--codec", "exact", "--json").json
    assert (sent["tier"], sent["memory"]) == ("text", memory["id"])
    asking = ("ask", PROMPT, "--memory", memory["id"], "--max-tokens", "4")
    found = run(other, *asking, "--json").json["kv"]
    assert (found["tier"], found["fallback"], found["reused_tokens"], found["map"]) == ("text", "text", 0, "")
    assert_refused_both_ways(run, other, (*asking, "--align", "error"), "alignment_refused", 4)
    assert_refused_both_ways(run, other, (*asking, "--align", "guess"), "request_invalid", 4)
    explained = run(other, "explain", memory["id"], "--json").json
    assert set(explained) == EXPLAINED
    assert (explained["tier"], explained["has_text"], explained["map"]) == ("text", True, None)
    assert {"field", "memory", "model"} == set(explained["differences"][0])
    said = prints(run(other, "explain", memory["id"]))
    assert "num_layers" in said
    assert "kvnet align fit --peer alice" in said
    for home in (alice, other):
        prints(run(home, "mem", "rm", memory["id"]))
        assert_no_text_left(home)
    with pair.alice.node() as node:
        node.remove_peer("rambler")


def test_explain_compares_with_a_model_that_nobody_hosts(pair: Pair, run: Kvnet) -> None:
    alice = pair.alice.home.root
    assert run(alice, "explain", "honest", "--json").json["tier"] == "exact"
    assert "every field agrees" in prints(run(alice, "explain", "honest"))
    explained = run(alice, "explain", "honest", "--model", "ref-b", "--json").json
    assert (explained["model"], explained["tier"]) == ("ref-b", "refused")
    assert_refused_both_ways(run, alice, ("explain", "honest", "--model", "no/such"), "unknown_model", 4)


def test_two_memories_answer_together_and_say_how_much_was_reused(pair: Pair, run: Kvnet) -> None:
    alice = pair.alice.home.root
    with pair.alice.node() as node:
        other = node.remember(TEXT)
        answer = node.ask(pair.prompt, [pair.memory, other], max_tokens=4)
        single = node.ask(pair.prompt, [pair.memory], max_tokens=4)
        assert single.text == node.ask(pair.prompt, pair.memory, max_tokens=4).text
    assert single.kv.reused_tokens == pair.memory.tokens
    assert pair.memory.tokens < answer.kv.reused_tokens <= pair.memory.tokens + other.tokens
    both = ("--memory", "honest", "--memory", other.id)
    found = run(alice, "ask", pair.prompt, *both, "--max-tokens", "4", "--json").json
    assert (found["text"], found["kv"]["tier"]) == (answer.text, "exact")
    assert found["kv"]["reused_tokens"] == answer.kv.reused_tokens
    prints(run(alice, "mem", "rm", other.id))


def assert_no_text_left(home: Path) -> None:
    """No file of the node holds a word of the text."""
    files = [path for path in home.rglob("*") if path.is_file()]
    assert [path for path in files if b"platypus" in path.read_bytes()] == []
