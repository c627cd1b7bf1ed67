"""Texts that go with memories: only when asked for, only to one that may need them, and never into a log."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kvnetd.actions import memories
from kvnetd.actions.send import send
from kvnetd.services import Services
from kvnetd.store.texts import attach_text, attached_text
from kvnetd.transfers import Transfers

from kvnet.api import SendReport
from kvnet.errors import IncompatibleModel, PeerUnreachable, ReplayedMessage, RequestError
from kvnet.identity.peers import AddedPeer
from kvnet.transfer.messages import MAX_TEXT_NBYTES, seal
from kvnet.types import MemoryId
from tests.builders import SENDER, STRANGER, make_fingerprint
from tests.kvnetd.exchange import failure_at, pull_memory, send_memory
from tests.kvnetd.hosting import hosting, load_host, read
from tests.kvnetd.nodes import AT, MEMORY, Node, complete, events, offer, spooled
from tests.kvnetd.test_exchange import break_after

TEXT = "The code of the zebrafinch gate is 77431."


def keep(node: Node, text: str = TEXT) -> None:
    """A memory with its text."""
    attach_text(node.services.memories, node.remember().header, text)


def text_at(node: Node) -> str | None:
    """The text of MEMORY there."""
    return attached_text(node.services.memories, MEMORY.header)


def host_another_model(node: Node) -> None:
    """Its model is not that of the memory any more."""
    host: Any = node.services.host
    host.fingerprint = make_fingerprint(model="other", architecture="Other")


async def test_text_goes_along_only_when_asked_for(alice: Node, bob: Node) -> None:
    keep(alice)
    await send_memory(alice)
    assert text_at(bob) is None
    report = await send_memory(alice, with_text=True)
    assert (report.tier, text_at(bob)) == ("exact", TEXT)


async def test_pull_brings_no_text(alice: Node, bob: Node) -> None:
    keep(alice)
    await pull_memory(bob, "alice")
    assert bob.services.memories.get(MEMORY.header.id)
    assert text_at(bob) is None


async def test_memory_of_another_model_arrives_where_its_text_comes_along(alice: Node, bob: Node) -> None:
    keep(alice)
    host_another_model(bob)
    with pytest.raises(IncompatibleModel, match=r"architecture LlamaForCausalLM .*--with-text") as refused:
        await send_memory(alice)
    assert list(refused.value.details) == ["architecture"]
    assert events(bob.services) == []  # the refusal came from the hello: nothing was offered, nor encoded
    report = await send_memory(alice, with_text=True)
    assert (report.tier, text_at(bob)) == ("text", TEXT)
    for node in (alice, bob):
        assert (events(node.services)[-1]["tier"], events(node.services)[-1]["map"]) == ("text", "")
    (info,) = await memories.list_memories(bob.services)
    assert info.tier == "text"


async def test_text_of_the_source_goes_with_a_coding(alice: Node, bob: Node) -> None:
    keep(alice, "Anna.")
    report = await send_memory(alice, codec="exact", with_text=True)
    assert (report.codec, text_at(bob)) == ("exact", "Anna.")


async def test_memory_without_a_text_cannot_be_sent_with_it(alice: Node, bob: Node) -> None:
    alice.remember()
    host_another_model(alice)  # the model that read it could tell its text, this one cannot
    with pytest.raises(RequestError, match="--keep-text"):
        await send_memory(alice, with_text=True)


async def test_model_that_read_a_memory_tells_the_text_that_nobody_kept(
    alice: Node, bob: Node, tmp_path: Path
) -> None:
    host = load_host("ref-a", tmp_path)
    services = hosting(alice.services, host)
    memory = read(services, host, TEXT)
    steps = send(services, Transfers(services), memory=memory.id, to="bob", note="", agent="", with_text=True)
    async with aclosing(steps):
        report = [step async for step in steps][-1]
    assert isinstance(report, SendReport)
    arrived = bob.services.memories.get(MemoryId(report.memory))
    assert attached_text(bob.services.memories, arrived.header) == TEXT


async def test_text_too_long_for_an_offer_is_refused_before_anyone_is_dialled(alice: Node) -> None:
    keep(alice, "é" * (MAX_TEXT_NBYTES // 2) + "a")
    alice.services.peers.add(AddedPeer(STRANGER.node_id, "nobody", "127.0.0.1:1", AT))
    with pytest.raises(RequestError, match=f"{MAX_TEXT_NBYTES + 1} bytes, at most {MAX_TEXT_NBYTES}"):
        await send_memory(alice, to="nobody", with_text=True)


async def test_longest_text_travels_and_is_resumed(
    alice: Node, bob: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\x01" * MAX_TEXT_NBYTES
    keep(alice, text)
    with monkeypatch.context() as patched:
        break_after(patched, 3)
        async with failure_at(bob):
            with pytest.raises(PeerUnreachable):
                await send_memory(alice, with_text=True)
    await bob.transfers.expire()
    assert len(spooled(bob.services)) == 1
    report = await send_memory(alice, with_text=True)
    assert report.resumed_chunks > 0
    assert text_at(bob) == text


async def test_same_message_with_and_without_text_are_two_offers(
    alice: Node, bob: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(alice)
    with monkeypatch.context() as patched:
        break_after(patched, 3)
        async with failure_at(bob):
            with pytest.raises(PeerUnreachable):
                await send_memory(alice, with_text=True)
    report = await send_memory(alice)
    assert (report.resumed_chunks, text_at(bob)) == (0, None)


async def test_text_of_a_peer_does_not_replace_ours(alice: Node, bob: Node) -> None:
    keep(alice, "what a peer says it is")
    keep(bob)
    await send_memory(alice, with_text=True)
    assert text_at(bob) == TEXT


async def test_no_file_holds_the_text_once_its_memory_is_forgotten(alice: Node, bob: Node) -> None:
    keep(alice)
    await send_memory(alice, with_text=True)
    for node in (alice, bob):
        await memories.forget(node.services, MEMORY.header.id)
        root = node.services.config.home.root
        holding = [path for path in root.rglob("*") if path.is_file() and b"zebrafinch" in path.read_bytes()]
        assert holding == []


async def test_offer_with_a_text_gets_its_receipt_again_and_no_other_offer_does(
    transfers: Transfers, services: Services
) -> None:
    sent = offer(text=TEXT)
    receipt = await complete(await transfers.open_inbound(seal(SENDER, sent)))
    assert await complete(await transfers.open_inbound(seal(SENDER, sent))) == receipt
    for changes in ({"text": "other"}, {"text": ""}):
        with pytest.raises(ReplayedMessage, match="new id"):
            await transfers.open_inbound(seal(SENDER, replace(sent, **changes)))
