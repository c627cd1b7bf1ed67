"""peers, peer add|ls|show|trust|revoke|rotate|rm: whom this node deals with, and what each may do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvnet.api import PeerInfo
from kvnet.cli.output import Json, nbytes_text, print_json, print_table, printable, seconds_text
from kvnet.cli.progress import waiting
from kvnet.client import Node
from kvnet.errors import RequestError
from kvnet.identity.keys import grouped
from kvnet.identity.peers import Permission
from kvnet.identity.rotation import MAX_STATEMENT_NBYTES

peer = typer.Typer(help="Whom this node deals with, and what each may do here.", no_args_is_help=True)

Probe = Annotated[bool, typer.Option("--probe/--no-probe", help="Dial each added peer.")]
Peer = Annotated[str, typer.Argument(metavar="PEER", help="Name, id, or start of an id.")]
_COLUMNS = ("name", "id", "address", "known by", "trust", "model", "tier", "state")


def peers(probe: Probe = True, as_json: Json = False) -> None:
    """List added peers, and nodes that mDNS shows."""
    with Node() as node:
        found = node.peers(probe=probe)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            info.name or "-",
            info.node_id[:13],
            info.addresses[0] if info.addresses else "-",
            info.source or "-",
            _trust(info),
            info.model or "-",
            info.tier or "-",
            _state(info),
        )
        for info in found
    ]
    print_table(_COLUMNS, rows, empty="no peers yet; add one with `kvnet pair`")


peer.command("ls")(peers)


@peer.command("add")
def add(
    address: Annotated[str, typer.Argument(help="HOST:PORT; leave out to find it by mDNS.")] = "",
    node_id: Annotated[str, typer.Option("--id", help="The node's id, from `kvnet status` there.")] = "",
    name: Annotated[str, typer.Option(help="What to call it here; its own name if not given.")] = "",
    as_json: Json = False,
) -> None:
    """Add a node by its id; `kvnet pair` is simpler where people are at both machines."""
    with Node() as node:
        info = node.add_peer(address, node_id=node_id, name=name)
    if as_json:
        print_json(info)
    else:
        print(f"added {info.name} {grouped(info.node_id)}: {_state(info)}")


@peer.command("show")
def show(peer_name: Peer, as_json: Json = False) -> None:
    """Dial a peer at all its addresses and show what is known of it."""
    with Node() as node:
        info = node.show_peer(peer_name)
    if as_json:
        print_json(info)
    else:
        _print_peer(info)


@peer.command("trust")
def trust(
    peer_name: Peer,
    allow: Annotated[
        list[Permission] | None,
        typer.Option(help="All that it may do here from now on; repeatable. As before if not given."),
    ] = None,
    allow_nothing: Annotated[
        bool, typer.Option("--allow-nothing", help="It may do nothing here but be sent to.")
    ] = False,
    quota: Annotated[
        int | None, typer.Option(min=0, help="At most so many bytes of its memories are kept here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Trust a peer again that was revoked, end its alarm, or change what it may do."""
    if allow and allow_nothing:
        raise RequestError("peer trust: takes --allow or --allow-nothing, not both")
    permissions = [] if allow_nothing else [one.value for one in allow] if allow else None
    with Node() as node:
        info = node.trust_peer(peer_name, permissions=permissions, quota_nbytes=quota)
    if as_json:
        print_json(info)
    else:
        _print_peer(info)


@peer.command("revoke")
def revoke(peer_name: Peer, as_json: Json = False) -> None:
    """Trust a peer no longer: it is let in no more, and what is open with it ends within a second."""
    with Node() as node:
        info = node.revoke_peer(peer_name)
    if as_json:
        print_json(info)
    else:
        print(f"revoked {info.name} {grouped(info.node_id)}")


@peer.command("rotate")
def rotate(
    statement: Annotated[
        Path | None, typer.Argument(help="A peer's statement of its new key; without one, rotate ours.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Give this node a new key, or take in that of a peer.

    A new key is signed by the old one, told to every peer that answers, and used from the next start on: the
    daemon stops. A key that was stolen is not rotated: its peers revoke it, and pair again.
    """
    if statement is not None:
        _take_in(statement, as_json=as_json)
        return
    with Node() as node, waiting("telling the peers"):
        report = node.rotate_key()
    if as_json:
        print_json(report)
        return
    print(f"new node id {grouped(report.new_id)}; the daemon stops, start it again with `kvnet up`")
    print(f"told: {printable(', '.join(report.told)) or 'nobody'}")
    if report.untold:
        print(f"not told: {printable(', '.join(report.untold))}")
        print(f"  bring them {report.statement}")
        print("  and run there: kvnet peer rotate FILE")


@peer.command("rm")
def remove(peer_name: Peer, as_json: Json = False) -> None:
    """Forget a peer; nothing is taken from it any more. `revoke` remembers that it is not to be trusted."""
    with Node() as node:
        info = node.remove_peer(peer_name)
    if as_json:
        print_json(info)
    else:
        print(f"removed {info.name}")


def _take_in(path: Path, *, as_json: bool) -> None:
    try:
        with path.open("rb") as file:
            statement = file.read(MAX_STATEMENT_NBYTES + 1)
    except OSError as exc:
        raise RequestError(f"file {path}: cannot be read ({exc.strerror})") from exc
    with Node() as node:
        info = node.accept_rotation(statement)
    if as_json:
        print_json(info)
    else:
        print(f"{info.name} has a new key: {grouped(info.node_id)}")


def _print_peer(info: PeerInfo) -> None:
    quota = "none" if info.quota_nbytes is None else nbytes_text(info.quota_nbytes)
    rows = {
        "peer": f"{info.name}  {grouped(info.node_id)}",
        "trust": f"{_trust(info)}, added {info.added_at or 'at an unknown time'}",
        "may": ", ".join(info.permissions) or "nothing",
        "quota": quota,
        "address": ", ".join(info.addresses) or "unknown",
        "state": _state(info),
    }
    if info.rotated_from:
        rows["before"] = grouped(info.rotated_from)
    if info.alarm:
        rows["ALARM"] = f"{info.alarm}; revoke it, or end the alarm with `kvnet peer trust {info.name}`"
    for label, text in rows.items():
        print(f"{label:<8} {printable(text)}")


def _trust(info: PeerInfo) -> str:
    if not info.added:
        return "none"
    if info.revoked_at:
        return f"revoked {info.revoked_at}"
    return f"ALARM, {info.verified}" if info.alarm else info.verified


def _state(info: PeerInfo) -> str:
    return f"answers in {seconds_text(info.latency_s)}" if info.reachable else info.problem or "not probed"
