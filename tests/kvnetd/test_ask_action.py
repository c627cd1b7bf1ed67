"""ask: models, maps, texts and the policy decide how a memory is used; every reply and line tells."""

from __future__ import annotations

from typing import Any

import pytest
from kvnetd.services import Services
from kvnetd.store.texts import attach_text

from kvnet.errors import (
    AlignmentRefused,
    IncompatibleModel,
    RequestError,
    TextTooLong,
    UnknownMemory,
)
from kvnet.model.generation import Generated
from kvnet.model.host import ModelHost
from kvnet.model.sampling import Sampling
from kvnet.model.slots import join, slots_of
from kvnet.types import RawMemory
from tests.kvnetd.hosting import TEXTS, add_map, answer_to, hosting, load_host, read
from tests.kvnetd.nodes import events

PROMPT = "What is Petra's drink?"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> ModelHost:
    return load_host("ref-a", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> ModelHost:
    return load_host("ref-b", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def node(services: Services, ours: ModelHost) -> Services:
    return hosting(services, ours)


def generate(host: ModelHost, **given: Any) -> Generated:
    """What the model itself says."""
    *_, last = host.generate(PROMPT, sampling=Sampling(max_tokens=6), **given)
    assert isinstance(last, Generated)
    return last


def kept(services: Services, host: ModelHost, text: str) -> str:
    """The id of a memory with its text beside it."""
    record = read(services, host, text)
    attach_text(services.memories, record.header, text)
    return record.id


def told(services: Services, name: str) -> dict[str, Any]:
    """The last line about this."""
    return events(services, name)[-1]


async def test_own_memory_goes_into_the_cache_as_it_is(node: Services, ours: ModelHost) -> None:
    memory = read(node, ours, TEXTS[0])
    expected = generate(ours, memory=node.memories.load(memory))
    for options in ({"memory": memory.id}, {"memories": (memory.id,)}):
        wanted = options.pop("memories", ())
        found = await answer_to(node, PROMPT, *wanted, **options)
        assert found.text == expected.text
        assert (found.kv.tier, found.kv.map, found.kv.fallback) == ("exact", "", "none")
        assert found.kv.reused_tokens == memory.header.seq_len
        assert found.kv.recomputed_tokens == expected.recomputed_tokens
        line = told(node, "generation")
        assert (line["memory"], line["tier"], line["map"], line["fallback"]) == (
            memory.id,
            "exact",
            "",
            "none",
        )
        assert told(node, "injection")["map"] == ""


async def test_several_memories_follow_each_other_in_the_order_given(node: Services, ours: ModelHost) -> None:
    records = [read(node, ours, text) for text in TEXTS]
    names = [record.id for record in records]
    found = await answer_to(node, PROMPT, *names)
    raw: list[RawMemory] = [node.memories.load(record) for record in records]
    parts = [slots_of(memory, num_sinks=ours.num_sinks) for memory in raw]
    assert found.text == generate(ours, slots=join(parts)).text
    assert found.kv.reused_tokens == sum(part.num_slots for part in parts)
    assert (found.kv.tier, found.kv.map, found.kv.codec) == ("exact", "", "exact")
    assert told(node, "generation")["memory"] == ",".join(names)
    injected = [line["memory"] for line in events(node, "injection") if line["event"].endswith("completed")]
    assert injected == names


async def test_first_memory_and_the_others_are_one_list(node: Services, ours: ModelHost) -> None:
    first, second = (read(node, ours, text).id for text in TEXTS[:2])
    both = await answer_to(node, PROMPT, first, second)
    assert (await answer_to(node, PROMPT, second, memory=first)).text == both.text
    assert told(node, "generation")["memory"] == f"{first},{second}"


async def test_memories_and_a_text_exclude_each_other(node: Services, ours: ModelHost) -> None:
    memory = read(node, ours, TEXTS[0]).id
    for options in ({"memory": memory}, {"memories": (memory,)}):
        with pytest.raises(RequestError, match="give one"):
            await answer_to(node, PROMPT, *options.pop("memories", ()), context="Anna.", **options)


async def test_more_memories_than_the_context_holds_are_refused_before_any_is_read(
    node: Services, ours: ModelHost
) -> None:
    memory = read(node, ours, TEXTS[0])
    count = ours.max_seq_len // memory.header.seq_len + 1
    with pytest.raises(TextTooLong, match=f"holds {ours.max_seq_len}"):
        await answer_to(node, PROMPT, *[memory.id] * count)
    assert events(node, "injection") == []


async def test_one_unknown_memory_among_several_ends_the_question(node: Services, ours: ModelHost) -> None:
    with pytest.raises(UnknownMemory):
        await answer_to(node, PROMPT, read(node, ours, TEXTS[0]).id, "mem_" + "a" * 52)


async def test_memory_of_another_model_is_read_as_its_text(
    node: Services, ours: ModelHost, other: ModelHost
) -> None:
    memory = kept(node, other, TEXTS[0])
    found = await answer_to(node, PROMPT, memory)
    expected = generate(ours, context=TEXTS[0])
    assert found.text == expected.text
    assert (found.kv.tier, found.kv.fallback, found.kv.map, found.kv.codec) == ("text", "text", "", "")
    assert (found.kv.reused_tokens, found.kv.recomputed_tokens) == (0, expected.recomputed_tokens)
    line = told(node, "generation")
    assert (line["memory"], line["tier"], line["fallback"]) == (memory, "text", "text")
    assert events(node, "injection") == []
    assert "Petra" not in "".join(node.log.lines())


async def test_memory_of_another_model_without_a_text_is_refused_by_field(
    node: Services, other: ModelHost
) -> None:
    memory = read(node, other, TEXTS[0]).id
    for policy in ("", "align", "text"):
        with pytest.raises(IncompatibleModel, match="kvnet align fit") as refused:
            await answer_to(node, PROMPT, memory, align=policy)
        assert "config_digest" in refused.value.details


async def test_policy_error_takes_neither_map_nor_text(
    node: Services, ours: ModelHost, other: ModelHost
) -> None:
    memory = kept(node, other, TEXTS[0])
    add_map(node, other, ours)
    with pytest.raises(AlignmentRefused, match="--align align"):
        await answer_to(node, PROMPT, memory, align="error")
    strict = hosting(node, ours, align="error")
    with pytest.raises(AlignmentRefused):
        await answer_to(strict, PROMPT, memory)
    own = read(strict, ours, TEXTS[0]).id
    assert (await answer_to(strict, PROMPT, own)).kv.tier == "exact"


async def test_policy_text_prefers_the_text_to_a_map_but_not_to_the_models_own_memory(
    node: Services, ours: ModelHost, other: ModelHost
) -> None:
    add_map(node, other, ours)
    foreign, own = kept(node, other, TEXTS[0]), kept(node, ours, TEXTS[0])
    assert (await answer_to(node, PROMPT, foreign, align="text")).kv.tier == "text"
    assert (await answer_to(node, PROMPT, own, align="text")).kv.tier == "exact"


async def test_unknown_policy_is_refused_by_name(node: Services) -> None:
    with pytest.raises(RequestError, match="'guess': none of align, text, error"):
        await answer_to(node, PROMPT, align="guess")


async def test_memories_that_can_only_be_read_as_texts_are_read_in_their_order(
    node: Services, ours: ModelHost, other: ModelHost
) -> None:
    names = [kept(node, other, TEXTS[0]), kept(node, ours, TEXTS[1])]
    found = await answer_to(node, PROMPT, *names)
    assert found.text == generate(ours, context="\n".join(TEXTS[:2])).text
    assert (found.kv.tier, found.kv.fallback, found.kv.reused_tokens) == ("text", "text", 0)
    assert told(node, "generation")["memory"] == ",".join(names)


async def test_memory_without_a_text_cannot_be_joined_to_one_that_is_only_text(
    node: Services, ours: ModelHost, other: ModelHost
) -> None:
    bare = read(node, ours, TEXTS[1]).id
    with pytest.raises(AlignmentRefused, match=f"{bare}: has no text"):
        await answer_to(node, PROMPT, kept(node, other, TEXTS[0]), bare)
