"""kill -9 at every named point of the store: what was acknowledged is there, every end is reached once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from kvnetd.store.failpoints import NAMES, VARIABLE
from kvnetd.store.repair import seal_memory
from kvnetd.store.spool import folder_name

from tests.builders import make_memory
from tests.kvnetd import killed
from tests.kvnetd.conftest import Arrival
from tests.kvnetd.killed import MEMORY, MESSAGE, VAULT, open_stores

ROOT = Path(__file__).resolve().parents[2]
OF_A_SENDER = ("offer.kept", "outbox.queued")
RECEIVING = [
    f"{name}{time}"
    for name in NAMES
    if name not in OF_A_SENDER
    for time in (("", ":2", ":3") if name.startswith("chunk.") else ("",))
]


def run(folder: Path, what: str, failpoint: str = "") -> tuple[list[str], int]:
    """What it acknowledged, and how it ended."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "daemon")))
    done = subprocess.run(
        [sys.executable, killed.__file__, str(folder), what],
        env={**os.environ, VARIABLE: failpoint, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.stdout.splitlines(), done.returncode


@pytest.mark.parametrize("failpoint", RECEIVING)
def test_receiver_killed_anywhere_loses_nothing_it_acknowledged(tmp_path: Path, failpoint: str) -> None:
    told, status = run(tmp_path, "receive", failpoint)
    assert status == -signal.SIGKILL
    assert "receipt" not in told
    acknowledged = {int(line.split()[1]) for line in told}
    spool, memories, ledger = open_stores(tmp_path)
    arrival = Arrival(MEMORY)
    was_complete = ledger.received("alice", killed.DONE.transfer_id) is not None
    is_spooled = (spool.root / folder_name(arrival.offer)).exists()
    if is_spooled:
        incoming = spool.open(arrival.offer, arrival.sealed)
        assert acknowledged <= set(incoming.held)
        incoming.close()
    else:
        assert memories.load(memories.find(MEMORY.header.id)) == MEMORY
    assert was_complete is (failpoint == "ledger.completed")
    ledger.close()

    told, status = run(tmp_path, "receive")
    assert (told[-1], status) == ("receipt", 0)
    again = {int(line.split()[1]) for line in told[:-1]}
    assert not (is_spooled and acknowledged & again)  # none was sent a second time
    spool, memories, ledger = open_stores(tmp_path)
    assert memories.load(memories.find(MEMORY.header.id)) == MEMORY
    assert ledger.messages(agent=None, unread_only=False) == (MESSAGE,)
    assert list(spool.root.iterdir()) == []
    assert [entry.name for entry in memories.root.iterdir()] == [MEMORY.header.id]
    ledger.close()


@pytest.mark.parametrize(
    ("failpoint", "told", "waits"),
    [
        ("outbox.queued", [], True),
        ("offer.kept", ["queued"], True),
        ("ledger.completing", ["queued", "offered"], True),
        ("ledger.completed", ["queued", "offered"], False),
    ],
)
def test_sender_killed_anywhere_keeps_the_entry_or_the_receipt(
    tmp_path: Path, failpoint: str, told: list[str], waits: bool
) -> None:
    assert run(tmp_path, "queue", failpoint) == (told, -signal.SIGKILL)
    ledger = open_stores(tmp_path)[2]
    assert [entry.id for entry in ledger.outbox.all()] == (["out_1"] if waits else [])
    assert len(ledger.receipts.all()) == (0 if waits else 1)
    kept = ledger.offers.find(("slot",), VAULT)
    assert (kept is not None) is (waits and failpoint != "outbox.queued")
    ledger.close()


def test_every_failpoint_is_in_the_store_once_or_more_and_none_is_made_up() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "daemon" / "kvnetd" / "store").glob("*.py"))
    assert set(re.findall(r'reach\("([a-z.-]+)"\)', sources)) == set(NAMES)


def test_without_the_variable_nothing_is_killed(tmp_path: Path) -> None:
    told, status = run(tmp_path, "receive")
    assert (len(told), status) == (7, 0)


def test_memory_aside_when_the_power_went_is_put_back(tmp_path: Path) -> None:
    """Sealing one anew moves the old one aside: killed there, the next start has the old one again."""
    memories = open_stores(tmp_path)[1]
    from tests.kvnetd.stores import put

    record = put(memories)
    os.rename(memories.root / record.id, memories.root / f".{record.id}.old")  # noqa: PTH104  # as a crash left it
    again = open_stores(tmp_path / ".")[1]
    assert again.load(again.find(record.id)) == make_memory(0)
    seal_memory(again, record)
    assert again.load(record) == make_memory(0)
