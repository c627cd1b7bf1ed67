"""What users, disks, peers and crashes do wrong: one sentence, a code, a status, and the daemon goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from kvnetd.main import main as kvnetd_main

from kvnet.api import MemoryInfo
from kvnet.cli.main import main as kvnet_main
from kvnet.client import AsyncNode, Node
from kvnet.compat import differences
from kvnet.errors import (
    IncompatibleModel,
    KvnetError,
    NotRunning,
    PeerError,
    PeerNotAdded,
    StateCorrupt,
    StoreFull,
    UnknownMemory,
    UnknownPeer,
    WrongPeer,
)
from kvnet.identity.keys import NodeKey
from kvnet.identity.signing import SignedMessage
from kvnet.model.reference.catalog import reference_path
from kvnet.paths import MAX_SOCKET_PATH_NBYTES, Home
from kvnet.transfer.messages import Offer, seal
from kvnet.transport.client import PeerClient
from kvnet.types import TransferId
from tests.e2e.daemons import (
    Daemon,
    MakeDaemon,
    MakeHome,
    Pair,
    Said,
    chunks_arrived,
    cli_command,
    dialled_at,
    environment,
    introduce,
    kvnet,
    long_text,
    reply,
    spooled,
    when_free,
)
from tests.lan.proxy import FaultProxy, Faults

SOME_CHUNKS_NBYTES = 600_000  # four whole chunks of `long_text` and a part of the fifth
SOON_S = 6.0  # the reply that is left alone would take longer, and be logged as completed
DISK_NBYTES = 12 << 20

Kvnet = Callable[..., Said]


@pytest.fixture(autouse=True)
def _the_pair_goes_on(request: pytest.FixtureRequest) -> Iterator[None]:
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


@pytest.fixture(scope="module")
def rambler(homes: Path) -> Iterator[Daemon]:
    """A node with ref-b's geometry, whose model never comes to an end."""
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
def small_disk(home: MakeHome) -> Iterator[Path]:
    """A home on a disk of 12 MiB of its own."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a tmpfs needs root")
    folder = home("dave")
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_NBYTES},mode=700", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def _assert_refused(said: Said, code: str, status: int, *, as_json: bool) -> None:
    assert said.status == status, said
    (line,) = said.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(f"[{code}]")
    if as_json:
        (document,) = said.stdout.splitlines()
        error = json.loads(document)["error"]
        assert set(error) == {"code", "message", "details"}
        assert error["code"] == code
        assert line == f"error: {error['message']} [{code}]"
    else:
        assert said.stdout == ""


def _assert_refused_both_ways(
    run: Kvnet, home: Path, arguments: tuple[str, ...], code: str, status: int
) -> None:
    _assert_refused(run(home, *arguments), code, status, as_json=False)
    _assert_refused(run(home, *arguments, "--json"), code, status, as_json=True)


def _daemon_refuses(home: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    """Start `kvnetd` in this process; it must end by itself. Returns what it says on stderr."""
    capsys.readouterr()
    status = kvnetd_main(["--home", str(home), "--mdns", "0", *flags])
    (line,) = capsys.readouterr().err.splitlines()
    said: dict[str, Any] = json.loads(line)
    return {**said, "status": status}


def _fill(folder: Path) -> Path:
    """Write until the disk is full; returns the file to remove."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as out:
        while out.write(bytes(4096)):
            pass
    return filler


