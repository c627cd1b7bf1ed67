"""align port and fit: from a peer's model or one of this machine, broken off and taken up, and refused."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from kvnetd import alignments, fitting
from kvnetd.actions import align, fit
from kvnetd.actions.examine import EvaluateRequest, evaluate
from kvnetd.actions.fit import FitRequest
from kvnetd.kept import FITS, TRAININGS, KeptState, sweep_states
from kvnetd.readings import Readings, read_at_peer
from kvnetd.services import Services
from kvnetd.transfers import Transfers

from kvnet.align import recipe
from kvnet.align.fit_state import FitPlan, FitState
from kvnet.align.moments import MomentPair
from kvnet.align.reading import LocalReader, Reading
from kvnet.api import AlignmentInfo, Evaluation, Progress
from kvnet.errors import (
    IncompatibleModel,
    KvnetError,
    MalformedMessage,
    NotFinite,
    PeerUnreachable,
    RequestError,
    TooBusy,
    TooFewSamples,
    UnknownAlignment,
    UnknownModel,
    UnknownPeer,
)
from kvnet.files.alignments import VerifiedAlignment
from kvnet.model.host import ModelHost
from kvnet.model.memory import digest_chunks
from kvnet.model.reading import read_text
from kvnet.model.slots import Slots, slots_of
from kvnet.transport.server import PeerServer
from kvnet.types import RawMemory
from tests.builders import RECEIVER, SENDER
from tests.kvnetd.aligned import keep, map_of, port_of
from tests.kvnetd.hosting import hosting, load_host
from tests.kvnetd.nodes import Node, add, events, services_of

QUICK: dict[str, Any] = {
    "DEFAULT_RANK": 8,
    "_PORT_LESSONS": 12,
    "_PORT_QUESTIONS": 2,
    "_PROBE_LESSONS": 2,
    "_TUNE_LESSONS": 2,
    "_GATE_LESSONS": 3,
    "LAMBDAS": (1e-3,),
    "FitPlan": partial(FitPlan, num_labelled=8),
}
LESSONS = 20


@pytest.fixture(scope="module")
def a(tmp_path_factory: pytest.TempPathFactory) -> ModelHost:
    torch.set_num_threads(1)
    return load_host("ref-a", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def b(tmp_path_factory: pytest.TempPathFactory) -> ModelHost:
    return load_host("ref-b", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def port(b: ModelHost) -> VerifiedAlignment:
    return port_of(b)


@pytest.fixture(scope="module")
def admitted(a: ModelHost, b: ModelHost, port: VerifiedAlignment) -> VerifiedAlignment:
    return map_of(a, b, port)


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """Fewer texts at every step."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUICK.items():
            patch.setattr(recipe, name, value)
        yield


@pytest.fixture
async def alice(tmp_path: Path, a: ModelHost) -> AsyncIterator[Node]:
    """She hosts ref-a and reads for her peers."""
    async with services_of(tmp_path / "alice", SENDER, name="alice") as plain:
        services = hosting(plain, a)
        transfers = Transfers(services)
        server = PeerServer(transfers, services.gate, Readings(services))
        number = await server.start(host="127.0.0.1", port=0)
        yield Node(services, transfers, f"127.0.0.1:{number}")
        await server.stop(0)


@pytest.fixture
async def bob(tmp_path: Path, alice: Node, b: ModelHost) -> AsyncIterator[Services]:
    """He hosts ref-b, knows alice, and has no port yet."""
    async with services_of(tmp_path / "bob", RECEIVER, name="bob") as plain:
        node = Node(hosting(plain, b), Transfers(plain), "127.0.0.1:1")
        add(alice, node)
        add(node, alice)
        yield node.services


async def fitted(services: Services, **request: Any) -> tuple[list[Progress], AlignmentInfo]:
    """What a fit told, and its map."""
    wanted = FitRequest(**{"lessons": LESSONS, "no_anchors": True, **request})
    async with aclosing(fit.fit(services, wanted)) as steps:
        *told, made = [step async for step in steps]
    assert isinstance(made, AlignmentInfo)
    return [step for step in told if isinstance(step, Progress)], made


async def test_port_is_made_signed_and_kept(bob: Services, b: ModelHost) -> None:
    made = await fit.make_port(bob, rank=8)
    assert (made.kind, made.receiver, made.rank, made.signed_by) == ("port", b.name, 8, RECEIVER.node_id)
    assert align.show(bob, made.id) == made
    begun, ended = events(bob, "alignment")
    assert (begun["receiver"], ended["event"], ended["port"]) == (b.name, "alignment.completed", made.id)
    for rank in (-1, 1025):
        with pytest.raises(RequestError, match=f"rank {rank}"):
            await fit.make_port(bob, rank=rank)


