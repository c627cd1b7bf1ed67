"""Homes with short paths, and the daemons that every test of the run shares: alice, bob and the rambler."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvnet.cli.main import main as kvnet_main
from kvnet.model.reference.catalog import reference_path
from kvnet.paths import Home
from tests.e2e.daemons import (
    Daemon,
    Kvnet,
    MakeDaemon,
    MakeHome,
    Pair,
    Said,
    environment,
    introduce,
    questions,
    reply,
)

pytest.register_assert_rewrite("tests.e2e.outcomes")


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
            node.send(memory, "bob", codec="exact")
            expected = reply(node.ask(question.prompt, memory))
        yield Pair(alice, bob, memory, question.prompt, expected)
    finally:
        alice.stop()
        bob.stop()


@pytest.fixture
def pair_goes_on(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test that used the pair, both still answer right. Not for every file: it takes time."""
    yield
    if "pair" in request.fixturenames:
        request.getfixturevalue("pair").check()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kvnet:
    """`kvnet` inside this process: what `daemons.kvnet` does, without the interpreter's start."""

    def run(home: Path, *arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["kvnet", *arguments])
        for key, value in environment(Home(home)).items():
            monkeypatch.setenv(key, value)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            kvnet_main()
        printed = capsys.readouterr()
        return Said(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def rambler(homes: Path) -> Iterator[Daemon]:
    """A node with ref-b's geometry, whose model never comes to an end; who stops it starts it again."""
    folder = homes / "models" / "rambler"
    source = reference_path("ref-b")
    assert source is not None
    shutil.copytree(source, folder)
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(settings | {"eos_token_id": 0}), encoding="utf-8")
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    text = json.dumps(tokenizer | {"eos_token": "<pad>"})
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    daemon = Daemon(homes / "rambler", "rambler", model=str(folder))
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.stop()


@pytest.fixture
def alice(pair: Pair) -> Path:
    """alice's home."""
    return pair.alice.home.root
