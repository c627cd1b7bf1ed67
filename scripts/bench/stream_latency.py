"""Time to first token by each way, of two daemons on a link; what each row is of, and what is asked of it.

cold   bob asks behind a text that alice reads and sends meanwhile
warm   bob asks behind a memory that alice has, in int8
text   bob reads the text himself
held   bob asks behind a memory that he has: the question's pass alone
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import harness
from stream_link import Hosts, Link
from stream_nodes import Row, load
from stream_trace import Stamp, by_layer
from tokenizers import Tokenizer

from kvnet.api import Answer
from kvnet.client import Node
from kvnet.model.reference.catalog import reference_path

CODEC = "int8"
QUESTION_TOKENS = 8
LENGTHS, QUICK_LENGTHS = (16, 64, 256, 1000, 2000), (16, 64)
TIMES = {1000: 3}  # how often a text is read at a length; once at others
WARM_TIMES, QUICK_WARM_TIMES = 3, 1
COLD_TOKENS, COLD_TARGET = 1000, 1.10
WARM_TARGETS = {1000: 25.0, 2000: 35.0}
INJECTED_TARGET = 1.5
DECODED, QUICK_DECODED, DECODE_TARGET = 33, 5, 0.03  # tokens of a reply whose speed is measured
ESTIMATE_TARGET = 0.25


@dataclass(slots=True)
class Measured:
    """What was measured at one length: seconds, a list for each way."""

    tokens: int
    wire_nbytes: int = 0
    wire_s: float = 0.0  # at the link's rate
    cold_s: list[float] = field(default_factory=list)
    warm_s: list[float] = field(default_factory=list)
    text_s: list[float] = field(default_factory=list)
    held_s: list[float] = field(default_factory=list)
    prefill_s: list[float] = field(default_factory=list)  # alice's, with nothing beside it
    landed_s: list[float] = field(default_factory=list)  # from the question to the last layer, ready to use
    streamed_s: list[float] = field(default_factory=list)  # the same from the first chunk on
    native_token_s: list[float] = field(default_factory=list)
    injected_token_s: list[float] = field(default_factory=list)
    waterfall: list[Stamp] = field(default_factory=list)  # of the last cold one
    asked_at: float = 0.0  # when that was asked for


def measure(hosts: Hosts, link: Link, *, quick: bool, rng: random.Random) -> list[Measured]:
    """Every length, shortest first."""
    # Both models and the connections between them are used once before anything counts.
    _cold(hosts, Measured(8), rng)
    found = []
    lengths = QUICK_LENGTHS if quick else LENGTHS
    for tokens in lengths:
        one = Measured(tokens)
        is_decoded = tokens == (lengths[-1] if quick else COLD_TOKENS)
        num_new = (QUICK_DECODED if quick else DECODED) if is_decoded else 1
        for turn in range(1 if quick else TIMES.get(tokens, 1)):
            harness.say(f"{tokens} tokens, reading {turn + 1}")
            _cold(hosts, one, rng)
            _warm(hosts, link, one, rng, times=QUICK_WARM_TIMES if quick else WARM_TIMES, num_new=num_new)
            _native(hosts, one, rng, num_new)
        found.append(one)
    return found


def rows_of(found: Sequence[Measured]) -> list[Row]:
    """The rows of the latency table; a target only where the length is the one that it was set for."""
    rows = [row for one in found for row in (_cold_row(one), _warm_row(one), _injected_row(one))]
    return [*rows, *(_decode_row(one) for one in found if one.native_token_s)]


def _cold_row(one: Measured) -> Row:
    bound_s = max(_middle(one.prefill_s), one.wire_s)
    value = _middle(one.cold_s) / bound_s
    judged = one.tokens == COLD_TOKENS
    return Row(
        f"cold, {one.tokens} tokens: first token against the longer of prefill and wire",
        value,
        f"<= {COLD_TARGET:.2f}" if judged else "",
        value <= COLD_TARGET if judged else None,
        {
            "seconds": _middle(one.cold_s),
            "prefill_s": _middle(one.prefill_s),
            "wire_s": one.wire_s,
            "load": load(),
        },
    )


def _warm_row(one: Measured) -> Row:
    value = _middle(one.text_s) / _middle(one.warm_s)
    target = WARM_TARGETS.get(one.tokens)
    return Row(
        f"warm, {one.tokens} tokens: times faster to the first token than reading",
        value,
        "" if target is None else f">= {target:.0f}",
        None if target is None else value >= target,
        {"seconds": _middle(one.warm_s), "text_s": _middle(one.text_s), "held_s": _middle(one.held_s)},
    )


def _injected_row(one: Measured) -> Row:
    value = _middle(one.landed_s) / one.wire_s
    judged = one.tokens in WARM_TARGETS
    return Row(
        f"warm, {one.tokens} tokens: last layer ready against its wire time",
        value,
        f"<= {INJECTED_TARGET}" if judged else "",
        value <= INJECTED_TARGET if judged else None,
        {
            "seconds": _middle(one.landed_s),
            "wire_s": one.wire_s,
            "wire_nbytes": one.wire_nbytes,
            "from_first_chunk": _middle(one.streamed_s) / one.wire_s,
        },
    )


def _decode_row(one: Measured) -> Row:
    native_s, injected_s = _middle(one.native_token_s), _middle(one.injected_token_s)
    value = injected_s / native_s - 1
    judged = one.tokens == COLD_TOKENS
    return Row(
        f"seconds a generated token behind an injected memory, against native, {one.tokens} tokens",
        value,
        f"<= {DECODE_TARGET}" if judged else "",
        value <= DECODE_TARGET if judged else None,
        {"seconds": injected_s, "native_s": native_s},
    )


def _middle(values: Sequence[float]) -> float:
    return statistics.median(values)


def _cold(hosts: Hosts, one: Measured, rng: random.Random) -> None:
    """Bob asks, alice reads and sends; then alice reads another text with nothing beside it."""
    hosts.stamps()
    text, question = text_of(one.tokens, rng), words(QUESTION_TOKENS, rng)
    one.asked_at = time.perf_counter()
    first_s, answer = _first_token(hosts.bob, question, context=text, peer="alice", codec=CODEC)
    _require(answer, one.tokens, QUESTION_TOKENS)
    one.cold_s.append(first_s)
    one.waterfall = hosts.stamps()
    hosts.alice.forget(hosts.alice.remember(text_of(one.tokens, rng), compression="none"))
    past = hosts.alice.events(follow=False, past=True)
    readings = [event["duration_s"] for event in past if event["event"] == "prefill.completed"]
    one.prefill_s.append(readings[-1])


def _warm(hosts: Hosts, link: Link, one: Measured, rng: random.Random, *, times: int, num_new: int) -> None:
    """Alice has it; bob takes it and answers, forgets it, and takes it again."""
    memory = hosts.alice.remember(text_of(one.tokens, rng), codec=CODEC)
    for _ in range(times):
        hosts.stamps()
        question, began = words(QUESTION_TOKENS, rng), time.perf_counter()
        first_s, answer = _first_token(hosts.bob, question, memory=memory.id, peer="alice")
        _require(answer, one.tokens, QUESTION_TOKENS)
        one.warm_s.append(first_s)
        stamps = hosts.stamps()
        landed = max(ended for _, ended in by_layer(stamps, "decode").values())
        one.landed_s.append(landed - began)
        one.streamed_s.append(landed - min(began for began, _ in by_layer(stamps, "wire").values()))
        held = hosts.bob.ask(question, memory.id, max_tokens=num_new)
        one.held_s.append(held.kv.ttft_s)
        if num_new > 1:
            one.injected_token_s.append(_after_first_s(held))
        hosts.bob.forget(memory.id)
    report = hosts.alice.send(memory, "bob", codec=CODEC)
    one.wire_nbytes, one.wire_s = report.wire_bytes, link.wire_s(report.wire_bytes)


def _native(hosts: Hosts, one: Measured, rng: random.Random, num_new: int) -> None:
    text, question = text_of(one.tokens, rng), words(QUESTION_TOKENS, rng)
    answer = hosts.bob.ask(question, context=text, max_tokens=num_new)
    one.text_s.append(answer.kv.ttft_s)
    if num_new > 1:
        one.native_token_s.append(_after_first_s(answer))


def _first_token(node: Node, question: str, **options: Any) -> tuple[float, Answer]:
    """Seconds until the caller has the first token, and the answer: a reply of one token shows it at once."""
    first_s, began = 0.0, time.perf_counter()
    for step in node.ask_stream(question, max_tokens=1, **options):
        first_s = first_s or time.perf_counter() - began
        if isinstance(step, Answer):
            return first_s, step
    raise AssertionError("the reply ended without an answer")


def _after_first_s(answer: Answer) -> float:
    """Seconds for each token behind the first."""
    return (answer.seconds - answer.kv.ttft_s) / max(answer.tokens - 1, 1)


def _require(answer: Answer, reused: int, recomputed: int) -> None:
    if (answer.kv.reused_tokens, answer.kv.recomputed_tokens) != (reused, recomputed):
        raise AssertionError(f"not what was to be measured: {answer.kv}")


def estimate_rows(hosts: Hosts, *, quick: bool, rng: random.Random) -> list[Row]:
    """What `estimate` says of a transfer and of sending the text, and what then happens."""
    tokens = 64 if quick else 512
    for count in (tokens // 4, tokens // 2):  # both have done it before: rates are learnt, not known
        hosts.bob.remember(text_of(count, rng))
        hosts.alice.send(hosts.alice.remember(text_of(count, rng), codec=CODEC), "bob", codec=CODEC)
    rows = []
    for mode in ("transfer", "text"):
        memory = hosts.alice.remember(text_of(tokens, rng), codec=CODEC, keep_text=True)
        said = hosts.alice.estimate(memory, "bob", codec=CODEC)
        predicted_s = said.transfer_s if mode == "transfer" else said.text_s
        if predicted_s is None:
            raise AssertionError(f"no estimate for {mode}: {said.why_no_text}")
        took_s = hosts.alice.send(memory, "bob", codec=CODEC, mode=mode).seconds
        value = abs(predicted_s / took_s - 1)
        rows.append(
            Row(
                f"estimate of a {mode}, {tokens} tokens, off by",
                value,
                "" if quick else f"<= {ESTIMATE_TARGET}",
                None if quick else value <= ESTIMATE_TARGET,
                {"seconds": took_s, "predicted_s": predicted_s},
            )
        )
    return rows


def words(count: int, rng: random.Random) -> str:
    """A text of exactly `count` tokens, BOS not counted: digits are one token each."""
    folder = reference_path("ref-a")
    assert folder is not None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # Not a zero first: the model's tokenizer cuts it off the space before it.
    text = str(rng.randrange(1, 10)) + "".join(str(rng.randrange(10)) for _ in range(count - 1))
    while (surplus := len(tokenizer.encode(text, add_special_tokens=False).ids) - count) > 0:
        text = text[:-surplus]
    if surplus:
        raise AssertionError(f"no text of exactly {count} tokens")
    return text


def text_of(tokens: int, rng: random.Random) -> str:
    """A text of so many tokens for a model that puts a BOS before it."""
    return words(tokens - 1, rng)
