"""Reading for a peer: who is read for, and two nodes whose readings are what the model makes of the texts."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kvnetd.holding import holding
from kvnetd.readings import MAX_READERS, PeerReading, Readings, read_at_peer
from kvnetd.services import Services
from kvnetd.transfers import Transfers

from kvnet.errors import (
    BadSignature,
    IncompatibleModel,
    KvnetError,
    MalformedMessage,
    PeerError,
    PeerNotAdded,
    ReplayedMessage,
    TextTooLong,
    TooBusy,
)
from kvnet.identity.keys import NodeKey
from kvnet.identity.peers import AddedPeer
from kvnet.identity.signing import SignedMessage
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from kvnet.model.reading import read_text
from kvnet.model.runner import MAX_WAITING
from kvnet.transfer.messages import Hello, seal
from kvnet.transport.asking import Texts
from kvnet.transport.readings import WINDOW, Reading, ReadRequest
from kvnet.transport.server import PeerServer
from kvnet.types import sha256_hex
from tests.builders import RECEIVER, SENDER, STRANGER
from tests.kvnetd.nodes import AT, events, services_of

ALICE, BOB = RECEIVER, SENDER  # Alice reads, Bob asks
CAROL, DAVE = NodeKey(b"\x04" * 32), NodeKey(b"\x05" * 32)
TEXTS = ("The harbour opens at seven.", "Anna keeps the key in the blue tin.", "Zürich has a river.")
CLOSING = " So it is."


def added(key: NodeKey, name: str) -> AddedPeer:
    return AddedPeer(key.node_id, name, "", AT)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ModelHost:
    """A reference model."""
    torch.set_num_threads(1)
    return ModelHost.load(ModelSpec("ref-a", device="cpu"), tmp_path_factory.mktemp("cache"))


@dataclass
class Pair:
    """Alice's open port, and Bob."""

    alice: Services
    bob: Services
    readings: Readings
    hello: Hello
    address: str

    @asynccontextmanager
    async def ask(
        self, texts: Texts = TEXTS, num_texts: int = 3, **changes: Any
    ) -> AsyncIterator[AsyncIterator[Reading]]:
        """Bob lets Alice read."""
        readings = read_at_peer(
            self.bob,
            added(ALICE, "alice"),
            texts,
            num_texts=num_texts,
            closing=CLOSING,
            corpus_digest=sha256_hex(b"corpus"),
            hello=replace(self.hello, **changes),
            address=self.address,
        )
        async with aclosing(readings):
            yield readings

    async def all(self, texts: Texts = TEXTS, num_texts: int = 3, **changes: Any) -> list[Reading]:
        """All that she reads."""
        async with self.ask(texts, num_texts, **changes) as readings:
            return [reading async for reading in readings]

    async def last_line(self) -> dict[str, Any]:
        """Of Alice's log, once she reads for nobody: that may be after his last reading."""
        for _ in range(200):
            last = events(self.alice, "prefill")[-1]
            if last["event"] != "prefill.started":
                break
            await asyncio.sleep(0.02)
        return last


@pytest.fixture
async def pair(tmp_path: Path, host: ModelHost) -> AsyncIterator[Pair]:
    async with (
        services_of(tmp_path / "alice", ALICE, added(BOB, "bob"), name="alice") as without_model,
        services_of(tmp_path / "bob", BOB, added(ALICE, "alice"), name="bob") as bob,
    ):
        alice = replace(without_model, host=host)
        transfers, readings = Transfers(alice), Readings(alice)
        server = PeerServer(transfers, alice.gate, readings)
        port = await server.start(host="127.0.0.1", port=0)
        yield Pair(alice, bob, readings, transfers.hello(b"n" * 16), f"127.0.0.1:{port}")
        await server.stop(0)


# Two nodes


async def test_peer_reads_what_its_model_reads(pair: Pair, host: ModelHost) -> None:
    found = await pair.all()
    for index, (text, reading) in enumerate(zip(TEXTS, found, strict=True)):
        memory, spans = read_text(host, text + CLOSING)
        assert reading == Reading(index, memory, host.num_sinks, spans)
        assert len(spans) == memory.header.seq_len
    last = await pair.last_line()
    assert (last["event"], last["count"], last["peer"]) == ("prefill.completed", 3, "bob")
    assert last["tokens"] == sum(reading.memory.header.seq_len for reading in found)


