"""What a command did, and what it should have."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Said:
    """What a command did."""

    status: int
    out: str
    err: str


class Kvnet(Protocol):
    def __call__(self, *arguments: object) -> Said: ...


def json_of(said: Said) -> Any:
    """The one document a command printed."""
    assert said.status == 0, said
    assert said.out.count("\n") == 1
    return json.loads(said.out)


def refused(said: Said, code: str, status: int) -> None:
    assert said.status == status, said
    assert said.err.startswith("error: ")
    assert said.err.rstrip().endswith(f"[{code}]")
