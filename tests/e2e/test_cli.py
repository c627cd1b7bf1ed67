"""The command line as scripts use it: fields of `--json`, which stream says what, the demo."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvnet.paths import Home
from kvnet.version import VERSION
from tests.e2e.daemons import (
    MakeDaemon,
    MakeHome,
    Pair,
    cli_command,
    environment,
    kvnet,
    long_text,
)
from tests.e2e.outcomes import json_of, prints

PR_SET_CHILD_SUBREAPER = 36

STATUS_FIELDS = {"node_id", "name", "grpc", "model", "pid", "version", "home", "mdns"}
MEMORY_FIELDS = {
    *("id", "name", "tokens", "layers", "nbytes", "model", "origin", "created_at", "header"),
    *("codec", "stored_nbytes", "signed_by", "tier", "needs_basis"),
}
SEND_FIELDS = {
    *("transfer_id", "memory", "peer", "chunks", "raw_bytes", "wire_bytes", "seconds", "tier"),
    *("resumed_chunks", "codec"),
}
KV_FIELDS = {"tier", "reused_tokens", "recomputed_tokens", "fallback", "ttft_s", "codec"}
ANSWER_FIELDS = {"text", "kv", "tokens", "finish_reason", "seconds"}
PEER_FIELDS = {"node_id", "name", "addresses", "source", "added", "reachable", "model", "tier", "problem"}
MESSAGE_FIELDS = {"id", "sender", "sender_name", "agent", "memory", "note", "received_at", "acknowledged_at"}
FINDING_FIELDS = {"check", "verdict", "detail", "remedy"}

HEAVY = ("torch", "transformers", "numpy", "safetensors", "bitsandbytes", "kvnetd")
MAX_HELP_CPU_S = 3.0  # what it takes is a tenth of that; a busy machine is not a bug
_HELP = f"""
import resource, sys
sys.argv = ["kvnet", "--help"]
from kvnet.cli.main import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
usage = resource.getrusage(resource.RUSAGE_SELF)
loaded = [name for name in {HEAVY!r} if name in sys.modules]
print(usage.ru_utime + usage.ru_stime, *loaded, file=sys.stderr)
"""


def test_help_is_quick_and_imports_no_model_code() -> None:
    said = subprocess.run(
        [sys.executable, "-c", _HELP], capture_output=True, text=True, timeout=60, check=True
    )
    cpu_s, *loaded = said.stderr.split()
    assert loaded == []
    assert float(cpu_s) < MAX_HELP_CPU_S
    for command in ("up", "down", "status", "remember", "send", "ask", "peers", "doctor", "log", "demo"):
        assert command in said.stdout


def test_the_sdk_imports_no_model_code() -> None:
    look = f"import sys, kvnet, kvnet.client; print([n for n in {HEAVY!r} if n in sys.modules])"
    said = subprocess.run(
        [sys.executable, "-c", look], capture_output=True, text=True, timeout=60, check=True
    )
    assert said.stdout.strip() == "[]"


def test_the_version_is_said(home: MakeHome) -> None:
    assert VERSION in prints(kvnet(home("nobody"), "--version"))


def test_an_unknown_command_is_a_usage_error(home: MakeHome) -> None:
    said = kvnet(home("nobody"), "nosuch")
    assert said.status == 2
    assert "nosuch" in said.stderr
    assert "Traceback" not in said.stderr
    assert said.stdout == ""


@pytest.fixture
def orphans() -> Iterator[list[int]]:
    """Meanwhile orphans stay zombies, as in a container whose first process never waits; list them here."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    pids: list[int] = []
    yield pids
    prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="subreapers are Linux's")
def test_up_down_and_back(home: MakeHome, orphans: list[int]) -> None:
    where = home("solo")
    try:
        up = json_of(where, "up", "--no-mdns", "--name", "solo")
        orphans.append(up["pid"])
        assert set(up) >= STATUS_FIELDS
        assert (up["name"], up["model"], up["home"]) == ("solo", "ref-a", str(where))
        assert json_of(where, "up")["pid"] == up["pid"]
        status = json_of(where, "status")
        assert {key: status[key] for key in STATUS_FIELDS} == {key: up[key] for key in STATUS_FIELDS}
        identity = Home(where).identity.read_bytes()
        down = json_of(where, "down")
        assert down == {"pid": up["pid"], "stopped": True}
        assert not _is_running(up["pid"])
        assert kvnet(where, "status").status == 3
        # Nothing is left that keeps the next one from starting, and it is the same node.
        assert Home(where).identity.read_bytes() == identity
        assert not Home(where).socket.exists()
        assert {stat.name for stat in where.iterdir()} >= {"identity", "store", "log", "run"}
        assert oct(where.stat().st_mode & 0o777) == "0o700"
    finally:
        kvnet(where, "down")


def _is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"


