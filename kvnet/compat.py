"""Whether and how a memory fits a model, decided from the two fingerprints and geometries alone."""

from __future__ import annotations

from dataclasses import fields

from kvnet.errors import IncompatibleModel
from kvnet.types import Fingerprint, Geometry, Tier

Differences = dict[str, list[str]]


def differences(source: tuple[Fingerprint, Geometry], receiver: tuple[Fingerprint, Geometry]) -> Differences:
    """Field name -> [source's value, receiver's value], for every field that is not equal."""
    found: Differences = {}
    sides = ((source[0], receiver[0]), (source[1], receiver[1]))
    for theirs, ours in sides:
        for spec in fields(theirs):
            got, wanted = getattr(theirs, spec.name), getattr(ours, spec.name)
            if spec.name != "model" and got != wanted:
                found[spec.name] = [_show(got), _show(wanted)]
    return found


def decide_tier(source: tuple[Fingerprint, Geometry], receiver: tuple[Fingerprint, Geometry]) -> Tier:
    """EXACT for the same fingerprint, IDENTITY for other weights or precision, else REFUSED.

    Source: DESIGN, Words. Mapped tiers need an alignment, which is not part of this version.
    """
    found = set(differences(source, receiver))
    if not found:
        return Tier.EXACT
    if found <= {"weights_digest", "quantization", "dtype"}:
        return Tier.IDENTITY
    return Tier.REFUSED


def require_tier(source: tuple[Fingerprint, Geometry], receiver: tuple[Fingerprint, Geometry]) -> Tier:
    """`decide_tier`, with REFUSED raised as IncompatibleModel naming the fields that differ."""
    tier = decide_tier(source, receiver)
    if tier is Tier.REFUSED:
        found = differences(source, receiver)
        listed = ", ".join(f"{name} {got} (needs {wanted})" for name, (got, wanted) in found.items())
        raise IncompatibleModel(
            f"memory of {source[0].model} does not fit {receiver[0].model}: {listed}; "
            "host the same model on both nodes",
            details=found,
        )
    return tier


def _show(value: object) -> str:
    text = str(value)
    return text[:19] + "…" if text.startswith("sha256:") else text
