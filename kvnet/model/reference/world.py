"""The templated world: facts, the sentences that state them, the questions that ask for them.

Knows English templates and a random generator; no tokens, no torch. A word belongs to exactly one
split, decided by a checksum of its spelling, so no list of held-out words has to be kept.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from kvnet.model.reference import words

Split = Literal["train", "heldout", "foreign"]
Layout = Literal["column", "grid", "loose"]
AskKind = Literal["cloze", "question"]

# {n}: the name, {N}: the name at the start of a sentence, {a}: the attribute, {v}: the value.
FACT_FAMILIES: Final[dict[str, tuple[str, ...]]] = {
    "plain": ("{N}'s {a} is {v}.",),
    "called": ("{N}'s {a} is called {v}.", "The {a} of {n} is called {v}."),
    "of": ("The {a} of {n} is {v}.",),
    "has": ("{N} has the {a} {v}.",),
    "know": ("We know that {n}'s {a} is {v}.", "We know that the {a} of {n} is {v}."),
    "note": ("Note: the {a} of {n} is {v}.", "Note: {n}'s {a} is {v}."),
    "for": ("For {n}, the {a} is {v}.",),
    "colon": ("{N}'s {a}: {v}.", "{N}, {a}: {v}."),
    "remember": ("Remember that {n}'s {a} is {v}.", "Remember the {a} of {n}: {v}."),
    # Never trained on.
    "hearsay": ("It seems {n}'s {a} is {v}.", "By all accounts the {a} of {n} is {v}."),
}
HELDOUT_FAMILY: Final = "hearsay"
TRAIN_FAMILIES: Final = tuple(family for family in FACT_FAMILIES if family != HELDOUT_FAMILY)

QUESTIONS: Final[dict[AskKind, tuple[str, ...]]] = {
    "cloze": ("{N}'s {a} is", "The {a} of {n} is", "{N}'s {a} is called"),
    "question": (
        "What is {n}'s {a}?",
        "What is the {a} of {n}?",
        "What is {n}'s {a} called?",
        "Tell me the {a} of {n}.",
    ),
}

_HELDOUT_ONE_IN: Final = 8
_FOREIGN: Final = frozenset(w.lower() for w in words.FOREIGN_NAMES + words.FOREIGN_VALUES)


@dataclass(frozen=True, slots=True)
class Fact:
    """`name`'s `attribute` is `value`."""

    name: str
    attribute: str
    value: str