UNKNOWN = "mem_nosuch"
TOO_LONG = "The code of the north gate is 4821. " * 300
BAD_REQUESTS = [
    (("remember",), "request_invalid", 4),
    (("remember", ""), "request_invalid", 4),
    (("remember", "x", "--file", "there"), "request_invalid", 4),
    (("remember", "--file", "nosuch.txt"), "request_invalid", 4),
    (("remember", "x", "--name", "mem_x"), "request_invalid", 4),
    (("remember", "x", "--compression", "rar"), "request_invalid", 4),
    (("remember", TOO_LONG), "text_too_long", 4),
    (("mem", "show", UNKNOWN), "unknown_memory", 4),
    (("mem", "rm", UNKNOWN), "unknown_memory", 4),
    (("ask", "Who?", "--memory", UNKNOWN), "unknown_memory", 4),
    (("ask", ""), "request_invalid", 4),
    (("ask", "Who?", "--text", "nosuch.txt"), "request_invalid", 4),
    (("ask", "Who?", "--max-tokens", "5000"), "text_too_long", 4),
    (("ask", TOO_LONG), "text_too_long", 4),
    (("ask", "Who?", "--stop", ""), "request_invalid", 4),
    (("send", UNKNOWN, "--to", "bob"), "unknown_memory", 4),
    (("send", "honest", "--to", "nobody"), "unknown_peer", 4),
    (("send", "honest", "--to", "bob", "--note", "n" * 2001), "request_invalid", 4),
    (("pull", UNKNOWN, "--from", "bob"), "request_invalid", 4),
    (("pull", "mem_" + "a" * 52, "--from", "bob"), "unknown_memory", 4),
    (("pull", UNKNOWN, "--from", "nobody"), "unknown_peer", 4),
    (("peer", "add"), "request_invalid", 4),
    (("peer", "add", "--id", "abc"), "request_invalid", 4),
    (("peer", "add", "nowhere", "--id", "a" * 52), "request_invalid", 4),
    (("peer", "add", "--id", "a" * 52, "--name", "bob"), "request_invalid", 4),
    (("peer", "add", "127.0.0.1:1"), "peer_unreachable", 5),
    (("peer", "rm", "nobody"), "unknown_peer", 4),
    (("inbox", "ack", "msg_nosuch"), "unknown_message", 4),
    (("up", "--model", "ref-b"), "already_running", 3),
    (("up", "--quant", "nf4"), "already_running", 3),
]


@pytest.mark.parametrize(
    ("arguments", "code", "status"), BAD_REQUESTS, ids=[" ".join(row[0])[:40] for row in BAD_REQUESTS]
)
def test_a_bad_request_is_one_line_with_a_code_and_a_status(
    pair: Pair, run: Kvnet, arguments: tuple[str, ...], code: str, status: int
) -> None:
    _assert_refused_both_ways(run, pair.alice.home.root, arguments, code, status)


@pytest.mark.parametrize(
    "arguments",
    [("--temperature", "-1"), ("--temperature", "nan"), ("--top-p", "7"), ("--max-tokens", "few")],
)
def test_a_number_out_of_range_is_a_usage_error(pair: Pair, run: Kvnet, arguments: tuple[str, ...]) -> None:
    said = run(pair.alice.home.root, "ask", "Who?", *arguments)
    assert (said.status, said.stdout) == (2, "")
    assert arguments[0] in said.stderr


def test_a_refusal_reads_the_same_from_a_process_of_its_own(pair: Pair) -> None:
    said = kvnet(pair.alice.home.root, "ask", "Who?", "--memory", UNKNOWN, "--json")
    _assert_refused(said, "unknown_memory", 4, as_json=True)


def test_a_text_that_does_not_fit_one_message_is_no_missing_daemon(pair: Pair) -> None:
    with pair.alice.node() as node, pytest.raises(KvnetError) as refused:
        node.remember("x" * (70 << 20))
    assert not isinstance(refused.value, NotRunning)


def test_a_memory_and_a_text_at_once_are_refused(pair: Pair, run: Kvnet, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Some text.", encoding="utf-8")
    arguments = ("ask", "Who?", "--memory", "honest", "--text", str(text))
    _assert_refused_both_ways(run, pair.alice.home.root, arguments, "request_invalid", 4)


# --- the daemon that is not there ------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("status",), ("down",), ("ask", "Who?"), ("mem", "ls"), ("peers",)])
def test_without_a_daemon_every_command_says_so(
    home: MakeHome, run: Kvnet, arguments: tuple[str, ...]
) -> None:
    _assert_refused_both_ways(run, home("nobody"), arguments, "not_running", 3)


def test_a_stale_socket_and_token_are_no_daemon(home: MakeHome, run: Kvnet, pair: Pair) -> None:
    left = Home(home("left"))
    left.run.mkdir(parents=True)
    left.token.write_text("left over", encoding="ascii")
    left.socket.touch()
    _assert_refused_both_ways(run, left.root, ("status",), "not_running", 3)


@pytest.mark.parametrize("token", ["", "wrong", "with\nnewline", "ü"])
def test_a_wrong_control_token_is_refused(home: MakeHome, run: Kvnet, pair: Pair, token: str) -> None:
    thief = Home(home("thief"))
    thief.run.mkdir(parents=True)
    thief.token.write_text(token, encoding="utf-8")
    thief.socket.symlink_to(pair.alice.home.socket)
    for arguments in (("status",), ("ask", "Who?")):
        _assert_refused_both_ways(run, thief.root, arguments, "not_running", 3)
        assert str(thief.token) in run(thief.root, *arguments).stderr or not token


def test_a_missing_control_token_is_no_daemon(home: MakeHome, run: Kvnet, pair: Pair) -> None:
    thief = Home(home("thief"))
    thief.run.mkdir(parents=True)
    thief.socket.symlink_to(pair.alice.home.socket)
    _assert_refused_both_ways(run, thief.root, ("status",), "not_running", 3)


def test_socket_and_token_are_for_their_owner_alone(pair: Pair) -> None:
    home = pair.alice.home
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (home.run, home.socket, home.token)}
    assert modes == {"run": 0o700, "control.sock": 0o600, "token": 0o600}


