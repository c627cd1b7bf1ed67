"""doctor: look at everything that can be wrong with a node, say what to do about each."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from kvnet.api import RepairReport
from kvnet.cli import spawn
from kvnet.cli.output import Json, nbytes_text, print_json, seconds_text
from kvnet.cli.progress import layer_bar
from kvnet.client import Node
from kvnet.errors import KvnetError
from kvnet.identity.keys import NodeKey
from kvnet.identity.peers import PeerList
from kvnet.paths import Home, find_home

Verdict = Literal["ok", "warn", "fail"]
_CLIENT = ("grpcio", "protobuf", "pynacl", "lz4", "zeroconf")
_NODE = ("torch", "transformers", "bitsandbytes", "safetensors")
_LOW_DISK_NBYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    check: str
    verdict: Verdict
    detail: str
    remedy: str = ""


Repair = Annotated[
    bool,
    typer.Option("--repair", help="Check every digest, set aside what is damaged, seal what lies in clear."),
]


def doctor(repair: Repair = False, as_json: Json = False) -> None:
    """Check the installation, the state folder, the daemon and the peers."""
    home = find_home()
    findings: list[Finding] = []
    checks = [_packages, _state_folder, _identity, _disk, _peer_file, _daemon]
    for check in [_repair, *checks] if repair else checks:
        try:
            findings += check(home)
        except (KvnetError, OSError) as exc:
            findings.append(Finding(check.__name__.strip("_"), "fail", str(exc)))
    failed = any(f.verdict == "fail" for f in findings)
    if as_json:
        summary = {verdict: sum(f.verdict == verdict for f in findings) for verdict in ("ok", "warn", "fail")}
        print_json({"findings": findings, "summary": summary})
    else:
        for finding in findings:
            print(f"{finding.verdict:<5} {finding.check:<14} {finding.detail}")
            if finding.remedy:
                print(f"{'':<20} -> {finding.remedy}")
    if failed:
        raise typer.Exit(1)


def _packages(home: Home) -> Iterator[Finding]:
    found = {name: _version(name) for name in ("kvnet", *_CLIENT, *_NODE)}
    missing = [name for name in _NODE if not found[name]]
    listed = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    yield Finding("packages", "ok", f"python {sys.version.split()[0]}, {listed}")
    if missing:
        yield Finding(
            "node extra", "warn", f"{', '.join(missing)} not installed: this is a client only",
            "pip install 'kvnet[node]'",
        )  # fmt: skip


def _state_folder(home: Home) -> Iterator[Finding]:
    home.check()
    if not home.root.exists():
        yield Finding("state folder", "ok", f"{home.root} does not exist yet; `kvnet up` makes it")
    elif not os.access(home.root, os.W_OK):
        yield Finding("state folder", "fail", f"{home.root} cannot be written", "mend its owner or mode")
    elif stat.S_IMODE(home.root.stat().st_mode) & 0o077:
        mode = stat.S_IMODE(home.root.stat().st_mode)
        yield Finding("state folder", "warn", f"{home.root} has mode {mode:04o}", f"chmod 700 {home.root}")
    else:
        yield Finding("state folder", "ok", str(home.root))


def _identity(home: Home) -> Iterator[Finding]:
    key = NodeKey.load(home.identity)
    if key is not None:
        yield Finding("identity", "ok", key.node_id)


def _disk(home: Home) -> Iterator[Finding]:
    folder = home.root
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    low = free < _LOW_DISK_NBYTES
    yield Finding(
        "disk", "warn" if low else "ok", f"{nbytes_text(free)} free", "free some space" if low else ""
    )


def _peer_file(home: Home) -> Iterator[Finding]:
    yield Finding("peer list", "ok", f"{len(PeerList(home.peers).all())} added")


def _daemon(home: Home) -> Iterator[Finding]:
    status = spawn.running(home)
    if status is None:
        yield Finding("daemon", "warn", "not running", "kvnet up")
        return
    yield Finding("daemon", "ok", f"{status.name} hosts {status.model}, pid {status.pid}")
    if status.damaged:
        yield Finding(
            "store",
            "warn",
            f"{status.damaged} memories are damaged",
            "kvnet doctor --repair, or kvnet mem rm ID",
        )
    if status.unsealed:
        yield Finding("at rest", "warn", f"{status.unsealed} memories lie in clear", "kvnet doctor --repair")
    if status.grpc.startswith(("127.", "localhost", "[::1]")):
        yield Finding(
            "peer port", "warn", f"{status.grpc} is reachable from this machine only",
            "kvnet down && kvnet up --listen 0.0.0.0:7447",
        )  # fmt: skip
    else:
        yield Finding("peer port", "ok", status.grpc)
    with Node(home=home.root) as node:
        for info in node.peers(probe=True):
            if info.reachable:
                yield Finding(f"peer {info.name}", "ok", f"{info.model}, tier {info.tier}")
            elif info.revoked_at:
                yield Finding(f"peer {info.name}", "ok", info.problem)
            elif info.added:
                yield Finding(f"peer {info.name}", "fail", info.problem, "start it, or check the address")
            if info.alarm:
                yield Finding(f"peer {info.name}", "fail", info.alarm, "revoke it if one is not yours")


def _repair(home: Home) -> Iterator[Finding]:
    if spawn.running(home) is None:
        yield Finding("repair", "fail", "no daemon runs, and only it may change the store", "kvnet up")
        return
    with Node(home=home.root) as node, layer_bar("checking the store") as show:
        for step in node.repair_stream():
            if isinstance(step, RepairReport):
                yield from _repaired(step)
            else:
                show(step.done, step.total)


def _repaired(report: RepairReport) -> Iterator[Finding]:
    checked = f"{report.checked} memories, {report.sections} sections, {nbytes_text(report.nbytes)} checked"
    yield Finding("repair", "ok", f"{checked} in {seconds_text(report.seconds)}")
    for done in report.repaired:
        if done.done == "sealed":
            yield Finding("sealed", "ok", done.memory)
        else:
            yield Finding(done.done, "warn", f"{done.memory}: {done.problem}", done.path)
    for problem in report.problems:
        yield Finding("repair", "fail", problem)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
