"""What commands print: a document, a refusal, or why a daemon will not start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kvnetd.main import main as kvnetd_main

from tests.e2e.daemons import Kvnet, Said, kvnet


def assert_refused(said: Said, code: str, status: int, *, as_json: bool) -> None:
    """One line with the code on stderr; with `--json` the same as one document on stdout, else nothing."""
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


def assert_refused_both_ways(
    run: Kvnet, home: Path, arguments: tuple[str, ...], code: str, status: int
) -> None:
    """The same command with and without `--json`."""
    assert_refused(run(home, *arguments), code, status, as_json=False)
    assert_refused(run(home, *arguments, "--json"), code, status, as_json=True)


def daemon_refuses(home: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    """Start `kvnetd` in this process; it must end by itself. Returns what it says on stderr."""
    capsys.readouterr()
    status = kvnetd_main(["--home", str(home), "--mdns", "0", *flags])
    (line,) = capsys.readouterr().err.splitlines()
    said: dict[str, Any] = json.loads(line)
    return {**said, "status": status}


def json_of(home: Path, *arguments: str, stdin: str = "") -> Any:
    """The document that a command prints; it must print that and nothing else."""
    said = kvnet(home, *arguments, "--json", stdin=stdin)
    assert said.status == 0, said
    assert said.stderr == ""
    assert said.stdout.count("\n") == 1
    return said.json


def prints(said: Said) -> str:
    """What a command that succeeded printed."""
    assert said.status == 0, said
    return said.stdout
