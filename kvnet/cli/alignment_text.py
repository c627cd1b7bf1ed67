"""Maps and ports as people read them: a line in a list, or all of one. Calls nobody."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from kvnet.alignment import GateResult
from kvnet.api import AlignmentInfo
from kvnet.cli.output import nbytes_text, table_lines
from kvnet.identity.keys import grouped, short_id

_SHORT_ID_CHARS = 16
_SHORT_DIGEST_CHARS = 19
_LABEL_WIDTH = 9


def age_text(created_at: str, now: datetime) -> str:
    """How long ago a time of the form YYYY-MM-DDThh:mm:ssZ was, for people: 5 min, 3 h, 2 d."""
    minutes = max(0, int((now - datetime.fromisoformat(created_at)).total_seconds())) // 60
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // (24 * 60)} d"


def info_row(info: AlignmentInfo) -> tuple[str, ...]:
    """A line of `align ls`: id, kind, way, gap recovered, admitted, signer, age."""
    if not info.kind:
        return (info.id[:_SHORT_ID_CHARS], "damaged", info.problem, "-", "-", "-", "-")
    return (
        info.id[:_SHORT_ID_CHARS],
        info.kind,
        way_of(info),
        f"{info.gate.gap_recovered.value:.2f}" if info.gate else "-",
        ("yes" if info.gate.admitted else "no") if info.gate else "-",
        "kvnet" if info.packaged else short_id(info.signed_by),
        age_text(info.created_at, datetime.now(UTC)),
    )


def way_of(info: AlignmentInfo) -> str:
    """From which model to which."""
    return f"{info.source or 'any'} -> {info.receiver}"


def info_lines(info: AlignmentInfo) -> Iterator[str]:
    """All that is known of it, for `align show`. Others wrote some of it: print it `printable`."""
    yield info.id
    if not info.kind:
        yield f"damaged: {info.problem}; remove it with `kvnet align rm` and import it again"
        return
    if info.source:
        yield _fact("from", f"{info.source}, {_short(info.source_digest)}")
    yield _fact("to", f"{info.receiver}, {_short(info.receiver_digest)}")
    if info.gate is None:
        yield _fact("rank", f"{info.rank} coordinates a slot")
    else:
        yield from _map_lines(info)
    yield _fact("corpus", f"{_short(info.corpus_digest)}, {_corpus_size(info)}")
    made_by = "comes with kvnet" if info.packaged else f"signed by {grouped(info.signed_by)}"
    yield _fact("made", f"{info.created_at}, {made_by}, {nbytes_text(info.nbytes)}")
    if info.problem:
        yield _fact("problem", info.problem)
    if info.gate is not None:
        yield from _gate_lines(info.gate)


def _map_lines(info: AlignmentInfo) -> Iterator[str]:
    ends_in = f"{info.port}, {info.rank} coordinates a slot" if info.port else "none, it ends in slots"
    yield _fact("port", ends_in)
    yield _fact("method", f"{info.method}, lambda {info.relative_lambda:g}, slots paired by {info.pairing}")
    closing = f", after the closing text {info.closing!r}" if info.closing else ""
    yield _fact("window", f"{_slots(info.window)}{closing}")
    if info.far_window:
        yield _fact("further", f"{_slots(info.far_window)}, of layers {_numbers(info.far_layers)} alone")
    yield _fact("layers", f"{info.layer_strategy}: {_numbers(info.source_layers) or 'all'}")


def _gate_lines(gate: GateResult) -> Iterator[str]:
    yield _fact("gate", f"{'admitted' if gate.admitted else 'not admitted'}: {gate.reason}")
    gap = gate.gap_recovered
    rows = (
        ("recall, text read", f"{gate.recall_text:.3f}"),
        ("recall, mapped memory", f"{gate.recall_mapped:.3f}"),
        ("recall, no memory", f"{gate.recall_none:.3f}"),
        ("gap recovered", f"{gap.value:.3f} ({gap.low:.3f} to {gap.high:.3f})"),
        ("gap of other texts' memories", f"{gate.gap_shuffled:.3f}"),
        ("KL to text read, nats", f"{gate.kl:.4f}"),
        ("KL of other texts' memories", f"{gate.kl_shuffled:.4f}"),
        ("attention cosine", f"{gate.attention_cosine:.4f}"),
        ("questions, texts", f"{gate.num_questions}, {gate.num_texts}"),
    )
    for line in table_lines(("measured on held-out facts", ""), rows):
        yield f"  {line}"
    for one in gate.uses:
        verdict = "admitted" if one.admitted else "not admitted"
        yield _fact(one.use, f"{verdict}: gap recovered {one.gap_recovered.value:.3f}, KL {one.kl:.4f}")


def _corpus_size(info: AlignmentInfo) -> str:
    return (
        f"{info.num_contexts} texts, {info.num_rows} rows" if info.num_contexts else f"{info.num_rows} rows"
    )


def _slots(window: tuple[int, ...]) -> str:
    low, high = window
    return f"slots {low:+d} to {high:+d}"


def _numbers(values: tuple[int, ...]) -> str:
    return " ".join(map(str, values))


def _short(digest: str) -> str:
    return f"{digest[:_SHORT_DIGEST_CHARS]}…"


def _fact(label: str, value: str) -> str:
    return f"{label:{_LABEL_WIDTH}}{value}"
