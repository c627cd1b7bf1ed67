"""Whether and how a memory fits a model: pure decisions from fingerprints, geometries and what is known here.

Knows that a map or a text may exist, and neither of them itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from enum import StrEnum
from typing import Final

from kvnet.errors import AlignmentRefused, IncompatibleModel
from kvnet.rotary import same_rope
from kvnet.types import DType, Fingerprint, Geometry, Rope, Tier, sha256_hex

Differences = dict[str, list[str]]
Side = tuple[Fingerprint, Geometry]

# What a node that hosts no model says of it (FORMAT.md §3).
_NOTHING: Final = sha256_hex(b"")
NO_MODEL: Final = Fingerprint("none", "none", _NOTHING, _NOTHING, _NOTHING, "none")
NO_GEOMETRY: Final = Geometry(1, 1, 2, DType.FLOAT32, Rope("default", 10000.0))

_SAME_FAMILY: Final = frozenset({"weights_digest", "quantization", "dtype"})
_BY_STRENGTH: Final = (Tier.EXACT, Tier.IDENTITY, Tier.MAPPED, Tier.MAPPED_TOKENS, Tier.TEXT)


class Policy(StrEnum):
    """What may be done with a memory that is not the model's own."""

    ALIGN = "align"  # a map, else the attached text, else an error
    TEXT = "text"  # the attached text, else as ALIGN
    ERROR = "error"  # exact and identity alone


class Route(StrEnum):
    """What is done with a memory."""

    INJECT = "inject"  # its keys and values are used, mapped or as they are
    TEXT = "text"  # the text that was attached to it is read instead
    REFUSE = "refuse"


def differences(source: Side, receiver: Side) -> Differences:
    """Field name -> [source's value, receiver's value], for every field that is not equal."""
    found: Differences = {}
    sides = ((source[0], receiver[0]), (source[1], receiver[1]))
    for theirs, ours in sides:
        for spec in fields(theirs):
            got, wanted = getattr(theirs, spec.name), getattr(ours, spec.name)
            is_same = same_rope(got, wanted) if spec.name == "rope" else got == wanted
            if spec.name != "model" and not is_same:
                found[spec.name] = [_show(got), _show(wanted)]
    return found


def decide_tier(source: Side, receiver: Side, *, has_map: bool = False, in_coordinates: bool = False) -> Tier:
    """How a memory of `source` reaches `receiver`; `has_map`: an admitted map leads from one to the other.

    EXACT for the same fingerprint, IDENTITY for other weights or precision, MAPPED or MAPPED_TOKENS where
    there is a map, else REFUSED. Other weights of one architecture may be a fine-tune or a stranger, which no
    field tells; somebody who fitted a map between them did not find them the same, so the map is used.
    A memory `in_coordinates` of a port is mapped, whatever its model: it holds no keys and values.
    KEPT where the receiver hosts no model, and so uses none.
    Source: DESIGN, Words.
    """
    if receiver[0].digest == NO_MODEL.digest:
        return Tier.KEPT
    found = set(differences(source, receiver))
    if not found and not in_coordinates:
        return Tier.EXACT
    is_family = found <= _SAME_FAMILY and not (has_map and "weights_digest" in found)
    if is_family and not in_coordinates:
        return Tier.IDENTITY
    if not has_map:
        return Tier.REFUSED
    return Tier.MAPPED_TOKENS if "tokenizer_digest" in found else Tier.MAPPED


def decide_route(tier: Tier, *, policy: Policy = Policy.ALIGN, has_text: bool = False) -> Route:
    """What to do with a memory of this tier; `has_text`: a text is attached to it.

    A model's own memory is injected whatever the policy: its text says nothing that it does not.
    """
    if tier is Tier.EXACT:
        return Route.INJECT
    if policy is Policy.TEXT and has_text:
        return Route.TEXT
    if tier is Tier.IDENTITY:
        return Route.INJECT
    if policy is Policy.ERROR:
        return Route.REFUSE
    if tier in (Tier.MAPPED, Tier.MAPPED_TOKENS):
        return Route.INJECT
    return Route.TEXT if has_text else Route.REFUSE


def reach(tier: Tier, *, policy: Policy = Policy.ALIGN, has_text: bool = False) -> Tier:
    """The tier that an answer would report: `tier`, or TEXT or REFUSED where that is the route."""
    if tier is Tier.KEPT:
        return tier
    route = decide_route(tier, policy=policy, has_text=has_text)
    return {Route.INJECT: tier, Route.TEXT: Tier.TEXT, Route.REFUSE: Tier.REFUSED}[route]


def require_tier(
    source: Side,
    receiver: Side,
    *,
    has_map: bool = False,
    in_coordinates: bool = False,
    has_text: bool = False,
) -> Tier:
    """What `reach` says of a memory that may use a map or a text; REFUSED is raised as IncompatibleModel."""
    tier = decide_tier(source, receiver, has_map=has_map, in_coordinates=in_coordinates)
    if tier is Tier.KEPT:
        return tier
    if in_coordinates and tier is Tier.REFUSED and not has_text:
        raise IncompatibleModel(
            f"memory of {source[0].model} in coordinates: no admitted map here ends in their port for "
            f"{receiver[0].model}; import the sender's map and its port, or send it with --codec exact"
        )
    if require_route(source, receiver, tier, has_text=has_text) is Route.TEXT:
        return Tier.TEXT
    return tier


def require_route(
    source: Side, receiver: Side, tier: Tier, *, policy: Policy = Policy.ALIGN, has_text: bool = False
) -> Route:
    """`decide_route`, with REFUSE raised, field by field and with what would change it.

    Raises IncompatibleModel where nothing leads from one model to the other, and AlignmentRefused where only
    the policy forbids it.
    """
    route = decide_route(tier, policy=policy, has_text=has_text)
    if route is not Route.REFUSE:
        return route
    found = differences(source, receiver)
    listed = ", ".join(f"{name} {got} (needs {wanted})" for name, (got, wanted) in found.items())
    misfit = f"memory of {source[0].model} does not fit {receiver[0].model}: {listed}"
    if policy is Policy.ERROR:
        raise AlignmentRefused(f"{misfit}; {advise(Tier.REFUSED, policy=policy)}", details=found)
    raise IncompatibleModel(f"{misfit}; {advise(Tier.REFUSED)}", details=found)


def advise(tier: Tier, *, policy: Policy = Policy.ALIGN, peer: str = "PEER") -> str:
    """What would change a tier that `reach` gave; `peer` is where the memory came from."""
    fit = f"fit a map with `kvnet align fit --peer {peer}`"
    if tier is Tier.EXACT:
        return "it is this model's own memory, and nothing better can be had"
    if tier is Tier.IDENTITY:
        return f"host the same weights and precision for an exact memory; if it is not understood, {fit}"
    if tier in (Tier.MAPPED, Tier.MAPPED_TOKENS):
        return "host the memory's own model to use it without a map"
    if tier is Tier.KEPT:
        return "the node hosts no model; ask on one that does"
    if tier is Tier.TEXT:
        return f"{fit}, so that it need not be read again"
    if policy is Policy.ERROR:
        return "the policy `error` takes neither maps nor texts; ask with --align align"
    return f"{fit}, ask the sender for the text (`kvnet send --with-text`), or host one model on both nodes"


def weakest(tiers: Iterable[Tier]) -> Tier:
    """The tier of an answer that several memories went into: NONE for none."""
    return max(tiers, key=_BY_STRENGTH.index, default=Tier.NONE)


def _show(value: object) -> str:
    text = str(value)
    return text[:19] + "…" if text.startswith("sha256:") else text
