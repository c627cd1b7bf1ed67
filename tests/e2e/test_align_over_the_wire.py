"""The packaged map between two daemons of other models: on the wire, examined, and a new one beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvnet.alignment import MapManifest
from kvnet.files.alignments import VerifiedAlignment, read_alignment_file
from kvnet.model.reference.catalog import packaged_alignments
from tests.e2e.daemons import Daemon, Kvnet, introduce
from tests.e2e.outcomes import assert_refused_both_ways, prints

TEXT = "Mira's pet is fox. The city of Jonas is Lisbon. Petra's drink is tea."
PROMPT = "What is the city of Jonas?"
STRANGE_TEXT = "Zoltan's tool is a hammer. Anna keeps the red key."


@dataclass(frozen=True)
class Strangers:
    """alice hosts ref-a and bob ref-b, and what leads from hers to his."""

    alice: Daemon
    bob: Daemon
    port: VerifiedAlignment
    map: VerifiedAlignment


@pytest.fixture(scope="module")
def strangers(homes: Path) -> Iterator[Strangers]:
    alice, bob = Daemon(homes / "from", "alice"), Daemon(homes / "to", "bob", model="ref-b")
    try:
        alice.launch()
        bob.launch()
        for one in (alice, bob):
            one.wait_until_ready()
        introduce(alice, bob)
        yield Strangers(alice, bob, *_packaged("ref-a", "ref-b"))
    finally:
        alice.stop()
        bob.stop()


def _packaged(source: str, receiver: str) -> tuple[VerifiedAlignment, VerifiedAlignment]:
    """(the port, the map) that come with the package."""
    found = {file.manifest.id: file for file in map(read_alignment_file, packaged_alignments())}
    for file in found.values():
        manifest = file.manifest
        if isinstance(manifest, MapManifest) and (manifest.source.model, manifest.receiver.model) == (
            source,
            receiver,
        ):
            return found[manifest.port], file
    raise AssertionError(f"no map from {source} to {receiver} is packaged")


def test_memory_goes_in_coordinates_and_answers_through_the_map(strangers: Strangers, run: Kvnet) -> None:
    alice, bob = strangers.alice.home.root, strangers.bob.home.root
    memory = run(alice, "remember", TEXT, "--json").json
    sent = run(alice, "send", memory["id"], "--to", "bob", "--json").json
    assert (sent["tier"], sent["codec"]) == ("mapped", "port8")
    assert sent["wire_bytes"] < len(strangers.port.encoded)  # the port is there already
    reply = run(bob, "ask", PROMPT, "--memory", sent["memory"], "--max-tokens", "4", "--json").json
    assert reply["text"].strip() == "Lisbon."
    found = reply["kv"]
    assert (found["tier"], found["codec"], found["map"]) == ("mapped", "port8", strangers.map.manifest.id)
    assert found["reused_tokens"] > 0
    explained = run(bob, "explain", sent["memory"], "--json").json
    assert (explained["tier"], explained["map"]["id"]) == ("mapped", strangers.map.manifest.id)


def test_memory_of_words_that_no_map_knows_is_refused_or_answered_from_its_text(
    strangers: Strangers, run: Kvnet
) -> None:
    alice, bob = strangers.alice.home.root, strangers.bob.home.root
    memory = run(alice, "remember", STRANGE_TEXT, "--json").json
    assert_refused_both_ways(run, alice, ("send", memory["id"], "--to", "bob"), "alignment_refused", 4)
    sent = run(alice, "send", memory["id"], "--to", "bob", "--with-text", "--json").json
    asked = ("ask", "What is Zoltan's tool?", "--memory", sent["memory"], "--max-tokens", "4", "--json")
    assert run(bob, *asked).json["kv"]["tier"] == "text"


def test_table_tells_every_arm(strangers: Strangers, run: Kvnet) -> None:
    bob, wanted = strangers.bob.home.root, strangers.map.manifest.id
    table = run(bob, "align", "eval", wanted, "--peer", "alice", "--questions", "8", "--json").json
    assert [row["arm"] for row in table["arms"]][:4] == ["text", "none", "own", "mapped"]
    assert set(table["arms"][0]) == {"arm", "recall", "gap_recovered", "kl", "num_questions"}
    said = prints(run(bob, "align", "eval", wanted, "--source", "ref-a", "--questions", "8"))
    assert "95 % interval" in said
    assert "n/a" in said
    refused = ("align", "eval", wanted, "--source", "ref-c")
    assert_refused_both_ways(run, bob, refused, "incompatible_model", 5)


def test_fit_keeps_what_its_gate_refuses_and_touches_no_admitted_map(
    strangers: Strangers, run: Kvnet
) -> None:
    bob = strangers.bob.home.root
    made = run(bob, "align", "fit", "--peer", "alice", "--lessons", "32", "--json").json
    assert (made["kind"], made["source"], made["receiver"]) == ("map", "ref-a", "ref-b")
    assert (made["port"], made["num_contexts"]) == (strangers.port.manifest.id, 32)
    assert made["signed_by"] == strangers.bob.node_id
    assert "gate" in prints(run(bob, "align", "show", made["id"]))
    listed = {row["id"] for row in run(bob, "align", "ls", "--json").json}
    assert {made["id"], strangers.map.manifest.id} <= listed
    lines = strangers.bob.events("alignment.completed")
    assert lines[-1]["map"] == made["id"]
    assert_refused_both_ways(run, bob, ("align", "fit"), "request_invalid", 4)
    assert_refused_both_ways(run, bob, ("align", "fit", "--peer", "nobody"), "unknown_peer", 4)
