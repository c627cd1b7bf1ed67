import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnet.model.reference import words
from kvnet.model.reference.catalog import REFERENCE_MODELS, reference_path
from kvnet.model.reference.world import (
    FACT_FAMILIES,
    HELDOUT_FAMILY,
    QUESTIONS,
    TRAIN_FAMILIES,
    Style,
    ask,
    is_heldout,
    sample_context,
)


def names_and_values(split, num_contexts=300):
    rng = random.Random(f"overlap {split}")
    contexts = [sample_context(rng, 16, split) for _ in range(num_contexts)]
    return {word.lower() for c in contexts for fact in c.facts for word in (fact.name, fact.value)}


def test_train_and_heldout_words_never_overlap():
    train, heldout = names_and_values("train"), names_and_values("heldout")
    assert len(train) > 1000
    assert len(heldout) > 1000
    assert not train & heldout
    assert not train & names_and_values("foreign")


def test_every_split_word_is_where_its_checksum_says():
    assert not any(map(is_heldout, names_and_values("train", 20)))
    assert all(map(is_heldout, names_and_values("heldout", 20)))
    assert all(map(is_heldout, words.FOREIGN_NAMES + words.FOREIGN_VALUES))


def test_heldout_family_is_not_a_training_family():
    assert HELDOUT_FAMILY not in TRAIN_FAMILIES
    heldout = set(FACT_FAMILIES[HELDOUT_FAMILY])
    assert not heldout & {template for family in TRAIN_FAMILIES for template in FACT_FAMILIES[family]}


@given(st.integers(0, 2**32), st.integers(1, 40), st.sampled_from(["train", "heldout", "foreign"]))
def test_context_states_each_fact_once_and_without_contradiction(seed, num_facts, split):
    context = sample_context(random.Random(seed), num_facts, split)
    assert len(context.facts) == num_facts
    assert len({(fact.name, fact.attribute) for fact in context.facts}) == num_facts
    assert len({(fact.attribute, fact.value) for fact in context.facts}) == num_facts
    for fact in context.facts:
        assert fact.attribute in context.text
        assert re.search(rf" {re.escape(fact.value)}\.", context.text)


@pytest.mark.parametrize("layout", ["column", "grid", "loose"])
def test_each_layout_gives_the_number_of_facts_asked_for(layout):
    for num_facts in range(2, 20):
        context = sample_context(random.Random(num_facts), num_facts, style=Style(layout=layout))
        assert len(context.facts) == num_facts


def test_same_seed_gives_the_same_context_and_question():
    first, second = (sample_context(random.Random(7), 8) for _ in range(2))
    assert first == second
    fact = first.facts[0]
    assert ask(fact, "cloze", random.Random(1)) == ask(fact, "cloze", random.Random(1))


def test_value_comes_after_name_and_attribute_in_every_phrasing():
    for templates in FACT_FAMILIES.values():
        for template in templates:
            assert template.endswith("{v}.")


def test_question_never_contains_its_answer():
    for templates in QUESTIONS.values():
        assert not any("{v}" in template for template in templates)
    fact = sample_context(random.Random(3), 1).facts[0]
    assert ask(fact, "question", random.Random(3)).expected == f"{fact.value}."


def test_catalog_knows_its_models_and_no_other():
    assert all(reference_path(name) for name in REFERENCE_MODELS)
    assert reference_path("ref-z") is None
    assert reference_path("../data/ref-a") is None
