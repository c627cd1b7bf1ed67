"""Damage on disk: refused by name and left alone, and all the rest is served."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kvnet.errors import StateCorrupt
from kvnet.identity.keys import NodeKey
from kvnet.paths import Home
from tests.e2e.daemons import MakeDaemon, MakeHome, Pair, long_text
from tests.e2e.outcomes import daemon_refuses

WHAT = ("header", "table", "gone", "flipped", "short", "notes", "signature")

pytestmark = pytest.mark.usefixtures("pair_goes_on")


def test_a_corrupt_state_folder_is_refused_left_alone_and_fine_once_mended(
    home: MakeHome, daemon: MakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    where = Home(home("frail"))

    def refuses(path: Path, content: bytes, mode: int = 0o600) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
        refused = daemon_refuses(where.root, capsys)
        assert (refused["code"], refused["status"]) == ("state_corrupt", 3), refused
        assert str(path) in refused["message"]
        assert path.read_bytes() == content
        path.unlink()

    refuses(where.identity, b"short")
    refuses(where.identity, b"k" * 33)
    refuses(where.identity, b"k" * 32, mode=0o644)
    for nonsense in (
        b"",
        b"{",
        b"[]",
        b'{"version": 0, "peers": []}',
        b'{"version": 99, "peers": []}',
        b'{"version": 1, "peers": [7]}',
        b"\xff",
    ):
        refuses(where.peers, nonsense)
    entry: dict[str, str | list[str]] = {"node_id": "abc", "name": "x", "address": "", "added_at": ""}
    refuses(where.peers, json.dumps({"version": 1, "peers": [entry]}).encode())
    entry |= {"node_id": NodeKey.generate().node_id, "permissions": ["send", "everything"]}
    refuses(where.peers, json.dumps({"version": 2, "peers": [entry]}).encode())
    refuses(where.store / "ledger.sqlite", b"this is not a database, " * 100)
    refuses(where.vault_key, b"v" * 32)
    refuses(where.store / "store.json", b"{")
    mended = daemon("frail", where.root)
    mended.start()
    with mended.node() as node:
        memory = node.remember("Mira's dog is called Pixel.")
        assert node.ask("What is Mira's dog called?", memory).kv.reused_tokens == memory.tokens


def test_a_damaged_memory_is_refused_and_the_others_are_served(pair: Pair) -> None:
    with pair.bob.node() as node:
        damaged = {
            what: node.remember(long_text(seed), name=what) for seed, what in enumerate(WHAT, start=20)
        }
    pair.bob.stop()
    folders = {what: pair.bob.home.store / "memories" / memory.id for what, memory in damaged.items()}
    header = folders["header"] / "head.awkg"
    header.write_bytes(header.read_bytes()[:-20])
    table = folders["table"] / "head.awkg"
    table.write_bytes(table.read_bytes().replace(b'"offset":0', b'"offset":9'))
    (folders["notes"] / "local.json").write_bytes(b"{")
    (folders["signature"] / "signature").write_bytes(bytes(64))
    (folders["gone"] / "sections.sealed").unlink()
    sections = folders["flipped"] / "sections.sealed"
    content = bytearray(sections.read_bytes())
    content[len(content) // 2] ^= 1
    sections.write_bytes(content)
    os.truncate(folders["short"] / "sections.sealed", 1000)
    pair.bob.start()
    with pair.bob.node() as node:
        for what, memory in damaged.items():
            for wanted in (what, memory.id):
                with pytest.raises(StateCorrupt, match=memory.id):
                    node.ask(pair.prompt, wanted)
        listed = [info.id for info in node.memories() if not getattr(info, "problem", "")]
        assert pair.memory.id in listed
        assert damaged["header"].id not in listed
    with pair.alice.node() as alice, pair.bob.node() as bob:
        # The header is what makes a memory known: without it, the same memory arrives as a new one.
        assert alice.remember(long_text(20)).id == damaged["header"].id
        alice.send(damaged["header"].id, "bob", codec="exact")
        assert bob.ask(pair.prompt, damaged["header"]).kv.reused_tokens == damaged["header"].tokens
        for seed, what in enumerate(WHAT[1:], start=21):
            bob.forget(damaged[what])
            again = bob.remember(long_text(seed))
            assert again.id == damaged[what].id
            assert bob.ask(pair.prompt, again).kv.reused_tokens == again.tokens