@pytest.mark.parametrize("no_anchors", [True, False])
async def test_map_is_fitted_from_what_a_peer_reads_and_kept_whatever_its_gate_says(
    bob: Services, a: ModelHost, b: ModelHost, port: VerifiedAlignment, no_anchors: bool
) -> None:
    keep(bob, port)
    told, made = await fitted(bob, peer="alice", no_anchors=no_anchors)
    num_texts = LESSONS + QUICK["_TUNE_LESSONS"] + QUICK["_GATE_LESSONS"]
    assert told[-1] == Progress(num_texts, num_texts)
    assert (made.source_digest, made.receiver_digest) == (a.fingerprint.digest, b.fingerprint.digest)
    assert (made.port, made.num_sinks, made.num_contexts) == (port.manifest.id, a.num_sinks, LESSONS)
    assert made.signed_by == RECEIVER.node_id
    assert made.gate is not None
    assert not made.gate.admitted
    assert made.gate.reason
    assert alignments.known_map(bob, a.fingerprint, b.fingerprint) is None
    last = events(bob, "alignment")[-1]
    assert last["event"] == "alignment.completed"
    assert {name: last[name] for name in ("source", "receiver", "peer", "map", "lessons", "admitted")} == {
        "source": a.name,
        "receiver": b.name,
        "peer": "alice",
        "map": made.id,
        "lessons": LESSONS,
        "admitted": False,
    }
    assert last["rows"] == made.num_rows > 0


async def test_a_peer_and_a_model_of_this_machine_give_the_same_numbers(
    bob: Services, port: VerifiedAlignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "utc_seconds", lambda: "2026-01-01T00:00:00Z")
    keep(bob, port)
    _, by_peer = await fitted(bob, peer="alice")
    _, here = await fitted(bob, source="ref-a")
    digests = {bob.alignments.find(made.id).manifest.tensors_digest for made in (by_peer, here)}
    assert len(digests) == 1


async def test_map_may_end_in_rows(bob: Services) -> None:
    _, made = await fitted(bob, source="ref-a", rows=True)
    assert (made.port, made.problem) == ("", "")
    assert bob.alignments.find_port(bob.host.fingerprint) is None


async def test_port_that_is_lacking_is_made_in_passing(bob: Services, b: ModelHost) -> None:
    _, made = await fitted(bob, source="ref-a")
    record = bob.alignments.find_port(b.fingerprint)
    assert record is not None
    assert made.port == record.id


async def test_broken_off_fit_goes_on_where_it_was(
    bob: Services, port: VerifiedAlignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "utc_seconds", lambda: "2026-01-01T00:00:00Z")
    keep(bob, port)
    request = FitRequest(peer="alice", lessons=48, no_anchors=True)
    async with aclosing(fit.fit(bob, request)) as steps:
        async for step in steps:
            if isinstance(step, Progress) and step.done > 16:
                break
    await bob.runner.run(lambda: None)  # behind the fit, which ends within a text
    (left,) = (bob.config.home.root / "fits").iterdir()
    assert events(bob, "alignment")[-1]["error"] == "cancelled"
    told, made = await fitted(bob, peer="alice", lessons=48)
    assert told[0].done >= 16
    assert not left.exists()
    _, whole = await fitted(bob, source="ref-a", lessons=48)
    digests = {bob.alignments.find(one.id).manifest.tensors_digest for one in (made, whole)}
    assert len(digests) == 1


