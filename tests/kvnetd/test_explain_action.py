"""explain: the tier and its reasons, as `ask` would find them, and of models that nobody hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kvnetd.actions import memories
from kvnetd.actions.explain import explain
from kvnetd.alignments import held_maps
from kvnetd.services import Services
from kvnetd.store.texts import attach_text
from kvnetd.transfers import Transfers

from kvnet.api import Difference
from kvnet.compat import differences
from kvnet.errors import UnknownMemory, UnknownModel, UnsupportedModel
from kvnet.model.host import ModelHost
from kvnet.model.reference.catalog import reference_path
from kvnet.transfer.messages import HeldMap, seal
from tests.builders import SENDER, make_fingerprint, make_memory
from tests.files.alignment_files import GATE
from tests.kvnetd.hosting import TEXTS, add_map, hosting, load_host, read
from tests.kvnetd.nodes import MEMORY, complete, making, offer


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> ModelHost:
    return load_host("ref-a", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> ModelHost:
    return load_host("ref-b", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def node(services: Services, ours: ModelHost) -> Services:
    return hosting(services, ours)


async def test_own_memory_differs_in_nothing(node: Services, ours: ModelHost) -> None:
    record = read(node, ours, TEXTS[0])
    found = await explain(node, record.id[:12])
    assert (found.memory, found.model, found.tier, found.policy) == (record.id, "ref-a", "exact", "align")
    assert (found.differences, found.map, found.has_text) == ((), None, False)
    assert "align fit" not in found.advice


async def test_memory_of_another_model_is_explained_field_by_field(
    node: Services, ours: ModelHost, other: ModelHost
) -> None:
    record = read(node, other, TEXTS[0])
    found = await explain(node, record.id)
    wanted = differences((other.fingerprint, other.geometry), (ours.fingerprint, ours.geometry))
    assert found.tier == "refused"
    assert found.differences == tuple(Difference(name, *values) for name, values in wanted.items())
    assert "kvnet align fit --peer PEER" in found.advice
    assert "--with-text" in found.advice
    attach_text(node.memories, record.header, TEXTS[0])
    found = await explain(node, record.id)
    assert (found.tier, found.has_text) == ("text", True)
    assert "align fit" in found.advice


async def test_map_that_would_be_used_is_told_with_its_gate(
    node: Services, ours: ModelHost, other: ModelHost
) -> None:
    record = read(node, other, TEXTS[0])
    known = add_map(node, other, ours)
    found = await explain(node, record.id)
    assert found.tier == "mapped"
    assert found.map is not None
    assert (found.map.id, found.map.method, found.map.gate) == (known, "ridge", GATE)
    assert (await memories.describe(node, record)).tier == "mapped"
    assert held_maps(node) == (HeldMap(other.fingerprint.digest, known),)


@pytest.mark.parametrize(
    ("policy", "tier", "has_map"), [("error", "refused", False), ("text", "text", False)]
)
async def test_policy_of_the_node_decides_what_is_explained(
    node: Services, ours: ModelHost, other: ModelHost, policy: str, tier: str, has_map: bool
) -> None:
    record = read(node, other, TEXTS[0])
    attach_text(node.memories, record.header, TEXTS[0])
    add_map(node, other, ours)
    found = await explain(hosting(node, ours, align=policy), record.id)
    assert (found.policy, found.tier, found.map is not None) == (policy, tier, has_map)


@pytest.mark.parametrize("how", ["name", "folder"])
async def test_model_that_is_not_hosted_is_compared_by_its_files(
    node: Services, ours: ModelHost, other: ModelHost, how: str
) -> None:
    record = read(node, other, TEXTS[0])
    model = "ref-b" if how == "name" else str(reference_path("ref-b"))
    found = await explain(node, record.id, model=model)
    assert (found.model, found.tier, found.differences) == ("ref-b", "exact", ())
    against = await explain(node, read(node, ours, TEXTS[0]).id, model=model)
    wanted = differences((ours.fingerprint, ours.geometry), (other.fingerprint, other.geometry))
    assert against.differences == tuple(Difference(name, *values) for name, values in wanted.items())


@pytest.mark.parametrize("model", ["ref-z", "no/such-model", "/no/such/folder", "random:tinyllama"])
async def test_model_that_is_not_here_is_neither_fetched_nor_made(
    node: Services, ours: ModelHost, model: str
) -> None:
    record = read(node, ours, TEXTS[0])
    with pytest.raises(UnknownModel, match="kvnet up --model"):
        await explain(node, record.id, model=model)


async def test_folder_that_holds_no_model_is_told_as_such(
    node: Services, ours: ModelHost, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        await explain(node, read(node, ours, TEXTS[0]).id, model=str(tmp_path))


async def test_unknown_memory_is_told_as_such(node: Services) -> None:
    with pytest.raises(UnknownMemory):
        await explain(node, "mem_" + "a" * 52)


async def test_advice_names_the_peer_that_a_memory_came_from(services: Services) -> None:
    transfers = Transfers(services)
    await complete(await transfers.open_inbound(seal(SENDER, offer())))
    host: Any = services.host
    host.fingerprint = make_fingerprint(architecture="Other")
    assert "`kvnet align fit --peer alice`" in (await explain(services, MEMORY.header.id)).advice
    own = services.memories.put(make_memory(1), making(), services.key)
    assert "--peer PEER" in (await explain(services, own.id)).advice
