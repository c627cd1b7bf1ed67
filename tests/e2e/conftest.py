"""Homes with short paths, and two daemons, alice and bob, that every test of the run shares."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.daemons import Daemon, MakeDaemon, MakeHome, Pair, introduce, questions, reply


@pytest.fixture(scope="session")
def homes() -> Iterator[Path]:
    """A folder for state folders. Not pytest's own: a Unix socket's path ends after 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="kv-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def home(homes: Path) -> Iterator[MakeHome]:
    """Make named homes that are gone after the test."""
    folder = Path(tempfile.mkdtemp(prefix="", dir=homes))
    yield lambda name: folder / name
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def daemon(home: MakeHome) -> Iterator[MakeDaemon]:
    """Make daemons that are stopped after the test, however it ended."""
    made: list[Daemon] = []

    def make(name: str, folder: Path | None = None, **flags: str) -> Daemon:
        made.append(Daemon(folder or home(name), name, **flags))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture(scope="session")
def pair(homes: Path) -> Iterator[Pair]:
    """alice and bob; a test that changes either leaves them as it found them."""
    alice, bob = Daemon(homes / "alice", "alice"), Daemon(homes / "bob", "bob")
    try:
        alice.launch()
        bob.launch()
        for one in (alice, bob):
            one.wait_until_ready()
        introduce(alice, bob)
        text, question = questions(1, seed=1)[0]
        with alice.node() as node:
            memory = node.remember(text, name="honest")
            node.send(memory, "bob")
            expected = reply(node.ask(question.prompt, memory))
        yield Pair(alice, bob, memory, question.prompt, expected)
    finally:
        alice.stop()
        bob.stop()