def test_serve_runs_in_the_foreground_until_it_is_told_to_stop(home: MakeHome) -> None:
    where = Home(home("serve"))
    command = cli_command("serve", "--no-mdns", "--name", "serve")
    process = subprocess.Popen(command, env=environment(where), stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not where.socket.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert json_of(where.root, "status")["pid"] == process.pid
    finally:
        process.terminate()
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (0, b"")


def test_remember_and_mem(alice: Path, tmp_path: Path) -> None:
    text = "Greta's animal is owl."
    memory = json_of(alice, "remember", text, "--name", "greta")
    assert set(memory) >= MEMORY_FIELDS
    assert memory["id"].startswith("mem_")
    assert (memory["name"], memory["layers"], memory["model"]) == ("greta", 4, "ref-a")
    assert memory["nbytes"] == memory["tokens"] * memory["header"]["geometry"]["num_layers"] * 2 * 2 * 32 * 4
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    assert json_of(alice, "remember", "--file", str(file)) == memory
    assert json_of(alice, "remember", "-", stdin=text) == memory
    assert memory in json_of(alice, "mem", "ls")
    for wanted in ("greta", memory["id"], memory["id"][:12]):
        assert json_of(alice, "mem", "show", wanted) == memory
    assert "greta" in prints(kvnet(alice, "mem", "ls"))
    assert memory["id"] in prints(kvnet(alice, "mem", "show", "greta"))
    assert json_of(alice, "mem", "rm", "greta") == memory
    assert memory["id"] not in [one["id"] for one in json_of(alice, "mem", "ls")]


def test_send_ask_and_inbox(alice: Path, pair: Pair) -> None:
    bob = pair.bob.home.root
    memory = json_of(alice, "remember", long_text(80), "--name", "eighty")
    sending = ("send", "eighty", "--to", "bob/clerk", "--note", "from a script", "--codec", "exact")
    report = json_of(alice, *sending)
    assert set(report) >= SEND_FIELDS
    assert (report["memory"], report["peer"], report["tier"]) == (memory["id"], "bob", "exact")
    assert report["codec"] == "exact"
    assert (report["chunks"], report["raw_bytes"], report["resumed_chunks"]) == (8, memory["nbytes"], 0)
    assert 0 < report["wire_bytes"] <= report["raw_bytes"]
    assert report["seconds"] > 0
    answer = json_of(bob, "ask", pair.prompt, "--memory", memory["id"])
    assert set(answer) >= ANSWER_FIELDS
    assert set(answer["kv"]) >= KV_FIELDS
    assert answer["kv"]["reused_tokens"] == memory["tokens"]
    (message,) = json_of(bob, "inbox", "ls", "--agent", "clerk")
    assert set(message) >= MESSAGE_FIELDS
    assert (message["note"], message["agent"], message["memory"]) == ("from a script", "clerk", memory["id"])
    assert json_of(bob, "inbox", "ack", message["id"])["acknowledged_at"]
    assert json_of(bob, "inbox", "ls", "--agent", "clerk") == []
    assert len(json_of(bob, "inbox", "ls", "--agent", "clerk", "--all")) == 1
    pulled = json_of(alice, "pull", memory["id"], "--from", "bob")
    assert set(pulled) >= SEND_FIELDS


def test_an_answer_goes_to_stdout_and_its_kv_report_to_stderr(pair: Pair) -> None:
    said = kvnet(pair.bob.home.root, "ask", pair.prompt, "--memory", pair.memory.id)
    assert said.stdout == pair.expected[0] + "\n"
    kv, untrusted = said.stderr.splitlines()
    assert kv.startswith(f"[kv exact: {pair.memory.tokens} tokens reused, ")
    assert untrusted == "[untrusted: read what came from alice]"
    with_text = kvnet(pair.bob.home.root, "ask", pair.prompt, "--memory", pair.memory.id, "--stop", ".")
    assert with_text.stdout == pair.expected[0].split(".")[0] + "\n"


def test_text_on_stdout_is_for_people_and_stderr_stays_silent(alice: Path) -> None:
    for arguments in (("status",), ("mem", "ls"), ("peers",), ("inbox", "ls"), ("log",)):
        said = kvnet(alice, *arguments)
        assert (said.status, said.stderr) == (0, "")
        assert said.stdout.strip()


def test_peers(alice: Path, pair: Pair) -> None:
    (bob,) = [peer for peer in json_of(alice, "peers") if peer["name"] == "bob"]
    assert set(bob) >= PEER_FIELDS
    assert (bob["node_id"], bob["reachable"], bob["tier"]) == (pair.bob.node_id, True, "exact")
    assert (bob["added"], bob["addresses"], bob["problem"]) == (True, [pair.bob.grpc], "")
    unprobed = [peer for peer in json_of(alice, "peers", "--no-probe") if peer["name"] == "bob"]
    assert [peer["reachable"] for peer in unprobed] == [False]
    try:
        assert json_of(alice, "peer", "rm", "bob")["node_id"] == pair.bob.node_id
        assert "bob" not in [peer["name"] for peer in json_of(alice, "peers")]
    finally:
        grouped = "-".join(pair.bob.node_id[i : i + 13] for i in range(0, 52, 13)).upper()
        added = json_of(alice, "peer", "add", pair.bob.grpc, "--id", grouped)
    assert (added["name"], added["node_id"], added["reachable"]) == ("bob", pair.bob.node_id, True)


def test_without_an_id_peer_add_says_who_answers_and_adds_nobody(alice: Path, pair: Pair) -> None:
    before = json_of(alice, "peers", "--no-probe")
    said = kvnet(alice, "peer", "add", pair.bob.grpc)
    assert said.status == 4
    assert pair.bob.node_id in said.stderr
    assert json_of(alice, "peers", "--no-probe") == before


def test_doctor_is_content_with_a_healthy_node_and_fails_on_a_sick_one(
    alice: Path, home: MakeHome, daemon: MakeDaemon
) -> None:
    found = json_of(alice, "doctor")
    assert all(set(finding) == FINDING_FIELDS for finding in found["findings"])
    assert set(found["summary"]) == {"ok", "warn", "fail"}
    assert found["summary"]["fail"] == 0
    assert sum(found["summary"].values()) == len(found["findings"])
    assert "peer bob" in [finding["check"] for finding in found["findings"]]
    assert "peer bob" in prints(kvnet(alice, "doctor"))
    fresh = json_of(home("fresh"), "doctor")
    assert fresh["summary"]["fail"] == 0
    sick = Home(home("sick"))
    sick.identity.parent.mkdir(mode=0o700, parents=True)
    sick.identity.write_bytes(b"short")
    sick.identity.chmod(0o600)
    sick.peers.write_text("nonsense", encoding="utf-8")
    said = kvnet(sick.root, "doctor", "--json")
    assert (said.status, said.stderr) == (1, "")
    failed = [finding["check"] for finding in said.json["findings"] if finding["verdict"] == "fail"]
    assert len(failed) == said.json["summary"]["fail"] == 2


def test_inspect_model_prints_the_shapes_of_a_cache(home: MakeHome) -> None:
    said = kvnet(home("nobody"), "inspect-model", "--model", "ref-a")
    assert said.status == 0, said
    found = json.loads(said.stdout)
    tokens = found["rows"][0]["cached_tokens"]
    shape = [1, 2, tokens, 32]
    assert found["num_layers"] == 4
    assert found["layers"] == [
        {
            "layer_idx": layer_idx,
            "key_shape": shape,
            "value_shape": shape,
            "key_dtype": "torch.float32",
            "value_dtype": "torch.float32",
        }
        for layer_idx in range(4)
    ]
    assert found["token_nbytes"] == 4 * 2 * 2 * 32 * 4


def test_the_demo_ends_with_one_object(home: MakeHome) -> None:
    said = kvnet(home("nobody"), "demo", "--json")
    assert said.status == 0, said
    assert said.stdout.count("\n") == 1
    document = said.json
    assert set(document) == {"nodes", "send", "questions", "ttft", "crossed"}
    assert [node["name"] for node in document["nodes"]] == ["alice", "bob"]
    assert all(set(node) == {"name", "node_id", "model", "grpc"} for node in document["nodes"])
    assert set(document["send"]) >= SEND_FIELDS
    for question in document["questions"]:
        assert {"question", "expected", "with_memory", "without_memory", "kv"} == set(question)
        assert question["kv"]["reused_tokens"] > 0
        assert question["kv"]["tier"] == "exact"
    assert set(document["ttft"]) == {"memory_s", "text_s"}
    assert "alice reads" in said.stderr
    _is_crossed(document["crossed"])
    assert not home("nobody").exists()


def _is_crossed(crossed: list[dict[str, Any]]) -> None:
    """Each other model answered through a map, and from the text where the map knows nothing of its words."""
    assert [(one["model"], one["tier"]) for one in crossed] == [
        ("ref-b", "mapped"),
        ("ref-c", "mapped+tokens"),
    ]
    for crossing in crossed:
        assert set(crossing) == {"model", "tier", "map", "questions", "fallback"}
        right = sum(reply["with_memory"] == reply["expected"] for reply in crossing["questions"])
        guessed = sum(reply["without_memory"] == reply["expected"] for reply in crossing["questions"])
        assert right >= 5
        assert guessed <= 1
        for reply in crossing["questions"]:
            assert reply["kv"]["tier"] == crossing["tier"]
            assert reply["kv"]["map"] == crossing["map"] != ""
            assert reply["kv"]["fallback"] == "none"
            assert reply["kv"]["reused_tokens"] > 0
        fallback = crossing["fallback"]["kv"]
        assert (fallback["tier"], fallback["fallback"], fallback["map"]) == ("text", "text", "")
        assert crossing["fallback"]["with_memory"] == crossing["fallback"]["expected"]
