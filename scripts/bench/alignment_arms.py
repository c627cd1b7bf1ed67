"""What packaged maps recall: all arms of all pairs, the identity tier, where it breaks, two senders."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import harness
from alignment_rows import Row, absent_row, judged_arm, result_of, row_of
from alignment_setup import FACT_COUNTS, QUESTIONS_PER_LESSON, Bridge, Pair, Trial, Workshop

from kvnet.align.arms import EVERY_ARM, Arm, measure_arms
from kvnet.align.corpus import FAMILIAR, Lesson, Question
from kvnet.align.map import AlignmentMap
from kvnet.align.port import Port
from kvnet.align.reading import LocalReader
from kvnet.codec.presets import Preset
from kvnet.model.coordinates import memory_of_coordinates
from kvnet.model.host import ModelHost
from kvnet.model.loader import Quantization
from kvnet.model.quality import count_wire_nbytes
from kvnet.model.reference.world import HELDOUT_FAMILY, Style, ask, sample_facts, state
from kvnet.model.slots import Slots, join
from kvnet.types import Coding, Compression, Scheme, sha256_hex

QUANTIZATIONS: Final[tuple[Quantization, ...]] = ("nf4", "int8")
PORT_BITS: Final = {Arm.PORT8: 8, Arm.PORT4: 4}
_ON_THE_WIRE: Final = Preset("port", Coding(Scheme.PORT), Compression.ZSTD)
_SOME_PORT: Final = sha256_hex(b"a port's file")  # named in a header, which no chunk's size depends on

BREAKS: Final[dict[str, tuple[Style, tuple[int, ...]]]] = {
    **{f"{count} facts": (FAMILIAR, (count,)) for count in (4, 8, 12, 16, 24, 32, 40)},
    "words never trained on": (replace(FAMILIAR, split="heldout"), FACT_COUNTS),
    "any kind of value": (replace(FAMILIAR, plain_words=False, value_weights=(0.0, 1.0)), FACT_COUNTS),
    "made-up names": (replace(FAMILIAR, name_weights=(0.0, 1.0, 0.0)), FACT_COUNTS),
    "things for names": (replace(FAMILIAR, name_weights=(0.0, 0.0, 1.0)), FACT_COUNTS),
    "foreign words": (replace(FAMILIAR, split="foreign"), FACT_COUNTS),
    "hearsay, a phrasing never seen": (replace(FAMILIAR, families=(HELDOUT_FAMILY,)), FACT_COUNTS),
    "sentences without facts": (replace(FAMILIAR, filler_share=0.5), FACT_COUNTS),
    "one fact a line": (replace(FAMILIAR, separator="\n"), FACT_COUNTS),
}


def identity_rows(shop: Workshop, names: Sequence[str]) -> Iterator[Row]:
    """One model in two precisions: the other's memory as it is, behind this one's own first token."""
    for name in names:
        plain = shop.host(name)
        for quantization in QUANTIZATIONS:
            harness.say(f"identity: {name}, {quantization}")
            coarse = shop.host(name, quantization)
            for source, receiver in ((coarse, plain), (plain, coarse)):
                trial = shop.trial(source, receiver)
                slots = [reading.slots for reading in trial.sitting.source]
                result = result_of(trial, "identity", trial.exam.sit(slots.__getitem__))
                met = result.gap_recovered.value >= 0.99 and result.kl <= 0.02
                pair = (_named(source), _named(receiver))
                yield row_of("identity", pair, result, goal="gap>=0.99 kl<=0.02", met=met)


def arm_rows(shop: Workshop, pairs: Sequence[Pair]) -> Iterator[Row]:
    """Text, memories through the map, and all controls, for each pair; bytes of a fact beside them."""
    for pair in pairs:
        bridge = shop.bridge(pair)
        harness.say(f"arms: {pair[0]} to {pair[1]}")
        trial = shop.trial(bridge.source, bridge.receiver, closing=bridge.closing)
        sitting, port = trial.sitting, bridge.port
        found = {r.arm: r for r in measure_arms(sitting, bridge.alignment, port, seed=shop.seed)}
        fp16_nbytes, text_nbytes = plain_nbytes(bridge.source, trial)
        for arm in EVERY_ARM:
            if arm not in found:
                yield absent_row("arms", pair, arm)
                continue
            wire_nbytes: float | None = None
            if port is not None and arm in PORT_BITS:
                wire_nbytes = port_nbytes(bridge.source, bridge.alignment, port, trial, PORT_BITS[arm])
            elif arm is Arm.TEXT:
                wire_nbytes = text_nbytes
            ratio = fp16_nbytes / wire_nbytes if wire_nbytes else 0.0
            row = judged_arm(pair, found[arm], found[Arm.MAPPED], ratio)
            if wire_nbytes:
                row |= {"bytes": wire_nbytes, "fp16/wire": ratio, "wire/text": wire_nbytes / text_nbytes}
            yield row | {"packaged": bridge.is_packaged}


def break_rows(shop: Workshop, pairs: Sequence[Pair]) -> Iterator[Row]:
    """Facts that calibration never had, in number, words and phrasing: 8 bits of coordinates on the wire."""
    for pair in pairs:
        bridge = shop.bridge(pair)
        bits = 8 if bridge.port is not None else None
        for name, (style, fact_counts) in BREAKS.items():
            harness.say(f"breaks: {pair[0]} to {pair[1]}, {name}")
            trial = shop.trial(
                bridge.source, bridge.receiver, closing=bridge.closing, style=style, fact_counts=fact_counts
            )
            slots = trial.sitting.mapped(bridge.alignment, bridge.port, bits=bits)
            result = result_of(trial, name, trial.exam.sit(slots.__getitem__))
            row = row_of("breaks", pair, result)
            row |= {"recall_text": trial.exam.text.recall, "recall_none": trial.none.recall}
            yield row | {"refused": _refused_share(trial, bridge)}


def _refused_share(trial: Trial, bridge: Bridge) -> float:
    """Texts that hold what the map was not fitted on, or in which it finds nothing to send."""
    refused = []
    for reading in trial.sitting.source:
        encoded, at = bridge.alignment.encode(reading.slots)
        refused.append(not len(at) or bridge.alignment.strangeness(encoded) > 1)
    return sum(refused) / len(refused)


def two_sender_rows(shop: Workshop, senders: tuple[str, str], receiver: str) -> Iterator[Row]:
    """Memories of two texts by two senders, joined, against the receiver reading both texts."""
    harness.say(f"two senders: {senders[0]} and {senders[1]} to {receiver}")
    bridges = [shop.bridge((name, receiver)) for name in senders]
    whole, halves = _split_lessons(shop)
    host = bridges[0].receiver
    trial = shop.trial_of(host, host, lambda: whole, key="two senders")
    mapped = [_read_half(bridge, texts) for bridge, texts in zip(bridges, halves, strict=True)]
    own = [[reading.slots for reading in LocalReader(host).read(texts)] for texts in halves]
    count = len(whole)
    arms: dict[str, list[Slots]] = {
        "two memories": [join(parts) for parts in zip(*mapped, strict=True)],
        "two memories, the other first": [join(parts) for parts in zip(*mapped[::-1], strict=True)],
        "two own memories": [join(parts) for parts in zip(*own, strict=True)],
        "two memories of other texts": [
            join([half[(i + 1) % count] for half in mapped]) for i in range(count)
        ],
    }
    pair = ("+".join(senders), receiver)
    yield row_of("two senders", pair, result_of(trial, "text", trial.exam.text))
    for name, slots in arms.items():
        result = result_of(trial, name, trial.exam.sit(slots.__getitem__))
        gap = result.gap_recovered.value
        if name == "two memories":
            yield row_of("two senders", pair, result, goal="gap>=0.9", met=gap >= 0.9)
        elif name == "two memories of other texts":
            yield row_of("two senders", pair, result, goal="gap<=0.05", met=gap <= 0.05)
        else:
            yield row_of("two senders", pair, result)


def plain_nbytes(source: ModelHost, trial: Trial) -> tuple[float, float]:
    """Bytes of a fact: (the source's whole cache in float16, the text)."""
    texts = [lesson.text for lesson in trial.exam.lessons]
    num_tokens = sum(len(source.tokenize_context(text)) for text in texts)
    geometry = source.geometry
    token_nbytes = 2 * geometry.num_layers * 2 * geometry.num_kv_heads * geometry.head_dim
    num_facts = count_facts(trial)
    return num_tokens * token_nbytes / num_facts, sum(len(text.encode()) for text in texts) / num_facts


def port_nbytes(source: ModelHost, alignment: AlignmentMap, port: Port, trial: Trial, bits: int) -> float:
    """Bytes of a fact in coordinates: which slots are sent and their codes, as zstd leaves them."""
    closing, num_sinks = alignment.manifest.closing, alignment.manifest.num_sinks
    total = 0
    for lesson, reading in zip(trial.exam.lessons, trial.sitting.source, strict=True):
        encoded, at = alignment.encode(reading.slots)
        memory = memory_of_coordinates(
            source.capture(lesson.text + closing).header,
            port.quantize(encoded, bits),
            at + num_sinks,
            bits=bits,
            port_digest=_SOME_PORT,
            port_nbytes=1,
        )
        total += count_wire_nbytes(memory, _ON_THE_WIRE)
    return total / count_facts(trial)


def count_facts(trial: Trial) -> int:
    """Facts in the texts of a trial: each is a sentence, and nothing else ends in a full stop."""
    return sum(lesson.text.count(".") for lesson in trial.exam.lessons)


def _split_lessons(shop: Workshop) -> tuple[list[Lesson], tuple[list[str], list[str]]]:
    """Lessons on facts of which each sender reads one half; no fact is in both, and half of each is asked."""
    rng = random.Random(f"two senders {shop.seed}")
    whole, first, second = [], [], []
    for _ in range(-(-shop.size.num_questions // QUESTIONS_PER_LESSON)):
        facts = sample_facts(rng, rng.choice(FACT_COUNTS), FAMILIAR)
        middle = len(facts) // 2
        halves = (facts[:middle], facts[middle:])
        texts = [" ".join(state(fact, rng, FAMILIAR.families) for fact in half) for half in halves]
        asked = [fact for half in halves for fact in rng.sample(half, QUESTIONS_PER_LESSON // 2)]
        drawn = [ask(fact, "question" if i % 2 else "cloze", rng) for i, fact in enumerate(asked)]
        questions = tuple(Question(one.prompt, one.expected) for one in drawn)
        whole.append(Lesson(" ".join(texts), questions))
        first.append(texts[0])
        second.append(texts[1])
    return whole, (first, second)


def _read_half(bridge: Bridge, texts: Sequence[str]) -> list[Slots]:
    """What one sender's memories of its texts are in the receiver, 8 bits of coordinates on the wire."""
    readings = LocalReader(bridge.source).read(text + bridge.closing for text in texts)
    rows_of = bridge.receiver.rows_of
    return [
        bridge.alignment.apply(reading.slots, bridge.port, rows_of=rows_of, bits=8) for reading in readings
    ]


def _named(host: ModelHost) -> str:
    quantization = host.fingerprint.quantization
    return host.name if quantization == "none" else f"{host.name} {quantization}"