def test_a_too_long_home_is_refused_before_anything_is_made(home: MakeHome, run: Kvnet) -> None:
    deep = home("x" * MAX_SOCKET_PATH_NBYTES)
    for arguments in (("up",), ("status",)):
        _assert_refused_both_ways(run, deep, arguments, "config_invalid", 3)
    assert not deep.exists()


# --- a daemon that cannot start ----------------------------------------------------------------------


def test_an_unknown_model_is_refused(home: MakeHome) -> None:
    said = kvnet(home("nobody"), "up", "--no-mdns", "--model", "no/such/folder", "--json")
    _assert_refused(said, "unknown_model", 4, as_json=True)
    assert "no/such/folder" in said.json["error"]["message"]


def test_a_model_that_is_not_cached_is_unknown_offline(
    home: MakeHome, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused = _daemon_refuses(home("nobody"), capsys, "--model", "nobody/nosuch")
    assert (refused["code"], refused["status"]) == ("unknown_model", 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 64},
        {"num_hidden_layers": 5},
        {"model_type": "nosuch"},
    ],
    ids=["sliding window", "missing weights", "unknown architecture"],
)
def test_a_model_this_node_cannot_host_is_refused(
    home: MakeHome, capsys: pytest.CaptureFixture[str], tmp_path: Path, changes: dict[str, Any]
) -> None:
    source = reference_path("ref-a")
    assert source is not None
    folder = tmp_path / "odd"
    shutil.copytree(source, folder)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(settings | changes), encoding="utf-8")
    refused = _daemon_refuses(home("nobody"), capsys, "--model", str(folder))
    assert (refused["code"], refused["status"]) == ("unsupported_model", 4)
    assert str(tmp_path) not in refused["message"]


def test_a_port_in_use_is_refused(pair: Pair, home: MakeHome, capsys: pytest.CaptureFixture[str]) -> None:
    refused = _daemon_refuses(home("nobody"), capsys, "--listen", pair.alice.grpc)
    assert (refused["code"], refused["status"]) == ("port_in_use", 3)
    assert pair.alice.grpc in refused["message"]


def test_up_again_changes_nothing(pair: Pair, run: Kvnet, capsys: pytest.CaptureFixture[str]) -> None:
    with pair.alice.node() as node:
        before = node.status()
    said = kvnet(pair.alice.home.root, "up", "--model", "ref-a", "--json")
    assert (said.status, said.json["pid"], said.json["grpc"]) == (0, before.pid, before.grpc)


