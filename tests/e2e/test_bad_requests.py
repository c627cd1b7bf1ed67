"""What a caller asks for wrongly: one sentence, a code, a status, on the CLI and in `--json`."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvnet.client import Node
from kvnet.codec.presets import AUTO, PRESETS
from kvnet.errors import KvnetError, NotRunning, RequestError
from tests.e2e.daemons import Kvnet, Pair, kvnet
from tests.e2e.outcomes import assert_refused, assert_refused_both_ways

pytestmark = pytest.mark.usefixtures("pair_goes_on")

UNKNOWN = "mem_nosuch"
TOO_LONG = "The code of the north gate is 4821. " * 300
BAD_REQUESTS = [
    (("remember",), "request_invalid", 4),
    (("remember", ""), "request_invalid", 4),
    (("remember", "x", "--file", "there"), "request_invalid", 4),
    (("remember", "--file", "nosuch.txt"), "request_invalid", 4),
    (("remember", "x", "--name", "mem_x"), "request_invalid", 4),
    (("remember", "x", "--compression", "rar"), "request_invalid", 4),
    (("remember", "x", "--codec", "int2"), "request_invalid", 4),
    (("remember", "x", "--dtype", "float8"), "request_invalid", 4),
    (("send", "honest", "--to", "bob", "--codec", "int2"), "request_invalid", 4),
    (("send", "honest", "--to", "bob", "--codec", "INT8"), "request_invalid", 4),
    (("mem", "import", "nosuch.awkg"), "request_invalid", 4),
    (("mem", "export", UNKNOWN, "there.awkg"), "unknown_memory", 4),
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
    assert_refused_both_ways(run, pair.alice.home.root, arguments, code, status)


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
    assert_refused(said, "unknown_memory", 4, as_json=True)


def test_a_text_that_does_not_fit_one_message_is_no_missing_daemon(pair: Pair) -> None:
    with pair.alice.node() as node, pytest.raises(KvnetError) as refused:
        node.remember("x" * (70 << 20))
    assert not isinstance(refused.value, NotRunning)


def test_a_memory_and_a_text_at_once_are_refused(pair: Pair, run: Kvnet, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Some text.", encoding="utf-8")
    arguments = ("ask", "Who?", "--memory", "honest", "--text", str(text))
    assert_refused_both_ways(run, pair.alice.home.root, arguments, "request_invalid", 4)


def test_a_codec_that_does_not_exist_is_refused_with_those_that_do(pair: Pair) -> None:
    with pair.alice.node() as node:
        for call in (
            lambda: node.remember("x", codec="int2"),
            lambda: node.send(pair.memory, "bob", codec="int2"),
        ):
            with pytest.raises(RequestError, match=", ".join((*PRESETS, AUTO))):
                call()


def test_a_note_with_anything_in_it_arrives_as_it_was(pair: Pair) -> None:
    note = "a\nb\t\x00ü🦉" + "\u2028" * 3
    with Node(agent="odd", home=pair.bob.home.root) as bob, pair.alice.node() as alice:
        alice.send(pair.memory, "bob/odd", note=note)
        assert bob.inbox()[-1].note == note
