"""Names, messages and receipts: there after a restart, once each, and never guessed from garbage."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kvnetd.store.database import _STEPS
from kvnetd.store.ledger import SCHEMA_VERSION, CompletedTransfer, Ledger

from kvnet.api import InboxMessage
from kvnet.errors import RequestError, StateCorrupt, UnknownMessage, UnknownTransfer
from kvnet.identity.signing import SignedMessage
from kvnet.transfer.messages import Receipt

MESSAGE = InboxMessage(
    id="msg_" + "a" * 26,
    sender="node",
    sender_name="alice",
    sender_agent="writer",
    agent="reader",
    memory="mem_1",
    note="grüße 😀",
    received_at="2026-01-01T00:00:00Z",
    acknowledged_at="",
)


RECEIPT = SignedMessage(Receipt.TYPE, b"body", b"signer", b"signature")


def transfer(transfer_id: str = "ab" * 16, **changes: Any) -> CompletedTransfer:
    """A transfer from `node` that is done."""
    plain = CompletedTransfer("in", "node", transfer_id, "mem_1", b"offer", RECEIPT, "2026-01-01")
    return replace(plain, **changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store" / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with closing(Ledger(path)) as found:
        yield found


def test_everything_is_there_after_a_restart(path: Path, ledger: Ledger) -> None:
    ledger.name("notes", "mem_1")
    ledger.complete(transfer(), MESSAGE)
    ledger.close()
    with closing(Ledger(path)) as again:
        assert again.names() == {"mem_1": "notes"}
        assert again.messages(agent=None, unread_only=True) == (MESSAGE,)
        assert again.received("node", "ab" * 16) == (b"offer", RECEIPT)


def test_name_moves_to_the_memory_it_was_last_given(ledger: Ledger) -> None:
    ledger.name("notes", "mem_1")
    ledger.name("notes", "mem_2")
    assert ledger.memory_named("notes") == "mem_2"
    assert ledger.memory_named("other") is None


def test_forgotten_memory_loses_its_names_and_keeps_its_messages(ledger: Ledger) -> None:
    ledger.name("notes", "mem_1")
    ledger.complete(transfer(), MESSAGE)
    ledger.forget_memory("mem_1")
    assert ledger.names() == {}
    assert ledger.messages(agent=None, unread_only=False) == (MESSAGE,)


def test_receipt_and_message_are_written_together_or_not_at_all(ledger: Ledger) -> None:
    with pytest.raises(StateCorrupt):
        ledger.complete(transfer(), replace(MESSAGE, note=b"no text"))  # type: ignore[arg-type]
    assert ledger.received("node", "ab" * 16) is None
    assert ledger.messages(agent=None, unread_only=False) == ()


def test_transfer_without_a_message_is_no_inbox_entry(ledger: Ledger) -> None:
    ledger.complete(transfer(), None)
    assert ledger.messages(agent=None, unread_only=False) == ()
    assert ledger.received("node", "ab" * 16) is not None
    assert ledger.received("node", "cd" * 16) is None


def test_transfer_completed_twice_keeps_its_first_receipt_and_one_message(ledger: Ledger) -> None:
    for receipt, note in ((RECEIPT, "first"), (replace(RECEIPT, body=b"other"), "second")):
        ledger.complete(transfer(receipt=receipt), replace(MESSAGE, note=note))
    assert ledger.received("node", "ab" * 16) == (b"offer", RECEIPT)
    assert [message.note for message in ledger.messages(agent=None, unread_only=False)] == ["first"]


def test_transfers_are_told_apart_by_peer_and_direction(ledger: Ledger) -> None:
    ledger.complete(transfer(direction="out"), None)
    assert ledger.received("node", "ab" * 16) is None
    for peer in ("alice", "bob"):
        ledger.complete(transfer(peer=peer, offer_body=peer.encode()), None)
    assert [ledger.received(peer, "ab" * 16) for peer in ("alice", "bob", "node")] == [
        (b"alice", RECEIPT),
        (b"bob", RECEIPT),
        None,
    ]


def test_inbox_is_told_apart_by_agent_and_in_order(ledger: Ledger) -> None:
    late = replace(MESSAGE, id="msg_2", received_at="2026-03-01", agent="")
    early = replace(MESSAGE, id="msg_3", received_at="2026-02-01")
    for number, message in enumerate((late, early)):
        ledger.complete(transfer(f"{number:032x}"), message)
    assert ledger.messages(agent=None, unread_only=False) == (early, late)
    assert ledger.messages(agent="", unread_only=False) == (late,)
    assert ledger.messages(agent="reader", unread_only=True) == (early,)
    assert ledger.messages(agent="' OR 1 = 1 --", unread_only=False) == ()


def test_message_acknowledged_twice_keeps_the_first_time(ledger: Ledger) -> None:
    ledger.complete(transfer(), MESSAGE)
    first = ledger.acknowledge(MESSAGE.id, at="2026-01-02")
    assert first == replace(MESSAGE, acknowledged_at="2026-01-02")
    assert ledger.acknowledge(MESSAGE.id, at="2026-01-03") == first
    assert ledger.messages(agent=None, unread_only=True) == ()
    assert ledger.messages(agent=None, unread_only=False) == (first,)


def test_message_is_acknowledged_by_the_start_of_its_id_if_only_one_starts_so(ledger: Ledger) -> None:
    ledger.complete(transfer(), MESSAGE)
    assert ledger.acknowledge(MESSAGE.id[:8], at="2026-01-02").acknowledged_at == "2026-01-02"
    ledger.complete(transfer("cd" * 16), replace(MESSAGE, id=MESSAGE.id[:-1] + "b"))
    with pytest.raises(RequestError, match="2 ids"):
        ledger.acknowledge(MESSAGE.id[:-1], at="2026-01-03")
    assert ledger.acknowledge(MESSAGE.id, at="2026-01-03").acknowledged_at == "2026-01-02"


@pytest.mark.parametrize(
    "message_id", ["msg_" + "b" * 26, "msg_aaa", "", "msg_aaaaaa' OR '1", "msg_%%%%%%", "%"]
)
def test_unknown_message_is_refused(ledger: Ledger, message_id: str) -> None:
    ledger.complete(transfer(), MESSAGE)
    with pytest.raises(UnknownMessage):
        ledger.acknowledge(message_id, at="2026-01-02")


def test_newer_version_is_refused_and_left_untouched(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        db.execute("CREATE TABLE future (x)")
    before = path.read_bytes()
    with pytest.raises(StateCorrupt, match="install the newer kvnet"):
        Ledger(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("data", [b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 5000, b"x"])
def test_garbage_is_refused_and_left_untouched(path: Path, data: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(data)
    with pytest.raises(StateCorrupt, match=r"ledger\.sqlite"):
        Ledger(path)
    assert path.read_bytes() == data
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_database_of_another_program_is_refused(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE names (x)")
    with pytest.raises(StateCorrupt, match="already exists"):
        Ledger(path)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("names",)]


def test_folder_in_the_ledgers_place_is_refused(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(StateCorrupt):
        Ledger(path)


def test_ledger_of_the_first_version_is_brought_over_with_all_it_holds(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(_STEPS[0] + "PRAGMA user_version = 1;")
        db.execute("INSERT INTO names VALUES ('notes', 'mem_1')")
        row = ("in", "node", "ab" * 16, "mem_1", b"offer", b"body", b"signer", b"signature", "2026")
        db.execute("INSERT INTO transfers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    with closing(Ledger(path)) as ledger:
        assert ledger.names() == {"mem_1": "notes"}
        assert ledger.received("node", "ab" * 16) == (b"offer", RECEIPT)
        assert ledger.outbox.all() == ()
        assert ledger.check() == ""


def test_request_is_honoured_once_also_after_a_restart(path: Path, ledger: Ledger) -> None:
    assert ledger.requests.take("pull", "bob", "11", until=100)
    ledger.close()
    with closing(Ledger(path)) as again:
        assert not again.requests.take("pull", "bob", "11", until=100)
        assert again.requests.take("read", "bob", "11", until=100)
        assert again.requests.take("pull", "carol", "11", until=100)
        assert again.requests.count("pull", "bob", now=100) == 1
        assert again.requests.count("pull", "bob", now=101) == 0


def test_receipt_is_found_by_its_transfer_or_its_memory(ledger: Ledger) -> None:
    ledger.complete(transfer(), None)  # one that came is no receipt of ours
    with pytest.raises(UnknownTransfer):
        ledger.receipts.find("ab" * 16)
    for number, memory in enumerate(("mem_aaaaaaaa", "mem_aaaaaaaa", "mem_bbbbbbbb")):
        done = transfer(f"{number}" * 32, direction="out", memory=memory, completed_at=f"{number}")
        ledger.complete(done, None)
    assert [kept.transfer_id[0] for kept in ledger.receipts.all()] == ["0", "1", "2"]
    assert ledger.receipts.find("00000000").transfer_id == "0" * 32
    assert ledger.receipts.find("mem_aaaaaaaa").transfer_id == "1" * 32  # the last one of this memory
    for wanted in ("", "000", "99999999"):
        with pytest.raises(UnknownTransfer):
            ledger.receipts.find(wanted)


def test_start_of_several_memories_ids_finds_no_receipt(ledger: Ledger) -> None:
    for number, memory in enumerate(("mem_12345a", "mem_12345b", "mem_12345a")):
        ledger.complete(transfer(f"{number:032x}", direction="out", memory=memory), None)
    with pytest.raises(RequestError, match="several ids"):
        ledger.receipts.find("mem_12345")
    assert ledger.receipts.find("mem_12345a").transfer_id == f"{2:032x}"


def test_whether_an_offer_is_kept_is_told_without_reading_it(ledger: Ledger) -> None:
    ledger.complete(transfer("01" * 16, direction="out", offer_signature=b"s"), None)
    ledger.complete(transfer("02" * 16, direction="out", offer_body=b""), None)
    assert [kept.has_offer for kept in ledger.receipts.all()] == [True, False]
