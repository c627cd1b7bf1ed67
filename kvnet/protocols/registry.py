"""The protocols by name."""

from __future__ import annotations

from typing import Final

from kvnet.errors import RecipeInvalid
from kvnet.protocols import (
    codec,
    compose,
    cross_model,
    drift,
    fraction,
    latency,
    layers,
    positions,
    prune,
    same_model,
    structure,
)
from kvnet.protocols.protocol import Protocol

_MODULES: Final = (
    structure, same_model, positions, fraction, layers, codec, prune, cross_model, drift, compose, latency
)  # fmt: skip
PROTOCOLS: Final[dict[str, Protocol]] = {module.PROTOCOL.name: module.PROTOCOL for module in _MODULES}


def find_protocol(name: str, version: int) -> Protocol:
    """Raises RecipeInvalid for a protocol, or a version of one, that is not here."""
    protocol = PROTOCOLS.get(name)
    if protocol is None:
        raise RecipeInvalid(f"no protocol {name!r:.60}; there are {', '.join(PROTOCOLS)}")
    if protocol.version != version:
        raise RecipeInvalid(
            f"the recipe is for version {version} of {name}, this kvnet measures version {protocol.version}; "
            "change the recipe, or use the kvnet that it was written for"
        )
    return protocol
