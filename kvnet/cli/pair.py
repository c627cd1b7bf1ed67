"""pair: show a one-use code, or type the one that another machine shows."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from kvnet.api import PairingAttempt, PairingComparison, PairingInvitation, PeerInfo
from kvnet.cli.output import Json, print_json, printable
from kvnet.client import Node
from kvnet.errors import RequestError
from kvnet.identity.keys import grouped


def pair(
    code: Annotated[
        str,
        typer.Argument(
            help="The code that the other machine shows (- reads it from stdin); none to show one."
        ),
    ] = "",
    at: Annotated[
        str, typer.Option("--at", help="HOST:PORT of the other machine, where mDNS does not reach.")
    ] = "",
    name: Annotated[str, typer.Option(help="What to call the peer here; its own name if not given.")] = "",
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare six digits on both machines before it counts.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make two nodes know each other, by a code that lives two minutes and works once.

    With --json every step is a document on a line of its own, the peer last.
    """
    if code == "-":
        code = _line("pair: no code came on stdin").strip()
    with Node() as node:
        for step in node.pair_stream(code, address=at, name=name, verify=verify):
            if as_json:
                print_json(step)
            else:
                _print(step)
            if isinstance(step, PairingComparison):
                node.answer_pairing(same=_are_same())


def _print(step: PairingInvitation | PairingAttempt | PairingComparison | PeerInfo) -> None:
    if isinstance(step, PairingInvitation):
        print(f"code: {step.code}")
        print(f"type it on the other machine within {step.expires_in_s:.0f} s: kvnet pair {step.code}")
        if step.addresses:
            print(f"where mDNS does not reach: kvnet pair CODE --at {step.addresses[0]}", flush=True)
    elif isinstance(step, PairingAttempt):
        left = f"{step.guesses_left} more and the code is closed"
        print(f"a wrong code came from {printable(step.host)}; {left}", file=sys.stderr, flush=True)
    elif isinstance(step, PairingComparison):
        print(f"the other machine must show: {step.digits}", flush=True)
    else:
        print(f"paired with {printable(step.name)} {grouped(step.node_id)}")


def _are_same() -> bool:
    print("does it? answer yes or no", file=sys.stderr, flush=True)
    return _line("pair: nobody said whether the digits are the same").strip().lower() in ("y", "yes")


def _line(missing: str) -> str:
    line = sys.stdin.readline()
    if not line:
        raise RequestError(missing)
    return line
