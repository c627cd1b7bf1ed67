"""What difference in size costs: the packaged maps of all pairs, ordered by how much larger the source is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import harness
from alignment_rows import OTHER_TOKENIZER, Row, result_of, row_of
from alignment_setup import Pair, Workshop

from kvnet.alignment import row_width
from kvnet.model.host import ModelHost
from kvnet.model.reference.catalog import reference_path


def distance_rows(shop: Workshop, pairs: Sequence[Pair]) -> Iterator[Row]:
    """Gap recovered with 8 bits of coordinates on the wire, beside the source's size over the receiver's."""
    for pair in sorted(pairs, key=lambda pair: (_ratios(shop, pair)["parameters"], pair)):
        harness.say(f"distance in size: {pair[0]} to {pair[1]}")
        bridge = shop.bridge(pair)
        trial = shop.trial(bridge.source, bridge.receiver, closing=bridge.closing)
        bits = 8 if bridge.port is not None else None
        slots = trial.sitting.mapped(bridge.alignment, bridge.port, bits=bits)
        result = result_of(trial, "mapped", trial.exam.sit(slots.__getitem__))
        tokenizer = "other" if OTHER_TOKENIZER in pair else "same"
        yield row_of("distance in size", pair, result) | _ratios(shop, pair) | {"tokenizer": tokenizer}


def _ratios(shop: Workshop, pair: Pair) -> dict[str, float]:
    """Sizes of the source over those of the receiver."""
    source, receiver = (_sizes(shop.host(name)) for name in pair)
    return {name: source[name] / receiver[name] for name in source}


def _sizes(host: ModelHost) -> dict[str, int]:
    """Parameters, as the model's card counts them; widths of its hidden state and of a slot's row; layers."""
    folder = reference_path(host.name)
    if folder is None:
        raise AssertionError(f"{host.name} is no reference model")
    card, config = (json.loads((folder / name).read_text()) for name in ("card.json", "config.json"))
    return {
        "parameters": card["num_parameters"],
        "width": config["hidden_size"],
        "layers": host.geometry.num_layers,
        "row": row_width(host.geometry),
    }
