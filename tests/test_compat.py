"""Which memory fits which model: decided by fields, and refused by naming them."""

from __future__ import annotations

from typing import Any

import pytest

from kvnet.compat import (
    Policy,
    Route,
    advise,
    decide_route,
    decide_tier,
    differences,
    reach,
    require_route,
    require_tier,
    weakest,
)
from kvnet.errors import AlignmentRefused, IncompatibleModel
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


def test_limit_that_only_one_rope_states_is_no_difference() -> None:
    """Memories of before it was stated are their model's all the same."""
    plain = Rope("dynamic", 10000.0, extra={"factor": 2.0})
    stated = [Rope("dynamic", 10000.0, extra={"factor": 2.0, "max_position_embeddings": n}) for n in (64, 65)]
    assert decide_tier(changed(rope=plain), changed(rope=stated[0])) is Tier.EXACT
    assert decide_tier(changed(rope=stated[0]), changed(rope=plain)) is Tier.EXACT
    assert differences(changed(rope=stated[0]), changed(rope=stated[1])).keys() == {"rope"}
    other = Rope("dynamic", 10000.0, extra={"factor": 3.0})
    assert differences(changed(rope=other), changed(rope=stated[0])).keys() == {"rope"}


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


USABLE = (Tier.EXACT, Tier.IDENTITY, Tier.MAPPED, Tier.MAPPED_TOKENS)
OTHER = changed(architecture="OtherForCausalLM", num_layers=4)


def test_map_to_another_model_makes_its_memory_mapped() -> None:
    assert decide_tier(OTHER, OURS) is Tier.REFUSED
    assert decide_tier(OTHER, OURS, has_map=True) is Tier.MAPPED


def test_map_between_two_tokenizers_is_told_apart() -> None:
    assert decide_tier(changed(tokenizer_digest="other"), OURS, has_map=True) is Tier.MAPPED_TOKENS


def test_map_is_not_used_for_the_same_weights() -> None:
    assert decide_tier(OURS, OURS, has_map=True) is Tier.EXACT
    same_weights = changed(quantization="nf4", dtype=DType.BFLOAT16)
    assert decide_tier(same_weights, OURS, has_map=True) is Tier.IDENTITY


def test_coordinates_are_mapped_or_refused_and_never_a_models_own_memory() -> None:
    tokens = changed(tokenizer_digest="other")
    for source, tier in ((OURS, Tier.MAPPED), (OTHER, Tier.MAPPED), (tokens, Tier.MAPPED_TOKENS)):
        assert decide_tier(source, OURS, has_map=True, in_coordinates=True) is tier
        assert decide_tier(source, OURS, in_coordinates=True) is Tier.REFUSED
        with pytest.raises(IncompatibleModel, match=r"--codec exact"):
            require_tier(source, OURS, in_coordinates=True)
        assert require_tier(source, OURS, in_coordinates=True, has_text=True) is Tier.TEXT


def test_map_between_two_trainings_of_one_architecture_is_used() -> None:
    assert decide_tier(changed(weights_digest="other"), OURS, has_map=True) is Tier.MAPPED


@pytest.mark.parametrize("has_text", [False, True])
@pytest.mark.parametrize("policy", Policy)
def test_own_memory_is_injected_whatever_the_policy(policy: Policy, has_text: bool) -> None:
    assert decide_route(Tier.EXACT, policy=policy, has_text=has_text) is Route.INJECT


ROUTES = {
    (Policy.ALIGN, False): (Route.INJECT, Route.INJECT, Route.REFUSE),
    (Policy.ALIGN, True): (Route.INJECT, Route.INJECT, Route.TEXT),
    (Policy.TEXT, False): (Route.INJECT, Route.INJECT, Route.REFUSE),
    (Policy.TEXT, True): (Route.TEXT, Route.TEXT, Route.TEXT),
    (Policy.ERROR, False): (Route.INJECT, Route.REFUSE, Route.REFUSE),
    (Policy.ERROR, True): (Route.INJECT, Route.REFUSE, Route.REFUSE),
}


@pytest.mark.parametrize(("policy", "has_text"), ROUTES)
def test_policy_decides_among_map_and_text(policy: Policy, has_text: bool) -> None:
    identity, mapped, refused = ROUTES[policy, has_text]
    assert decide_route(Tier.IDENTITY, policy=policy, has_text=has_text) is identity
    for tier in (Tier.MAPPED, Tier.MAPPED_TOKENS):
        assert decide_route(tier, policy=policy, has_text=has_text) is mapped
    assert decide_route(Tier.REFUSED, policy=policy, has_text=has_text) is refused


def test_reach_is_the_tier_that_the_route_leads_to() -> None:
    assert [reach(tier) for tier in USABLE] == list(USABLE)
    assert reach(Tier.MAPPED, policy=Policy.TEXT, has_text=True) is Tier.TEXT
    assert reach(Tier.MAPPED, policy=Policy.ERROR) is Tier.REFUSED
    assert reach(Tier.REFUSED, has_text=True) is Tier.TEXT


def test_memory_that_only_has_a_text_is_of_the_tier_text() -> None:
    assert require_tier(OTHER, OURS, has_text=True) is Tier.TEXT
    assert require_tier(OTHER, OURS, has_text=True, has_map=True) is Tier.MAPPED
    assert require_tier(OURS, OURS, has_text=True) is Tier.EXACT


def test_refusal_names_the_fields_and_what_would_change_it() -> None:
    with pytest.raises(IncompatibleModel) as refused:
        require_route(OTHER, OURS, Tier.REFUSED)
    assert refused.value.details == differences(OTHER, OURS)
    assert "num_layers 4 (needs 3)" in refused.value.message
    assert "kvnet align fit --peer" in refused.value.message
    assert "--with-text" in refused.value.message


@pytest.mark.parametrize("tier", [Tier.MAPPED, Tier.REFUSED])
def test_refusal_by_policy_is_told_as_one(tier: Tier) -> None:
    with pytest.raises(AlignmentRefused, match="the policy `error` takes neither maps nor texts") as refused:
        require_route(OTHER, OURS, tier, policy=Policy.ERROR, has_text=True)
    assert refused.value.details == differences(OTHER, OURS)


def test_advice_names_the_peer_to_fit_a_map_with() -> None:
    for tier in (Tier.IDENTITY, Tier.TEXT, Tier.REFUSED):
        assert "`kvnet align fit --peer alice`" in advise(tier, peer="alice")
    assert "align fit" not in advise(Tier.EXACT, peer="alice")
    assert len({advise(tier) for tier in (*USABLE, Tier.TEXT, Tier.REFUSED)}) == 5


def test_answer_is_of_the_weakest_tier_that_went_into_it() -> None:
    assert weakest([]) is Tier.NONE
    assert weakest([Tier.EXACT]) is Tier.EXACT
    assert weakest([Tier.MAPPED_TOKENS, Tier.EXACT, Tier.MAPPED]) is Tier.MAPPED_TOKENS
    assert weakest([Tier.IDENTITY, Tier.EXACT]) is Tier.IDENTITY
