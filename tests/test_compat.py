"""Which memory fits which model: decided by fields, and refused by naming them."""

from __future__ import annotations

from typing import Any

import pytest

from kvnet.compat import decide_tier, differences, require_tier
from kvnet.errors import IncompatibleModel
from kvnet.types import DType, Fingerprint, Geometry, Rope, Tier
from tests.builders import make_fingerprint, make_geometry

Side = tuple[Fingerprint, Geometry]
OURS: Side = (make_fingerprint(), make_geometry())

SAME_FAMILY = {"weights_digest": "other", "quantization": "nf4", "dtype": DType.BFLOAT16}
OTHER_MODEL: dict[str, Any] = {
    "architecture": "OtherForCausalLM",
    "config_digest": "other",
    "tokenizer_digest": "other",
    "num_layers": 4,
    "num_kv_heads": 1,
    "head_dim": 8,
    "rope": Rope("linear", 10000.0, extra={"factor": 2.0}),
}


def changed(**changes: Any) -> Side:
    """Our model, but for these fields."""
    geometry = {name: changes.pop(name) for name in list(changes) if name in Geometry.__dataclass_fields__}
    return make_fingerprint(**changes), make_geometry(**geometry)


def test_the_same_model_is_exact_whatever_it_is_called() -> None:
    assert require_tier(changed(model="renamed"), OURS) is Tier.EXACT
    assert differences(changed(model="renamed"), OURS) == {}


@pytest.mark.parametrize("field", SAME_FAMILY)
def test_other_weights_quantization_or_dtype_is_identity(field: str) -> None:
    assert decide_tier(changed(**{field: SAME_FAMILY[field]}), OURS) is Tier.IDENTITY


def test_all_of_these_together_are_still_identity() -> None:
    assert require_tier(changed(**SAME_FAMILY), OURS) is Tier.IDENTITY


@pytest.mark.parametrize("field", OTHER_MODEL)
def test_any_other_field_is_refused_and_named_with_both_values(field: str) -> None:
    source = changed(**{field: OTHER_MODEL[field]})
    assert decide_tier(source, OURS) is Tier.REFUSED
    with pytest.raises(IncompatibleModel, match=field) as refused:
        require_tier(source, OURS)
    assert list(refused.value.details) == [field]
    got, wanted = refused.value.details[field]
    assert got == str(OTHER_MODEL[field])
    assert got != wanted


def test_every_field_is_either_of_the_family_or_of_the_model() -> None:
    fields = {*Fingerprint.__dataclass_fields__, *Geometry.__dataclass_fields__}
    assert fields == {"model", *SAME_FAMILY, *OTHER_MODEL}


def test_digests_are_shortened_for_people() -> None:
    found = differences(changed(config_digest="sha256:" + "a" * 64), OURS)
    assert found["config_digest"][0] == "sha256:" + "a" * 12 + "…"
