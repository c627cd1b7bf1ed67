"""estimate: what sending a memory to a peer would take, by each way."""

from __future__ import annotations

from typing import Annotated

import typer

from kvnet.api import Estimate
from kvnet.cli.output import Json, nbytes_text, print_json, print_table, seconds_text
from kvnet.client import Node
from kvnet.codec.presets import CODECS


def estimate(
    memory: Annotated[str, typer.Argument(help="Id, start of an id, or name.")],
    to: Annotated[str, typer.Option(help="A peer.")],
    codec: Annotated[
        str, typer.Option(help=f"One of {', '.join(CODECS)}; the daemon's setting if not given.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Say what a transfer, reading the text there, and a split of both would take, and which is fastest."""
    with Node() as node:
        found = node.estimate(memory, to, codec=codec)
    if as_json:
        print_json(found)
        return
    rate = f"{nbytes_text(found.link_bytes_per_s)}/s"
    print(
        f"{found.memory[:16]} to {found.peer}: {found.tokens} tokens, {nbytes_text(found.wire_bytes)} as "
        f"{found.codec}, {rate} to there, {found.reading_tokens_per_s} tokens/s read there"
    )
    print_table(("mode", "time", ""), _rows(found), empty="")
    if found.why_no_text:
        print(f"no text: {found.why_no_text}")


def _rows(found: Estimate) -> list[tuple[str, str, str]]:
    split = f"its first {found.split_tokens} tokens read there"
    ways = (("transfer", found.transfer_s, ""), ("text", found.text_s, ""), ("split", found.split_s, split))
    return [
        (name, seconds_text(seconds), f"{note}{' (fastest)' if name == found.choice else ''}".strip())
        for name, seconds, note in ways
        if seconds is not None
    ]
