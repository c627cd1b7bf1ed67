"""outbox ls|rm|retry, receipt ls|export: what waits for its peer, and proof of what was delivered."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from kvnet.cli.output import Json, print_json, print_table
from kvnet.client import Node
from kvnet.files.receipts import MAX_RECEIPT_FILE_NBYTES, verify_receipt
from kvnet.identity.keys import grouped

outbox = typer.Typer(help="Memories that wait for their peers.", no_args_is_help=True)
receipt = typer.Typer(help="Proof of what was delivered.", no_args_is_help=True)
Entry = Annotated[str, typer.Argument(metavar="ENTRY", help="Id, or the start of one.")]


@outbox.command("ls")
def outbox_ls(as_json: Json = False) -> None:
    """List what waits and what could not be delivered, in the order in which it was sent."""
    with Node() as node:
        found = node.outbox()
    if as_json:
        print_json(found)
        return
    rows = [
        (
            entry.id[:16],
            f"{entry.peer_name}/{entry.agent}" if entry.agent else entry.peer_name,
            entry.memory[:16],
            entry.state,
            str(entry.attempts),
            entry.expires_at,
            entry.problem[:60] or "-",
        )
        for entry in found
    ]
    columns = ("id", "to", "memory", "state", "attempts", "until", "last problem")
    print_table(columns, rows, empty="nothing waits")


@outbox.command("rm")
def outbox_rm(entry: Entry, as_json: Json = False) -> None:
    """Take a memory out of the outbox; a delivery in progress is broken off."""
    with Node() as node:
        gone = node.remove_outbox_entry(entry)
    if as_json:
        print_json(gone)
    else:
        print(f"removed {gone.id}: {gone.memory[:16]} does not go to {gone.peer_name}")


@outbox.command("retry")
def outbox_retry(entry: Entry, as_json: Json = False) -> None:
    """Try now; a memory that could not be delivered waits again, for as long as a new one."""
    with Node() as node:
        found = node.retry_outbox_entry(entry)
    if as_json:
        print_json(found)
    else:
        print(f"{found.id} waits for {found.peer_name} until {found.expires_at}")


@receipt.command("ls")
def receipt_ls(as_json: Json = False) -> None:
    """List what was delivered, oldest first."""
    with Node() as node:
        found = node.receipts()
    if as_json:
        print_json(found)
        return
    rows = [
        (info.transfer_id[:16], info.peer_name or info.peer[:13], info.memory[:16], info.completed_at)
        for info in found
    ]
    print_table(("transfer", "to", "memory", "delivered at"), rows, empty="nothing was delivered yet")


@receipt.command("export")
def receipt_export(
    transfer: Annotated[
        str, typer.Argument(help="Start of a transfer's id, or of the memory's at the peer.")
    ],
    file: Annotated[Path, typer.Argument(help="A new file, usually NAME.receipt.json.")],
    as_json: Json = False,
) -> None:
    """Write a receipt to a file that anyone can check with `kvnet verify`."""
    with Node() as node:
        nbytes = node.export_receipt(transfer, file.absolute())
    if as_json:
        print_json({"path": str(file.absolute()), "nbytes": nbytes})
    else:
        print(f"receipt in {file}; anyone can check it with `kvnet verify {file}`")


def is_receipt(path: Path) -> bool:
    """Whether a file can be nothing but a receipt: no memory and no zip begins as JSON does."""
    try:
        with path.open("rb") as file:
            return file.read(1) == b"{"
    except OSError:
        return False


def verify_receipt_file(path: Path, *, as_json: bool) -> None:
    """Check a receipt, without a daemon, and say what it proves. Raises MalformedFile, BadSignature."""
    with path.open("rb") as file:
        found = verify_receipt(file.read(MAX_RECEIPT_FILE_NBYTES + 1))
    if as_json:
        print_json({"path": str(path), "kind": "receipt", **asdict(found)})
        return
    at = datetime.fromtimestamp(found.received_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    print(f"{path}: as it was signed")
    print(f"{grouped(found.receiver)}, the receiver, held {found.memory} durably at {at}, tier {found.tier}")
    if found.sender:
        print(f"it came from {grouped(found.sender)}, whose signed offer is in the file")
    else:
        print("from whom it came is not proven: the offer had a text and was not kept")