async def test_state_is_on_disk_before_what_comes_next_takes_long(
    bob: Services, port: VerifiedAlignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(bob, port)
    saved: list[int] = []
    save = KeptState.save

    def saving(self: KeptState[FitState]) -> None:
        save(self)
        saved.append(FitState.from_tensors(safetensors.torch.load_file(self._path)).num_done)

    monkeypatch.setattr(KeptState, "save", saving)
    await fitted(bob, source="ref-a", no_anchors=False)
    assert saved == [0, LESSONS]  # the anchors, and all sums before the solving and the gate


async def test_sums_that_cannot_be_read_start_the_fit_anew(tmp_path: Path) -> None:
    kept = KeptState(tmp_path / "fits", {"a": 1}, FitState)
    assert kept.load() is None
    (tmp_path / "fits").mkdir()
    for junk in (b"", b"\x08\0\0\0\0\0\0\0{}      ", b"junk" * 100):
        kept._path.write_bytes(junk)
        assert kept.load() is None


async def test_state_replaces_the_one_before_only_once_it_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, list[str]]] = []
    fsync = os.fsync

    def noting(handle: int) -> None:
        fsync(handle)
        path = Path(f"/proc/self/fd/{handle}").readlink()
        synced.append((path.suffix, sorted(one.suffix for one in (tmp_path / "fits").iterdir())))

    monkeypatch.setattr(os, "fsync", noting)
    KeptState(tmp_path / "fits", {"a": 1}, FitState).note(FitState(MomentPair.empty(2, 1, 10)), at_once=True)
    assert synced == [(".new", [".new"]), ("", [".safetensors"])]


def test_states_that_nobody_came_back_to_are_swept(tmp_path: Path) -> None:
    for folder in (FITS, TRAININGS):
        (tmp_path / folder).mkdir()
        for age_d in (0, 6, 8):
            path = tmp_path / folder / f"{age_d}.safetensors"
            path.touch()
            os.utime(path, (time.time() - age_d * 86400,) * 2)
    sweep_states(tmp_path)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*"))
    assert left == [f"{folder}/{age_d}.safetensors" for folder in (FITS, TRAININGS) for age_d in (0, 6)]


async def test_second_fit_is_refused_while_one_holds_the_model(
    bob: Services, port: VerifiedAlignment, admitted: VerifiedAlignment
) -> None:
    keep(bob, port, admitted)
    request = FitRequest(source="ref-a", lessons=LESSONS, no_anchors=True)
    async with aclosing(fit.fit(bob, request)) as steps:
        await anext(steps)
        for other in (
            fitted(bob, source="ref-c"),
            fit.make_port(bob),
            examined(bob, admitted.manifest.id, questions=8),
        ):
            with pytest.raises(TooBusy, match="bob: a fit of a map holds its model now"):
                await other
    _, made = await fitted(bob, source="ref-a")
    assert made.num_contexts == LESSONS


@pytest.mark.parametrize(("who", "is_known"), [({"peer": "alice"}, True), ({"source": "ref-a"}, False)])
async def test_map_in_use_is_judged_on_what_a_peer_reads_and_not_on_what_is_read_here(
    bob: Services,
    port: VerifiedAlignment,
    admitted: VerifiedAlignment,
    monkeypatch: pytest.MonkeyPatch,
    who: dict[str, str],
    is_known: bool,
) -> None:
    keep(bob, port, admitted)
    asked: list[recipe.Standing | None] = []

    def gated(*positional: Any, standing: recipe.Standing | None, **named: Any) -> Any:
        asked.append(standing)
        return gate(*positional, standing=standing, **named)

    gate = recipe.gated
    monkeypatch.setattr(recipe, "gated", gated)
    await fitted(bob, **who)
    (standing,) = asked
    assert (standing is not None) is is_known
    if standing is not None:
        assert standing.alignment.manifest == admitted.manifest
        assert standing.port is not None


async def test_corpus_of_ones_own_is_read(bob: Services, port: VerifiedAlignment, tmp_path: Path) -> None:
    keep(bob, port)
    corpus = tmp_path / "texts.txt"
    corpus.write_text("\n\n".join(f"Paragraph {i} says that Anna has {i} keys today." for i in range(18)))
    _, made = await fitted(bob, source="ref-a", corpus=str(corpus), lessons=0)
    assert made.num_contexts == 18


BAD_REQUESTS: dict[str, tuple[dict[str, Any], type[KvnetError], str]] = {
    "nobody reads": ({}, RequestError, "name who reads"),
    "two read": ({"peer": "alice", "source": "ref-a"}, RequestError, "name who reads"),
    "unknown peer": ({"peer": "carol"}, UnknownPeer, "carol"),
    "unknown model": ({"source": "no/such"}, UnknownModel, "no/such"),
    "its own model": ({"source": "ref-b"}, RequestError, "the very model that is hosted here"),
    "too few lessons": ({"source": "ref-a", "lessons": 15}, TooFewSamples, "15 texts"),
    "too many lessons": ({"source": "ref-a", "lessons": 100_001}, RequestError, "100001 lessons"),
    "no corpus": ({"source": "ref-a", "corpus": "/no/such"}, RequestError, "cannot be read"),
    "corpus nowhere": ({"source": "ref-a", "corpus": "such"}, RequestError, "absolute path"),
    "no such layers": ({"source": "ref-a", "layers": "all"}, RequestError, "none of linear, learned, skip"),
    "heads of a port": ({"source": "ref-a", "head_local": True}, RequestError, "add --rows"),
}


