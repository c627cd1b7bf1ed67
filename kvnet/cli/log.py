"""log: read the event log from its files, whether the daemon runs or not."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from kvnet.cli.output import Json
from kvnet.paths import find_home

_POLL_S = 0.2
_SHOWN_FIRST = ("v", "ts", "event", "node")


def log(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines.")] = False,
    event: Annotated[str, typer.Option(help="Only events that start so, for example transfer.")] = "",
    as_json: Json = False,
) -> None:
    """Show what this node did: one line per event, oldest first."""
    for line in read_lines(find_home().events, follow=follow):
        try:
            fields = json.loads(line)
        except ValueError:
            continue  # a line torn by a crash
        if not str(fields.get("event", "")).startswith(event):
            continue
        print(line if as_json else _text(fields), flush=True)


def read_lines(path: Path, *, follow: bool) -> Iterator[str]:
    """Whole lines of the log and its rotated files; with `follow`, forever."""
    rotated = [older for older in path.parent.glob(f"{path.name}.*") if older.suffix[1:].isdigit()]
    for older in sorted(rotated, key=lambda p: -int(p.suffix[1:])):
        with suppress(FileNotFoundError):  # rotated once more meanwhile
            yield from older.read_text(encoding="utf-8").splitlines()
    position, inode, partial = 0, None, ""
    while True:
        if path.exists():
            stat = path.stat()
            if stat.st_ino != inode or stat.st_size < position:
                position, inode, partial = 0, stat.st_ino, ""
            with path.open(encoding="utf-8") as lines:
                lines.seek(position)
                partial += lines.read()
                position = lines.tell()
            *whole, partial = partial.split("\n")
            yield from whole
        if not follow:
            return
        time.sleep(_POLL_S)


def _text(fields: dict[str, Any]) -> str:
    rest = " ".join(f"{k}={v}" for k, v in fields.items() if k not in _SHOWN_FIRST and v != "")
    return f"{fields['ts']} {fields['event']:<24} {rest}"