def test_a_second_daemon_on_the_same_home_is_refused(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert pair.alice.process is not None
    refused = _daemon_refuses(pair.alice.home.root, capsys)
    assert (refused["code"], refused["status"]) == ("already_running", 3)
    assert str(pair.alice.process.pid) in refused["message"]


BAD_SETTINGS = [
    ("nosuch = 1", "nosuch"),
    ("model = 7", "model"),
    ("mdns = 'perhaps'", "mdns"),
    ("quantization = 'int3'", "quantization"),
    ("listen = 'everywhere'", "listen"),
    ("listen = '0.0.0.0:99999'", "listen"),
    ("max_inbound_transfers = -1", "max_inbound_transfers"),
    ("name = ''", "name"),
    ("= nonsense", "config.toml"),
]


@pytest.mark.parametrize(("settings", "named"), BAD_SETTINGS, ids=[row[0] for row in BAD_SETTINGS])
def test_a_bad_setting_is_refused_by_name(
    home: MakeHome, capsys: pytest.CaptureFixture[str], settings: str, named: str
) -> None:
    folder = home("nobody")
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(settings, encoding="utf-8")
    assert kvnetd_main(["--home", str(folder)]) == 3
    said = json.loads(capsys.readouterr().err)
    assert said["code"] == "config_invalid"
    assert named in said["message"]


def test_a_bad_setting_reaches_whoever_says_up(home: MakeHome) -> None:
    folder = home("nobody")
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("nosuch = 1", encoding="utf-8")
    _assert_refused(kvnet(folder, "up"), "config_invalid", 3, as_json=False)


def test_a_corrupt_state_folder_is_refused_left_alone_and_fine_once_mended(
    home: MakeHome, daemon: MakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    where = Home(home("frail"))

    def refuses(path: Path, content: bytes, mode: int = 0o600) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
        refused = _daemon_refuses(where.root, capsys)
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
        b'{"version": 2, "peers": []}',
        b'{"version": 1, "peers": [7]}',
        b"\xff",
    ):
        refuses(where.peers, nonsense)
    entry = {"node_id": "abc", "name": "x", "address": "", "added_at": ""}
    refuses(where.peers, json.dumps({"version": 1, "peers": [entry]}).encode())
    refuses(where.store / "ledger.sqlite", b"this is not a database, " * 100)
    mended = daemon("frail", where.root)
    mended.start()
    with mended.node() as node:
        memory = node.remember("Mira's dog is called Pixel.")
        assert node.ask("What is Mira's dog called?", memory).kv.reused_tokens == memory.tokens


def test_a_damaged_memory_is_refused_and_the_others_are_served(pair: Pair) -> None:
    with pair.bob.node() as node:
        damaged = {
            what: node.remember(long_text(seed), name=what)
            for seed, what in enumerate(("header", "table", "gone", "flipped", "short"), start=20)
        }
    pair.bob.stop()
    folders = {what: pair.bob.home.store / "memories" / memory.id for what, memory in damaged.items()}
    header = folders["header"] / "memory.json"
    header.write_bytes(header.read_bytes()[:-20])
    table = folders["table"] / "memory.json"
    table.write_bytes(table.read_bytes().replace(b'"offset":0', b'"offset":9'))
    (folders["gone"] / "sections.bin").unlink()
    sections = folders["flipped"] / "sections.bin"
    content = bytearray(sections.read_bytes())
    content[len(content) // 2] ^= 1
    sections.write_bytes(content)
    os.truncate(folders["short"] / "sections.bin", 1000)
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
        alice.send(damaged["header"].id, "bob")
        assert bob.ask(pair.prompt, damaged["header"]).kv.reused_tokens == damaged["header"].tokens
        for what in ("table", "gone", "flipped", "short"):
            bob.forget(damaged[what])
            again = bob.remember(long_text(21 + ("table", "gone", "flipped", "short").index(what)))
            assert again.id == damaged[what].id
            assert bob.ask(pair.prompt, again).kv.reused_tokens == again.tokens


# --- peers that do not fit, are not known, or are others ----------------------------------------------


class _HandMade:
    """An outbound transfer that offers what it is told to: as much of transport's Outbound as is needed."""

    def __init__(self, key: NodeKey, offer: Offer) -> None:
        self.key = key
        self.sealed_offer: SignedMessage = seal(key, offer)
        self.session = _NoSession(offer)


class _NoSession:
    def __init__(self, offer: Offer) -> None:
        self.offer = offer


def _offer(memory: MemoryInfo, sender: Daemon, receiver: Daemon) -> Offer:
    now = int(time.time())
    geometry = memory.header.geometry
    return Offer(
        transfer_id=TransferId(os.urandom(16).hex()),
        memory=memory.header,
        sender=NodeKey.load_or_create(sender.home.identity).node_id,
        receiver=NodeKey.load_or_create(receiver.home.identity).node_id,
        chunk_count=2 * geometry.num_layers,
        created_at=now,
        expires_at=now + 60,
    )


def test_a_peer_with_another_geometry_is_refused_field_by_field(pair: Pair, rambler: Daemon) -> None:
    introduce(pair.alice, rambler)
    with pair.alice.node() as alice, rambler.node() as other:
        mine, theirs = alice.status(), other.status()
        wanted = differences((mine.fingerprint, mine.geometry), (theirs.fingerprint, theirs.geometry))
        assert {"num_layers", "num_kv_heads", "rope", "weights_digest", "config_digest"} <= set(wanted)
        with pytest.raises(IncompatibleModel) as refused:
            alice.send(pair.memory, "rambler")
        assert refused.value.details == wanted
        for name, (got, needed) in wanted.items():
            assert f"{name} {got} (needs {needed})" in refused.value.message
        (info,) = [peer for peer in alice.peers(probe=True) if peer.name == "rambler"]
        assert (info.reachable, info.tier, info.model) == (True, "refused", "rambler")
        alice.remove_peer("rambler")
    # Nothing was offered: the refusal came from the hello.
    assert not [line for line in rambler.events("transfer") if line.get("memory") == pair.memory.id]


def test_the_cli_shows_the_difference_as_data(pair: Pair, rambler: Daemon, run: Kvnet) -> None:
    introduce(pair.alice, rambler)
    arguments = ("send", "honest", "--to", "rambler")
    _assert_refused_both_ways(run, pair.alice.home.root, arguments, "incompatible_model", 5)
    details = run(pair.alice.home.root, *arguments, "--json").json["error"]["details"]
    assert details["num_layers"] == ["4", "6"]
    with pair.alice.node() as alice:
        alice.remove_peer("rambler")


async def test_an_offer_of_another_geometry_is_refused_by_the_receiver(pair: Pair, rambler: Daemon) -> None:
    with rambler.node() as node:
        memory = node.remember("Petra's drink is tea.")
    key = NodeKey.load_or_create(pair.alice.home.identity)
    offer = _offer(memory, pair.alice, pair.bob)
    async with PeerClient(pair.bob.grpc, public=None, peer="bob") as client:
        with pytest.raises(IncompatibleModel) as refused:
            await client.push(_HandMade(key, offer))  # type: ignore[arg-type]  # as much as is looked at
    assert refused.value.details["num_kv_heads"] == ["3", "2"]
    assert not spooled(pair.bob, offer.transfer_id)


async def test_an_offer_from_a_key_that_was_not_added_is_refused(pair: Pair) -> None:
    stranger = NodeKey.generate()
    offer = _offer(pair.memory, pair.alice, pair.bob)
    async with PeerClient(pair.bob.grpc, public=None, peer="bob") as client:
        with pytest.raises(PeerNotAdded):
            await client.push(_HandMade(stranger, offer))  # type: ignore[arg-type]
    assert not spooled(pair.bob, offer.transfer_id)


def test_a_memory_taken_from_another_model_is_refused_at_ask(pair: Pair, rambler: Daemon) -> None:
    with rambler.node() as node:
        memory = node.remember("Petra's drink is tea.")
    pair.bob.stop()
    shutil.copytree(rambler.home.store / "memories" / memory.id, pair.bob.home.store / "memories" / memory.id)
    pair.bob.start()
    with pair.bob.node() as bob:
        with pytest.raises(IncompatibleModel):
            bob.ask(pair.prompt, memory)
        bob.forget(memory)


def test_a_node_that_was_not_added_is_refused_in_both_directions(pair: Pair) -> None:
    with pair.alice.node() as alice, pair.bob.node() as bob:
        try:
            bob.remove_peer("alice")
            with pytest.raises(PeerNotAdded, match=pair.alice.node_id):
                alice.send(pair.memory, "bob")
            with pytest.raises(PeerNotAdded):
                alice.pull(pair.memory.id, "bob")
            with pytest.raises(UnknownPeer):
                bob.send(pair.memory, "alice")
            with pytest.raises(UnknownPeer):
                bob.pull(pair.memory.id, "alice")
        finally:
            introduce(pair.alice, pair.bob)
        assert alice.send(pair.memory, "bob").memory == pair.memory.id
        assert bob.send(pair.memory, "alice").memory == pair.memory.id


def test_another_key_at_the_address_is_a_wrong_peer(pair: Pair, rambler: Daemon) -> None:
    with pair.alice.node() as alice:
        info = alice.add_peer(pair.bob.grpc, node_id=rambler.node_id, name="not-bob")
        assert not info.reachable
        assert "another node answers" in info.problem
        for deal in (
            lambda: alice.send(pair.memory, "not-bob"),
            lambda: alice.pull(pair.memory.id, "not-bob"),
        ):
            with pytest.raises(WrongPeer):
                deal()
        alice.remove_peer("not-bob")


def test_a_peer_that_does_not_run_is_unreachable(pair: Pair, run: Kvnet) -> None:
    with pair.alice.node() as alice:
        nobody = NodeKey.generate().node_id
        info = alice.add_peer("127.0.0.1:1", node_id=nobody, name="nobody")
        assert not info.reachable
        arguments = ("send", "honest", "--to", "nobody")
        _assert_refused_both_ways(run, pair.alice.home.root, arguments, "peer_unreachable", 5)
        assert run(pair.alice.home.root, "doctor").status == 1
        alice.remove_peer("nobody")


def test_pulling_what_the_peer_does_not_have_is_an_unknown_memory(pair: Pair) -> None:
    with pair.alice.node() as alice, pytest.raises(UnknownMemory):
        alice.pull("mem_" + "a" * 52, "bob")


# --- transfers that break --------------------------------------------------------------------------------


async def _memory_nobody_has(sender: AsyncNode, seed: int) -> MemoryInfo:
    memory = await sender.remember(long_text(seed))
    assert memory.nbytes > 1.5 * SOME_CHUNKS_NBYTES
    return memory


async def test_a_transfer_cut_in_the_middle_resumes(pair: Pair) -> None:
    stalling = Faults(stall_after_nbytes=SOME_CHUNKS_NBYTES)
    address = ("127.0.0.1", int(pair.bob.grpc.rpartition(":")[2]))
    async with pair.alice.async_node() as alice, FaultProxy(*address, to_server=stalling) as proxy:
        memory = await _memory_nobody_has(alice, 30)
        async with dialled_at(pair.alice, pair.bob, proxy.port):
            sending = asyncio.create_task(alice.send(memory, "bob"))
            await chunks_arrived(pair.bob, memory)
            proxy.cut()
            with pytest.raises(PeerError, match="bob"):
                await sending
            proxy.heal()
            report = await when_free(lambda: alice.send(memory, "bob"))
    assert 0 < report.resumed_chunks < report.chunks
    assert report.wire_bytes < report.raw_bytes
    with pair.bob.node() as bob, pair.alice.node() as sender:
        assert reply(bob.ask(pair.prompt, memory)) == reply(sender.ask(pair.prompt, memory))
        assert [message.memory for message in bob.inbox()].count(memory.id) == 1
    events = [line["event"] for line in pair.bob.events("transfer") if line.get("memory") == memory.id]
    assert [event for event in events if event != "transfer.started"] == [
        "transfer.failed",
        "transfer.completed",
    ]


async def test_a_connection_reset_in_a_burst_loses_nothing_that_was_promised(pair: Pair) -> None:
    # The reset overtakes what the receiver has not read yet: no chunk need have arrived.
    cutting = Faults(cut_after_nbytes=SOME_CHUNKS_NBYTES)
    address = ("127.0.0.1", int(pair.bob.grpc.rpartition(":")[2]))
    async with pair.alice.async_node() as alice, FaultProxy(*address, to_server=cutting) as proxy:
        memory = await _memory_nobody_has(alice, 31)
        async with dialled_at(pair.alice, pair.bob, proxy.port):
            with pytest.raises(PeerError, match="bob"):
                await alice.send(memory, "bob")
            assert proxy.num_cut == 1
            proxy.heal()
            report = await when_free(lambda: alice.send(memory, "bob"))
    assert (report.memory, report.tier) == (memory.id, "exact")


async def test_a_flipped_bit_on_the_way_is_no_memory(pair: Pair) -> None:
    flipping = Faults(flip_at=SOME_CHUNKS_NBYTES)
    address = ("127.0.0.1", int(pair.bob.grpc.rpartition(":")[2]))
    async with pair.alice.async_node() as alice, FaultProxy(*address, to_server=flipping) as proxy:
        memory = await _memory_nobody_has(alice, 32)
        async with dialled_at(pair.alice, pair.bob, proxy.port):
            with pytest.raises(PeerError):
                await alice.send(memory, "bob")
            with pair.bob.node() as bob, pytest.raises(UnknownMemory):
                bob.show(memory)
            proxy.heal()
            report = await when_free(lambda: alice.send(memory, "bob"))
    assert report.memory == memory.id


async def test_a_receiver_killed_in_the_middle_comes_back_and_the_transfer_resumes(pair: Pair) -> None:
    stalling = Faults(stall_after_nbytes=SOME_CHUNKS_NBYTES)
    address = ("127.0.0.1", int(pair.bob.grpc.rpartition(":")[2]))
    async with pair.alice.async_node() as alice, FaultProxy(*address, to_server=stalling) as proxy:
        memory = await _memory_nobody_has(alice, 33)
        async with dialled_at(pair.alice, pair.bob, proxy.port):
            sending = asyncio.create_task(alice.send(memory, "bob"))
            await chunks_arrived(pair.bob, memory)
            pair.bob.kill()
            with pytest.raises(PeerError):
                await sending
            proxy.heal()
            await asyncio.to_thread(pair.bob.start)
            report = await when_free(lambda: alice.send(memory, "bob"))
    assert 0 < report.resumed_chunks < report.chunks
    with pair.bob.node() as bob, pair.alice.node() as sender:
        assert reply(bob.ask(pair.prompt, memory)) == reply(sender.ask(pair.prompt, memory))


async def test_a_sender_killed_in_the_middle_comes_back_and_sends_anew(pair: Pair) -> None:
    stalling = Faults(stall_after_nbytes=SOME_CHUNKS_NBYTES)
    address = ("127.0.0.1", int(pair.bob.grpc.rpartition(":")[2]))
    async with (
        FaultProxy(*address, to_server=stalling) as proxy,
        dialled_at(pair.alice, pair.bob, proxy.port),
    ):
        async with pair.alice.async_node() as alice:
            memory = await _memory_nobody_has(alice, 34)
            sending = asyncio.create_task(alice.send(memory, "bob"))
            await chunks_arrived(pair.bob, memory)
            pair.alice.kill()
            with pytest.raises(NotRunning):
                await sending
        proxy.heal()
        await asyncio.to_thread(pair.alice.start)
    async with pair.alice.async_node() as alice, pair.bob.async_node() as bob:
        report = await when_free(lambda: alice.send(memory, "bob"))
        assert report.memory == memory.id
        assert reply(await bob.ask(pair.prompt, memory)) == reply(await alice.ask(pair.prompt, memory))


# --- a full disk -------------------------------------------------------------------------------------------


async def test_a_full_disk_is_said_and_survived(pair: Pair, daemon: MakeDaemon, small_disk: Path) -> None:
    dave = daemon("dave", small_disk)
    dave.start()
    introduce(pair.alice, dave)
    with dave.node() as node:
        kept = node.remember("Mira's dog is called Pixel.")
        expected = reply(node.ask("What is Mira's dog called?", kept))
        held: list[MemoryInfo] = []
        with pytest.raises(StoreFull, match="room"):
            held.extend(map(node.remember, map(long_text, range(40, 60))))
        assert len(held) >= 3
        said = kvnet(small_disk, "remember", long_text(60), "--json")
        _assert_refused(said, "store_full", 6, as_json=True)
        assert reply(node.ask("What is Mira's dog called?", kept)) == expected
        # A peer's memory does not fit either, and is refused before a byte of it is sent.
        with pair.alice.node() as alice:
            alices = alice.remember(long_text(61))
            with pytest.raises(StoreFull):
                alice.send(alices, "dave")
        for memory in held:
            node.forget(memory)
        assert node.remember(long_text(60)).tokens > 0
    await _fill_the_disk_in_the_middle(pair, dave)
    with dave.node() as node:
        assert reply(node.ask("What is Mira's dog called?", kept)) == expected
    with pair.alice.node() as alice:
        alice.remove_peer("dave")
    assert dave.stop() == 0


async def _fill_the_disk_in_the_middle(pair: Pair, dave: Daemon) -> None:
    stalling = Faults(stall_after_nbytes=SOME_CHUNKS_NBYTES)
    address = ("127.0.0.1", int(dave.grpc.rpartition(":")[2]))
    async with pair.alice.async_node() as alice, FaultProxy(*address, to_server=stalling) as proxy:
        memory = await _memory_nobody_has(alice, 62)
        async with dialled_at(pair.alice, dave, proxy.port):
            sending = asyncio.create_task(alice.send(memory, "dave"))
            await chunks_arrived(dave, memory)
            filler = _fill(dave.home.root)
            proxy.heal()
            with pytest.raises(StoreFull):
                await sending
            # Nothing can be written, not even the log; what needs no disk goes on.
            with dave.node() as node:
                for _ in range(20):
                    assert node.ask("What is Mira's dog called?").tokens > 0
                with pytest.raises(StoreFull):
                    node.remember("Omar's city is Lisbon.", name="omar")
            filler.unlink()
            report = await when_free(lambda: alice.send(memory, "dave"))
    assert report.resumed_chunks > 0
    with dave.node() as node:
        assert node.remember("Omar's city is Lisbon.", name="omar").name == "omar"
    for line in dave.home.events.read_text(encoding="utf-8").splitlines():
        assert json.loads(line)["event"]


# --- callers that go away -------------------------------------------------------------------------------


ONE_LEFT_ONE_ANSWERED = [f"generation.{what}" for what in ("completed", "failed", "started", "started")]


def _generations(daemon: Daemon) -> list[str]:
    return [line["event"] for line in daemon.events("generation")]


@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGINT])
def test_a_caller_that_goes_away_frees_the_model(rambler: Daemon, with_signal: signal.Signals) -> None:
    command = cli_command("ask", "Tell me the colour of the red box.", "--max-tokens", "2000")
    process = subprocess.Popen(
        command, env=environment(rambler.home), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    with process, process.stdout as said:
        said.read(1)
        process.send_signal(with_signal)
        process.wait(20)
    with rambler.node() as node:
        began = time.monotonic()
        answer = node.ask("Who?", max_tokens=1)
        waited_s = time.monotonic() - began
    assert answer.tokens == 1
    assert waited_s < SOON_S
    assert sorted(_generations(rambler)[-4:]) == ONE_LEFT_ONE_ANSWERED


async def test_a_stream_left_early_frees_the_model(rambler: Daemon) -> None:
    async with rambler.async_node() as node:
        stream = node.ask_stream("Tell me the colour of the red box.", max_tokens=2000)
        assert isinstance(await anext(stream), str)
        await stream.aclose()
        answer = await asyncio.wait_for(node.ask("Who?", max_tokens=1), SOON_S)
    assert answer.tokens == 1
    assert sorted(_generations(rambler)[-4:]) == ONE_LEFT_ONE_ANSWERED


def test_stopping_while_it_generates_ends_the_generation_and_the_daemon(
    daemon: MakeDaemon, rambler: Daemon
) -> None:
    process = subprocess.Popen(
        cli_command("ask", "Tell me the colour of the red box.", "--max-tokens", "2000"),
        env=environment(rambler.home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        process.stdout.read(1)
        assert rambler.stop() == 0
        last_words = process.stderr.read().decode()
        assert process.wait(20) in (3, 4)
    assert last_words.startswith("error: ")
    assert rambler.events()[-1]["event"] == "node.completed"
    rambler.start()
    with rambler.node() as node:
        assert node.ask("Who?", max_tokens=1).tokens == 1


def test_grpc_on_the_control_socket_without_a_token_is_refused(pair: Pair) -> None:
    from kvnet.v1 import control_pb2, control_pb2_grpc

    with grpc.insecure_channel(f"unix:{pair.alice.home.socket}") as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Status(control_pb2.StatusRequest(), timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]


def test_a_note_with_anything_in_it_arrives_as_it_was(pair: Pair) -> None:
    note = "a\nb\t\x00ü🦉" + "\u2028" * 3
    with Node(agent="odd", home=pair.bob.home.root) as bob, pair.alice.node() as alice:
        alice.send(pair.memory, "bob/odd", note=note)
        assert bob.inbox()[-1].note == note