@pytest.mark.parametrize(("request_", "wanted", "why"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
async def test_request_that_cannot_be_is_refused_in_a_sentence(
    bob: Services, request_: dict[str, Any], wanted: type[KvnetError], why: str
) -> None:
    with pytest.raises(wanted, match=why):
        await fitted(bob, **request_)
    assert bob.alignments.all() == ()
    assert events(bob, "alignment")[-1]["event"] == "alignment.failed"


def with_nan(memory: RawMemory) -> RawMemory:
    last = bytes(memory.chunks[-1])[: -memory.header.geometry.dtype.itemsize]
    chunks = (*memory.chunks[:-1], last + b"\xff" * memory.header.geometry.dtype.itemsize)
    return RawMemory(replace(memory.header, content_digest=digest_chunks(chunks)), chunks)


async def test_peer_that_sends_nan_ends_the_fit_and_no_admitted_map_is_touched(
    bob: Services,
    a: ModelHost,
    port: VerifiedAlignment,
    admitted: VerifiedAlignment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep(bob, port, admitted)
    before = bob.alignments.all()

    def read(host: ModelHost, text: str, **more: Any) -> Any:
        memory, spans = read_text(host, text, **more)
        return with_nan(memory), spans

    monkeypatch.setattr("kvnetd.readings.read_text", read)
    with pytest.raises(NotFinite, match=r"^alice.*reading 0 holds NaN"):
        await fitted(bob, peer="alice")
    assert bob.alignments.all() == before
    assert alignments.known_map(bob, a.fingerprint, bob.host.fingerprint) == admitted.manifest


async def test_peer_that_lies_about_its_geometry_ends_the_fit(
    bob: Services, alice: Node, a: ModelHost, port: VerifiedAlignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(bob, port)
    rope = replace(a.geometry.rope, rope_theta=0.0)
    lies = (
        (replace(a.geometry, num_layers=2), IncompatibleModel, "num_layers"),
        (replace(a.geometry, num_layers=10**9), MalformedMessage, "num_layers 1000000000"),
        (replace(a.geometry, rope=rope), IncompatibleModel, "rope_theta is 0"),
    )
    honest = Transfers.hello
    for geometry, wanted, why in lies:

        def hello(self: Transfers, nonce: bytes, geometry: Any = geometry) -> Any:
            return replace(honest(self, nonce), geometry=geometry)

        monkeypatch.setattr(Transfers, "hello", hello)
        with pytest.raises(wanted, match=why):
            await fitted(bob, peer="alice")
    assert len(bob.alignments.all()) == 1


async def test_peer_that_does_not_answer_is_told_as_such(bob: Services, tmp_path: Path) -> None:
    peer = bob.peers.find("alice")
    bob.peers.add(replace(peer, address="127.0.0.1:1"))
    with pytest.raises(PeerUnreachable, match="alice"):
        await fitted(bob, peer="alice")


# Examined


async def examined(services: Services, *wanted: Any, **more: Any) -> tuple[list[Progress], Evaluation]:
    async with aclosing(evaluate(services, EvaluateRequest(*wanted, **more))) as steps:
        *told, found = [step async for step in steps]
    assert isinstance(found, Evaluation)
    return [step for step in told if isinstance(step, Progress)], found


@pytest.mark.parametrize("who", [{}, {"peer": "alice"}, {"source": "ref-a"}])
async def test_examination_has_a_row_for_every_arm_and_names_those_the_pair_has_not(
    bob: Services, port: VerifiedAlignment, admitted: VerifiedAlignment, who: dict[str, str]
) -> None:
    keep(bob, port, admitted)
    _, found = await examined(bob, admitted.manifest.id[:12], questions=16, **who)
    arms = [one.arm for one in found.arms]
    assert arms == ["text", "none", "own", "mapped", "port8", "port4", "shuffled", "zeroed", "random"]
    assert found.not_applicable == ("raw",)
    of = {one.arm: one for one in found.arms}
    assert {one.num_questions for one in found.arms} == {16}
    assert (of["text"].gap_recovered.value, of["text"].kl, of["none"].gap_recovered.value) == (1.0, 0.0, 0.0)
    assert of["own"].gap_recovered.value > 0.9 > of["zeroed"].gap_recovered.value
    assert (found.alignment, found.source, found.receiver) == (admitted.manifest.id, "ref-a", "ref-b")
    last = events(bob, "alignment")[-1]
    assert (last["event"], last["map"], last["count"]) == ("alignment.completed", found.alignment, 16)


async def test_only_a_map_to_this_model_is_examined_and_only_by_its_source(
    bob: Services, a: ModelHost, port: VerifiedAlignment, admitted: VerifiedAlignment
) -> None:
    keep(bob, port, admitted)
    with pytest.raises(RequestError, match="is a port; name a map"):
        await examined(bob, port.manifest.id)
    with pytest.raises(UnknownAlignment):
        await examined(bob, "map_unknown")
    with pytest.raises(RequestError, match="10001 questions"):
        await examined(bob, admitted.manifest.id, questions=10_001)
    with pytest.raises(IncompatibleModel, match=r"maps memories of ref-a .*, not of ref-c"):
        await examined(bob, admitted.manifest.id, source="ref-c")
    elsewhere = replace(bob, host=a)
    with pytest.raises(RequestError, match="maps to ref-b, this node hosts ref-a"):
        await examined(elsewhere, admitted.manifest.id)


# What a peer reads


TEXTS = [f"Number {number} has a key." for number in range(9)]


async def test_peer_is_left_while_the_model_here_computes_and_asked_for_the_rest_afterwards(
    bob: Services, alice: Node, a: ModelHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[int] = []
    ended, threads = threading.Event(), set[str]()

    async def asking(services: Services, peer: Any, texts: Any, **named: Any) -> AsyncIterator[Any]:
        requests.append(len(texts))
        try:
            async with aclosing(read_at_peer(services, peer, texts, **named)) as readings:
                async for reading in readings:
                    yield reading
        finally:
            ended.set()

    def unpacking(*positional: Any, **named: Any) -> Slots:
        threads.add(threading.current_thread().name)
        return slots_of(*positional, **named)

    monkeypatch.setattr(fitting, "read_at_peer", asking)
    monkeypatch.setattr(fitting, "slots_of", unpacking)
    monkeypatch.setattr(fitting, "_HELD_UP_S", 0.05)
    hello = alice.transfers.hello(b"n" * 16)

    def read(reader: fitting.PeerReader) -> list[Reading]:
        readings = reader.read(TEXTS)
        first = next(readings)
        assert ended.wait(20)  # while this thread computes
        return [first, *readings]

    async with fitting.read_by_peer(bob, bob.peers.find("alice"), hello, alice.address) as reader:
        found = await bob.runner.run(read, reader)
    for one, other in zip(found, LocalReader(a).read(TEXTS), strict=True):
        assert torch.equal(one.slots.rows, other.slots.rows)
        assert one.spans == other.spans
    assert requests[0] == len(TEXTS)
    assert 0 < requests[1] < len(TEXTS)
    assert threads == {"kvnet-model"}  # which alone owns torch


async def test_peer_whose_sinks_change_between_requests_is_refused(
    bob: Services, alice: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    hello = alice.transfers.hello(b"n" * 16)
    async with fitting.read_by_peer(bob, bob.peers.find("alice"), hello, alice.address) as reader:
        await bob.runner.run(lambda: list(reader.read(TEXTS[:1])))
        monkeypatch.setattr(ModelHost, "num_sinks", 0)
        with pytest.raises(MalformedMessage, match=r"^alice.*0 sinks, the others had 1"):
            await bob.runner.run(lambda: list(reader.read(TEXTS[:1])))


async def test_reader_that_is_left_stops_waiting_for_its_peer(
    bob: Services, alice: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = asyncio.Event()

    async def silent(*_: Any, **__: Any) -> AsyncIterator[Any]:
        await never.wait()
        yield

    monkeypatch.setattr(fitting, "read_at_peer", silent)
    hello = alice.transfers.hello(b"n" * 16)
    peer = bob.peers.find("alice")
    before = asyncio.all_tasks()
    async with fitting.read_by_peer(bob, peer, hello, alice.address) as reader:
        reading = asyncio.ensure_future(bob.runner.run(lambda: list(reader.read(["a text"]))))
        await asyncio.sleep(0.05)
        assert not reading.done()
    with pytest.raises(KvnetError) as ended:
        await reading
    assert ended.value.code == "cancelled"
    await asyncio.sleep(0.05)
    assert asyncio.all_tasks() <= before