async def test_peer_that_reads_is_free_for_the_next_request_afterwards(pair: Pair) -> None:
    for _ in range(MAX_READERS + 1):
        await pair.all(num_texts=1)
        assert (await pair.last_line())["event"] == "prefill.completed"


async def test_text_beyond_the_context_ends_the_reading_and_says_which(pair: Pair, host: ModelHost) -> None:
    long = "one two three four " * host.max_seq_len
    with pytest.raises(TextTooLong, match=r"alice.*text 1: the text has"):
        await pair.all([TEXTS[0], long[: 60 << 10]], num_texts=2)
    last = await pair.last_line()
    assert (last["error"], last["count"]) == ("text_too_long", 1)


async def test_blank_text_ends_the_reading_and_says_which(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.kvnetd.test_readings.CLOSING", "")
    with pytest.raises(PeerError, match=r"alice.*text 0: the text is empty"):
        await pair.all(["  "], num_texts=1)


async def test_another_model_than_that_of_the_hello_is_refused(pair: Pair) -> None:
    fingerprint = replace(pair.hello.fingerprint, weights_digest=sha256_hex(b"yesterday"))
    with pytest.raises(IncompatibleModel, match=r"alice.*weights_digest"):
        await pair.all(fingerprint=fingerprint)


async def test_leaving_ends_the_work_of_the_peer_in_the_middle_of_a_text(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, stopped = threading.Event(), threading.Event()

    def read(host: ModelHost, text: str, *, cancelled: Callable[[], bool]) -> Any:
        begun.set()
        while not cancelled():
            time.sleep(0.005)
        stopped.set()
        return read_text(host, text, cancelled=cancelled)

    monkeypatch.setattr("kvnetd.readings.read_text", read)
    asking = asyncio.create_task(pair.all())
    assert await asyncio.to_thread(begun.wait, 5)
    asking.cancel()
    assert await asyncio.to_thread(stopped.wait, 5)
    last = await pair.last_line()
    assert (last["event"], last["count"]) == ("prefill.failed", 0)
    with monkeypatch.context() as mended:
        mended.setattr("kvnetd.readings.read_text", read_text)
        assert len(await pair.all()) == 3


async def test_full_line_for_the_model_makes_a_reading_wait_and_not_fail(pair: Pair) -> None:
    release = threading.Event()
    jobs = [asyncio.ensure_future(pair.alice.runner.run(release.wait))]
    await asyncio.sleep(0.05)  # it runs
    jobs += [asyncio.ensure_future(pair.alice.runner.run(release.wait)) for _ in range(MAX_WAITING)]
    await asyncio.sleep(0)
    asking = asyncio.create_task(pair.all())
    await asyncio.sleep(0.3)
    assert not asking.done()
    release.set()
    assert len(await asking) == 3
    await asyncio.gather(*jobs)


async def test_peer_that_is_removed_is_not_read_for_any_longer(pair: Pair) -> None:
    async def supply() -> AsyncIterator[str]:
        for _ in range(WINDOW):
            yield TEXTS[0]
        pair.alice.peers.remove(BOB.node_id)  # the first reading has come
        while True:
            yield TEXTS[1]

    # Many times: a write that finds the stream gone must not win over the reason it is gone for.
    for _ in range(10):
        with pytest.raises(PeerNotAdded, match=r"alice.*bob: was removed"):
            await pair.all(supply(), 1000)
        await pair.last_line()
        pair.alice.peers.add(added(BOB, "bob"))


# Who is read for


@pytest.fixture
async def readings(tmp_path: Path) -> AsyncIterator[Readings]:
    """Alice's, who has added three peers."""
    names = {"bob": BOB, "carol": CAROL, "dave": DAVE}
    peers = [added(key, name) for name, key in names.items()]
    async with services_of(tmp_path, ALICE, *peers) as services:
        yield Readings(services)


def request(
    number: int = 1, key: NodeKey = BOB, *, signer: NodeKey | None = None, **changes: Any
) -> SignedMessage:
    """A fresh request."""
    now = int(time.time())
    plain = ReadRequest(
        f"{number:032x}", key.node_id, ALICE.node_id, "", 3, sha256_hex(b"corpus"), now, now + 600
    )
    return seal(signer or key, replace(plain, **changes))


async def open_and_close(readings: Readings, sealed: SignedMessage) -> PeerReading:
    job = await readings.open_reading(sealed)
    await job.close(None)
    return job


NOW = int(time.time())


@pytest.mark.parametrize(
    ("sealed", "wanted"),
    [
        (request(key=STRANGER), PeerNotAdded),
        (request(signer=STRANGER), PeerNotAdded),
        (replace(request(), signature=b"s" * 64), BadSignature),
        (request(sender=CAROL.node_id), PeerError),
        (request(receiver=BOB.node_id), ReplayedMessage),
        (request(created_at=NOW - 9000, expires_at=NOW - 8400), ReplayedMessage),
        (request(created_at=NOW + 9000, expires_at=NOW + 9600), ReplayedMessage),
        (request(expires_at=NOW + 9000), MalformedMessage),
        (request(request_id="A" * 32), MalformedMessage),
        (request(request_id="1" * 31), MalformedMessage),
    ],
)
async def test_request_that_is_none_of_ours_is_refused(
    readings: Readings, sealed: SignedMessage, wanted: type[KvnetError]
) -> None:
    with pytest.raises(KvnetError) as refused:
        await readings.open_reading(sealed)
    assert type(refused.value) is wanted
    await open_and_close(readings, request())


async def test_request_is_read_for_once(readings: Readings) -> None:
    sealed = request()
    await open_and_close(readings, sealed)
    with pytest.raises(ReplayedMessage):
        await readings.open_reading(sealed)
    await open_and_close(readings, request(2))


async def test_each_peer_is_read_for_once_at_a_time_and_no_more_than_two_of_them(readings: Readings) -> None:
    bob = await readings.open_reading(request())
    with pytest.raises(TooBusy, match="already reads for bob"):
        await readings.open_reading(request(2))
    carol = await readings.open_reading(request(3, CAROL))
    with pytest.raises(TooBusy, match="reads for others"):
        await readings.open_reading(request(4, DAVE))
    await carol.close(None)
    dave = await readings.open_reading(request(4, DAVE))  # a refusal for want of room used up nothing
    for job in (bob, dave):
        await job.close(None)


async def test_peer_that_asks_often_uses_up_no_other_peers_requests(
    readings: Readings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvnetd.readings.MAX_SEEN_REQUESTS", 2)
    for number in (1, 2):
        await open_and_close(readings, request(number))
    with pytest.raises(TooBusy, match="read for bob often"):
        await readings.open_reading(request(3))
    await open_and_close(readings, request(4, CAROL))


async def test_requests_that_cannot_be_replayed_any_more_are_forgotten(
    readings: Readings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await open_and_close(readings, request())
    later = time.time() + 3600
    monkeypatch.setattr("kvnetd.readings.time.time", lambda: later)
    fresh = request(2, CAROL, created_at=int(later), expires_at=int(later) + 600)
    await open_and_close(readings, fresh)
    kept = readings._services.ledger._run("SELECT signer FROM requests")
    assert kept == [(CAROL.node_id,)]


async def test_nobody_is_read_for_while_a_fit_holds_the_model(pair: Pair) -> None:
    holds = ExitStack()

    async def supply() -> AsyncIterator[str]:
        for _ in range(WINDOW):
            yield TEXTS[0]
        holds.enter_context(holding(pair.alice, "a fit"))  # the first reading has come
        while True:
            yield TEXTS[1]

    with holds, pytest.raises(TooBusy, match=r"alice.*a fit of a map holds its model"):
        await pair.all(supply(), 1000)
    await pair.last_line()
    with holding(pair.alice, "a fit"), pytest.raises(TooBusy, match="a fit of a map holds its model"):
        await pair.all()
    assert len(await pair.all()) == 3


async def test_refused_request_leaves_a_line_in_the_log(tmp_path: Path) -> None:
    async with services_of(tmp_path, ALICE, added(BOB, "bob")) as services:
        with pytest.raises(ReplayedMessage):
            await Readings(services).open_reading(request(receiver=BOB.node_id))
        (begun, failed) = events(services, "prefill")
    assert (begun["event"], failed["event"]) == ("prefill.started", "prefill.failed")
    assert (failed["peer"], failed["error"]) == ("bob", "replayed_message")
