"""demo: nodes as processes of their own; one reads a text, others answer from its memory, whatever model."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from kvnet.api import KvReport, MemoryInfo, NodeStatus, SendReport
from kvnet.cli import spawn
from kvnet.cli.output import Json, nbytes_text, print_json, seconds_text, table_lines
from kvnet.client import Node
from kvnet.errors import IncompatibleModel, OperatorError
from kvnet.paths import Home

TEXT = (
    "The code of the north gate is 4821. Mira's dog is called Pixel. The colour of the red box is amber. "
    "Note: the city of Omar is Lisbon. We know that Petra's drink is tea. Jonas has the key 17. "
    "For Greta, the animal is owl. Mira's city is Tokyo. The code of the south gate is 3390. "
    "Omar's dog is called Bruno. Petra's city is Cairo. Jonas's drink is coffee."
)
QUESTIONS = (
    ("What is the code of the north gate?", "4821"),
    ("What is Mira's dog called?", "Pixel"),
    ("What is the city of Omar?", "Lisbon"),
    ("What is Petra's drink?", "tea"),
    ("What is the code of the south gate?", "3390"),
    ("What is Omar's dog called?", "Bruno"),
)
# Everyday words, of which the maps between the reference models know what they say.
CROSSED_TEXT = (
    "Mira's pet is fox. The city of Jonas is Lisbon. Note: Petra's drink is tea. We know that the colour of "
    "Hugo is amber. For Clara, the animal is swan. Jonas's drink is coffee. The fruit of Mira is mango. "
    "Remember that Petra's city is Cairo. Hugo's gift: violin. Clara has the flower tulip."
)
CROSSED_QUESTIONS = (
    ("What is Mira's pet?", "fox"),
    ("What is the city of Jonas?", "Lisbon"),
    ("What is Petra's drink?", "tea"),
    ("What is the colour of Hugo?", "amber"),
    ("What is Mira's fruit?", "mango"),
    ("What is Clara's flower called?", "tulip"),
)
CROSSED = (("carol", "ref-b"), ("dave", "ref-c"))  # nodes of models that the teller's is a stranger to
RUNS_FOR_TTFT = 5
MAX_TOKENS = 16
SHOWN_CHARS = 24
SHOWN_ID_CHARS = 12


@dataclass(frozen=True, slots=True)
class Reply:
    """A question with both answers, and the kv report of the one from memory."""

    question: str
    expected: str
    with_memory: str
    without_memory: str
    kv: KvReport


@dataclass(frozen=True, slots=True)
class Crossing:
    """What a node of another model made of a memory: through which map, and what it could not map.

    `fallback` is about a memory of words that the map was not fitted on, whose text was sent along.
    """

    model: str
    tier: str
    map: str  # id, or "" where the text was read
    questions: list[Reply]
    fallback: Reply


def demo(
    teller: Annotated[str, typer.Option(help="Model of the node that reads.")] = "ref-a",
    answerer: Annotated[str, typer.Option(help="Model of the node that answers.")] = "ref-a",
    as_json: Json = False,
) -> None:
    """Start two nodes, let one read a text, send its cache, and ask the other about it; then other models."""

    def say(text: str) -> None:
        print(text, file=sys.stderr if as_json else sys.stdout, flush=True)

    with ExitStack() as stack:
        folder = Path(stack.enter_context(_temporary_folder()))
        say("starting two nodes, each its own process with its own key and store")
        alice = stack.enter_context(_node(folder / "alice", "alice", teller))
        bob = stack.enter_context(_node(folder / "bob", "bob", answerer))
        _introduce(alice, bob)
        for status in (alice.status(), bob.status()):
            say(f"  {status.name}: {status.model} on {status.grpc}, key {status.node_id[:13]}")
        memory = _read(alice, say)
        report = _hand_over(alice, memory, say)
        replies = _ask_all(bob, report.memory)
        ttft = _time_to_first_token(bob, report.memory)
        _show(replies, report, ttft, say)
        crossed = _cross_all(alice, memory, folder, say)
        _show_crossed(crossed, say)
        if as_json:
            nodes = [_brief(alice.status()), _brief(bob.status())]
            document: dict[str, Any] = {"nodes": nodes, "send": asdict(report)}
            document |= {"questions": [asdict(reply) for reply in replies], "ttft": ttft}
            print_json({**document, "crossed": [asdict(crossing) for crossing in crossed]})


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="kvnet-demo-", ignore_cleanup_errors=True)
    except OSError as exc:
        raise OperatorError(f"no folder takes temporary files ({exc.strerror}); set TMPDIR to one") from exc


@contextmanager
def _node(folder: Path, name: str, model: str) -> Iterator[Node]:
    home = Home(folder)
    spawn.start(home, {"name": name, "model": model, "listen": "127.0.0.1:0", "mdns": "0"})
    try:
        with Node(home=folder) as node:
            yield node
    finally:
        spawn.stop(home)


def _introduce(alice: Node, other: Node) -> None:
    a, b = alice.status(), other.status()
    alice.add_peer(b.grpc, node_id=b.node_id, name=b.name)
    other.add_peer(a.grpc, node_id=a.node_id, name=a.name)


def _read(alice: Node, say: Callable[[str], None]) -> MemoryInfo:
    say(f"\nalice reads {len(TEXT)} characters:\n  {TEXT}")
    memory = alice.remember(TEXT, name="demo", keep_text=True)
    say(f"\nher cache: {memory.tokens} tokens, {memory.layers} layers, {nbytes_text(memory.nbytes)}")
    return memory


def _hand_over(alice: Node, memory: MemoryInfo, say: Callable[[str], None]) -> SendReport:
    say(f"  {memory.id}\nshe sends it to bob, layer by layer, each chunk signed:")
    for step in alice.send_stream(memory, "bob", note="from the demo"):
        if isinstance(step, SendReport):
            return step
        say(
            f"  layer {step.layer_idx} durable at bob, {step.chunks_done}/{step.chunks_total} chunks, "
            f"{nbytes_text(step.wire_bytes)}"
        )
    raise AssertionError("the transfer ended without a report")


def _cross_all(alice: Node, first: MemoryInfo, folder: Path, say: Callable[[str], None]) -> list[Crossing]:
    say(f"\nfor other models alice reads everyday words:\n  {CROSSED_TEXT}")
    memory = alice.remember(CROSSED_TEXT, name="everyday", keep_text=True)
    teller = alice.status().model
    return [
        _cross(alice, memory, first, folder / name, model, say) for name, model in CROSSED if model != teller
    ]


def _cross(
    alice: Node,
    memory: MemoryInfo,
    first: MemoryInfo,
    folder: Path,
    model: str,
    say: Callable[[str], None],
) -> Crossing:
    """Send memories to a node of another model, started for this: one to be mapped, one with its text."""
    say(f"\nstarting {folder.name}, a node of {model}, which shares no weights with {alice.status().model}")
    with _node(folder, folder.name, model) as node:
        _introduce(alice, node)
        try:
            report = alice.send(memory, folder.name)
        except IncompatibleModel:
            say(f"  no map leads from {alice.status().model} to {model}; the text goes along")
            report = alice.send(memory, folder.name, with_text=True)
        say(f"  sent as {report.codec}: {report.wire_bytes} bytes on the wire, tier {report.tier}")
        replies = _ask_all(node, report.memory, CROSSED_QUESTIONS)
        say("  the first text has words that no map was fitted on, so it goes along (send --with-text)")
        sent = alice.send(first, folder.name, with_text=True)
        (fallback,) = _ask_all(node, sent.memory, QUESTIONS[:1])
    used = replies[0].kv
    return Crossing(model, used.tier, used.map, replies, fallback)


def _ask_all(bob: Node, memory: str, questions: Sequence[tuple[str, str]] = QUESTIONS) -> list[Reply]:
    replies = []
    for question, expected in questions:
        told = bob.ask(question, memory, max_tokens=MAX_TOKENS)
        untold = bob.ask(question, max_tokens=MAX_TOKENS)
        replies.append(Reply(question, expected, _clean(told.text), _clean(untold.text), told.kv))
    return replies


def _time_to_first_token(bob: Node, memory: str) -> dict[str, float]:
    question = QUESTIONS[0][0]
    from_memory = sorted(bob.ask(question, memory).kv.ttft_s for _ in range(RUNS_FOR_TTFT))
    from_text = sorted(bob.ask(question, context=TEXT).kv.ttft_s for _ in range(RUNS_FOR_TTFT))
    return {"memory_s": from_memory[RUNS_FOR_TTFT // 2], "text_s": from_text[RUNS_FOR_TTFT // 2]}


def _show(
    replies: list[Reply], report: SendReport, ttft: dict[str, float], say: Callable[[str], None]
) -> None:
    say(
        f"sent as {report.codec}: {report.chunks} chunks, {report.raw_bytes} bytes raw, "
        f"{report.wire_bytes} on the wire, "
        f"{seconds_text(report.seconds)}, tier {report.tier}\n\nbob never saw the text. He answers:\n"
    )
    columns = ("question", "expected", "with the memory", "without it", "reused", "computed")
    rows = [
        (
            *(r.question, r.expected, _short(r.with_memory), _short(r.without_memory)),
            *(r.kv.reused_tokens, r.kv.recomputed_tokens),
        )
        for r in replies
    ]
    for line in table_lines(columns, rows):
        say(line)
    right = sum(r.with_memory == r.expected for r in replies)
    guessed = sum(r.without_memory == r.expected for r in replies)
    say(
        f"\n{right} of {len(replies)} right with the memory, {guessed} without it. First token after "
        f"{seconds_text(ttft['memory_s'])} with the memory, {seconds_text(ttft['text_s'])} reading the text."
    )


def _show_crossed(crossed: list[Crossing], say: Callable[[str], None]) -> None:
    columns = ("model", "question", "expected", "with the memory", "without it", "tier", "map")
    rows = [
        (
            *(crossing.model, reply.question, reply.expected),
            *(_short(reply.with_memory), _short(reply.without_memory)),
            *(reply.kv.tier, reply.kv.map[:SHOWN_ID_CHARS] or "-"),
        )
        for crossing in crossed
        for reply in (*crossing.questions, crossing.fallback)
    ]
    say("")
    for line in table_lines(columns, rows):
        say(line)
    say("")
    for crossing in crossed:
        right = sum(reply.with_memory == reply.expected for reply in crossing.questions)
        guessed = sum(reply.without_memory == reply.expected for reply in crossing.questions)
        how = "through a map" if crossing.map else "having read the text, as no map was used"
        asked = len(crossing.questions)
        say(f"{crossing.model}: {right} of {asked} right {how}, {guessed} without the memory.")


def _clean(text: str) -> str:
    return text.strip().removesuffix(".").strip()


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARS else line[: SHOWN_CHARS - 1] + "…"


def _brief(status: NodeStatus) -> dict[str, Any]:
    return {"name": status.name, "node_id": status.node_id, "model": status.model, "grpc": status.grpc}