@dataclass(frozen=True, slots=True)
class Context:
    """Facts and the text that states each of them once, in order."""

    text: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt to put after a context and one space; `expected` is the greedy answer up to eos."""

    prompt: str
    expected: str


@dataclass(frozen=True, slots=True)
class Style:
    """How contexts are drawn. Weights: (real, made-up, thing) and (typical, any kind) words.

    `filler_share` is the chance of a sentence without a fact before each fact.
    """

    split: Split = "train"
    layout: Layout = "grid"
    families: tuple[str, ...] = TRAIN_FAMILIES
    name_weights: tuple[float, float, float] = (0.45, 0.3, 0.25)
    value_weights: tuple[float, float] = (0.5, 0.5)
    made_up_attributes: float = 0.04
    filler_share: float = 0.0
    plain_words: bool = False  # only listed names, and attributes of listed values
    separator: str = " "


def is_heldout(word: str) -> bool:
    """Whether `word` (a name or a value, any case) is kept out of training."""
    spelling = word.lower()
    return spelling in _FOREIGN or zlib.crc32(spelling.encode()) % _HELDOUT_ONE_IN == 0


def sample_context(
    rng: random.Random, num_facts: int, split: Split = "heldout", *, style: Style | None = None
) -> Context:
    """Draw `num_facts` facts (a grid of names and attributes) and state them in random phrasings.

    In one context the (name, attribute) pairs differ and so do the values of one attribute.
    `split` chooses the words: names and values trained on, never trained on ("heldout"), or from
    ordinary English outside the word lists and generators ("foreign"). `style` overrides `split`.
    """
    style = style or Style(split=split)
    facts = sample_facts(rng, num_facts, style)
    sentences = []
    for fact in facts:
        if style.filler_share and rng.random() < style.filler_share:
            sentences.append(rng.choice(words.FILLERS))
        sentences.append(state(fact, rng, style.families))
    return Context(style.separator.join(sentences), tuple(facts))


def sample_facts(rng: random.Random, num_facts: int, style: Style) -> list[Fact]:
    """Draw facts in the layout of `style`: one attribute, a names x attributes grid, or loose."""
    num_attributes = {"column": 1, "grid": rng.randint(2, 4), "loose": max(2, num_facts // 2)}
    width = min(num_attributes[style.layout], num_facts)
    num_names = -(-num_facts // width) + (style.layout == "loose")
    names = _distinct(num_names, lambda: sample_name(rng, style))
    attributes = _distinct(width, lambda: sample_attribute(rng, style))
    pairs = [(name, attribute) for name in names for attribute in attributes]
    if style.layout == "loose":
        pairs = rng.sample(pairs, num_facts)
    else:
        rng.shuffle(pairs)
    pairs = pairs[:num_facts]
    return _with_values(rng, pairs, style)


def _with_values(rng: random.Random, pairs: Sequence[tuple[str, str]], style: Style) -> list[Fact]:
    """Give each (name, attribute) a value that no other name has for that attribute."""
    kinds: dict[str, str] = {}
    used: dict[str, set[str]] = {}
    facts = []
    for name, attribute in pairs:
        kind = kinds.setdefault(attribute, _value_kind(rng, attribute, style))
        taken = used.setdefault(attribute, set())
        value = sample_value(rng, kind, style.split)
        for _ in range(50):
            if value not in taken and value != name:
                break
            value = sample_value(rng, kind, style.split)
        else:  # a category's held-out words can run out
            kinds[attribute] = "word"
            value = sample_value(rng, "word", style.split)
        taken.add(value)
        facts.append(Fact(name, attribute, value))
    return facts


def state(fact: Fact, rng: random.Random, families: Sequence[str] = TRAIN_FAMILIES) -> str:
    """One sentence that states `fact`, in a random phrasing of a random family."""
    return _render(rng.choice(FACT_FAMILIES[rng.choice(families)]), fact)


def ask(fact: Fact, kind: AskKind, rng: random.Random) -> Question:
    """Ask for the value of `fact`, in a random phrasing of `kind`."""
    return Question(_render(rng.choice(QUESTIONS[kind]), fact), f"{fact.value}.")


def sample_name(rng: random.Random, style: Style) -> str:
    """A first name, a made-up name or a thing such as "the north gate"."""
    if style.split == "foreign":
        return rng.choice(words.FOREIGN_NAMES)
    kind = rng.choices(("real", "made-up", "thing"), style.name_weights)[0]
    if kind == "real":
        return _in_split(style.split, lambda: rng.choice(words.REAL_NAMES))
    if kind == "made-up":
        return _in_split(style.split, lambda: made_up_word(rng).capitalize())
    return _in_split(style.split, lambda: f"the {rng.choice(words.ADJECTIVES)} {rng.choice(words.OBJECTS)}")


def sample_attribute(rng: random.Random, style: Style) -> str:
    """A noun of the list or, rarely, a made-up one."""
    if rng.random() < style.made_up_attributes:
        return made_up_word(rng)
    listed = (a for a, kind in words.ATTRIBUTES.items() if not style.plain_words or kind in words.CATEGORIES)
    return rng.choice(tuple(listed))


def sample_value(rng: random.Random, kind: str, split: Split) -> str:
    """A value of `kind`: a category of `words.CATEGORIES`, "name", "word" or "number"."""
    if split == "foreign":
        return rng.choice(words.FOREIGN_VALUES)
    return _in_split(split, lambda: _draw_value(rng, kind), otherwise=lambda: made_up_word(rng))


def made_up_word(rng: random.Random) -> str:
    """A pronounceable word of one or two syllables or, one time in eight, loose letters."""
    if rng.random() < 0.12:
        return "".join(rng.choices(words.LETTERS, k=rng.randint(3, 7)))
    num_syllables = rng.choice((1, 2, 2, 2))
    syllables = (rng.choice(words.ONSETS) + rng.choice(words.NUCLEI) for _ in range(num_syllables))
    return "".join(syllables) + rng.choice(words.CODAS)


def _draw_value(rng: random.Random, kind: str) -> str:
    if kind == "number":
        return str(rng.randrange(10 ** rng.randint(1, 4)))
    if kind == "word":
        return made_up_word(rng)
    if kind == "name":
        return rng.choice(words.REAL_NAMES) if rng.random() < 0.7 else made_up_word(rng).capitalize()
    return rng.choice(words.CATEGORIES[kind])


def _value_kind(rng: random.Random, attribute: str, style: Style) -> str:
    if style.plain_words and rng.random() >= style.value_weights[0]:
        return rng.choice(tuple(words.CATEGORIES))
    typical = words.ATTRIBUTES.get(attribute)
    if typical and rng.choices((True, False), style.value_weights)[0]:
        return typical
    kinds = (rng.choice(tuple(words.CATEGORIES)), "name", "word", "number")
    return rng.choices(kinds, (3, 1, 1, 1))[0]


def _in_split(split: Split, draw: Callable[[], str], otherwise: Callable[[], str] | None = None) -> str:
    """Draw until the word is of `split`; a short list may have none, then draw `otherwise`."""
    for _ in range(300):
        if is_heldout(word := draw()) == (split == "heldout"):
            return word
    if otherwise is None:
        raise ValueError(f"the world has no {split} word of this kind")
    return _in_split(split, otherwise)


def _distinct(count: int, draw: Callable[[], str]) -> list[str]:
    found: dict[str, None] = {}
    for _ in range(1000 + 100 * count):
        if len(found) == count:
            break
        found[draw()] = None
    if len(found) < count:
        raise ValueError(f"the world has only {len(found)} words of a kind, {count} were asked for")
    return list(found)


def _render(template: str, fact: Fact) -> str:
    return template.format(
        N=fact.name[:1].upper() + fact.name[1:], n=fact.name, a=fact.attribute, v=fact.value
    )
