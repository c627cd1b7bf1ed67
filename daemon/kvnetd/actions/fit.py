"""align port and fit: make this model's port, and fit a map to it from another model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from kvnet.align import recipe
from kvnet.align.artefacts import load_map, load_port, sign_alignment
from kvnet.align.corpus import Lesson, digest_lessons, read_lessons
from kvnet.align.fit_state import FitState
from kvnet.align.map import AlignmentMap
from kvnet.align.port import Port
from kvnet.align.reading import Reader
from kvnet.alignment import LayerStrategy, MapManifest, PortManifest
from kvnet.api import AlignmentInfo, Progress
from kvnet.errors import IncompatibleModel, RequestError, StateCorrupt, TooFewSamples
from kvnet.files.alignments import VerifiedAlignment
from kvnet.plan import MAX_PORT_RANK
from kvnet.types import Geometry, to_plain
from kvnet.version import VERSION
from kvnetd.actions.align import describe
from kvnetd.actions.send import say_hello
from kvnetd.alignments import known_map
from kvnetd.fitting import Cancelled, Told, read_by_peer, read_here, working
from kvnetd.holding import holding
from kvnetd.kept import FITS, KeptState
from kvnetd.mapping import loaded_map
from kvnetd.services import Services, utc_seconds
from kvnetd.store.alignments import AlignmentRecord

T = TypeVar("T")

LEAST_LESSONS: Final = 16
MOST_LESSONS: Final = 100_000


@dataclass(frozen=True, slots=True)
class FitRequest:
    """From which model, read by a `peer` or by `source` on this machine, and on what."""

    peer: str = ""
    source: str = ""
    corpus: str = ""  # absolute path of a text file; the shipped lessons if empty
    lessons: int = 0  # at most so many; the corpus' all, or the recipe's number, if 0
    no_anchors: bool = False  # map every slot
    rows: bool = False  # end in the receiver's rows instead of its port
    layers: str = ""  # a kvnet.alignment.LayerStrategy; all of the source's if empty
    head_local: bool = False  # predict a head from its namesake alone; of rows


async def make_port(services: Services, *, rank: int = 0) -> AlignmentInfo:
    """Make and keep the hosted model's port of `rank` coordinates (0: the recipe's number).

    Raises RequestError, TooFewSamples, UnsupportedModel, StoreFull, and TooBusy while a fit goes on.
    """
    if not 0 <= rank <= MAX_PORT_RANK:
        raise RequestError(f"rank {rank}: a port has 1 to {MAX_PORT_RANK} coordinates")
    with (
        services.log.span("alignment", receiver=services.host.name) as span,
        holding(services, "a port"),
    ):
        record, _ = await _new_port(services, rank)
        span.add(port=record.id, rows=record.manifest.num_rows)
    return describe(services, record)


async def fit(services: Services, request: FitRequest) -> AsyncGenerator[Progress | AlignmentInfo, None]:
    """Fit a map to the hosted model and keep it, whatever its gate says; what it says of itself comes last.

    A fit that ends before its time leaves its sums, and the same request goes on from them. No map that is
    here already is touched; over the wire, one that is in use is judged on the same readings (`gated`).
    Raises RequestError, TooFewSamples, SingularStatistics, UnalignableTokens, NotFinite, IncompatibleModel,
    Cancelled, TooBusy while another fit goes on, and what the peer or the loader raises.
    """
    with (
        services.log.span("alignment", receiver=services.host.name, peer=request.peer) as span,
        holding(services, "a fit"),
    ):
        options = _options_of(request)
        lessons = await services.in_pool(
            lessons_of,
            request.corpus,
            request.lessons,
            recipe.fit_lessons,
            default=recipe.DEFAULT_LESSONS,
        )
        async with reader_of(services, request.peer, request.source) as reader:
            span.add(source=reader.fingerprint.model, lessons=len(lessons))
            ending = await _ending(services, rows=request.rows)
            standing = await standing_map(services, reader, request.peer)
            made: AlignmentMap | None = None
            act = _fitting(services, reader, request.peer, lessons, ending, options, standing)
            steps = working(services, act)
            async with aclosing(steps):
                async for step in steps:
                    if isinstance(step, Progress):
                        yield step
                    else:
                        made = step
            if made is None:
                raise AssertionError("the fit ended without a map")
            verified = await services.runner.run(signed, services, made, ending.port)
            record = await services.in_store(services.alignments.put, verified)
        gate = made.manifest.gate
        span.add(
            map=record.id,
            port=ending.port_id,
            rows=made.manifest.num_rows,
            admitted=gate.admitted,
            gap_recovered=gate.gap_recovered.value,
        )
    yield describe(services, record)


def _options_of(request: FitRequest) -> recipe.MapOptions:
    """Raises RequestError for a strategy that there is not, and for heads that no port tells apart."""
    try:
        strategy = LayerStrategy(request.layers) if request.layers else None
    except ValueError as exc:
        raise RequestError(f"layers {request.layers!r:.40}: none of {', '.join(LayerStrategy)}") from exc
    if request.head_local and not request.rows:
        raise RequestError(
            "a port's coordinates are of all heads, so only a map into rows is head-local; add --rows"
        )
    return recipe.MapOptions(anchors=not request.no_anchors, strategy=strategy, head_local=request.head_local)


@dataclass(frozen=True, slots=True)
class _Ending:
    """What a map shall end in: a port, or rows where `port` is None."""

    port: Port | None
    port_id: str
    critical_layers: tuple[int, ...] | None  # None: not known yet


async def _ending(services: Services, *, rows: bool) -> _Ending:
    """The hosted model's port, made now if there is none."""
    if rows:
        return _Ending(None, "", None)
    critical_layers = None
    record = services.alignments.find_port(services.host.fingerprint)
    if record is None:
        record, critical_layers = await _new_port(services, 0)
    verified = await services.in_pool(services.alignments.load, record)
    return _Ending(await services.runner.run(load_port, verified), record.id, critical_layers)


async def _new_port(services: Services, rank: int) -> tuple[AlignmentRecord, tuple[int, ...]]:
    """A port of the hosted model, kept, and the layers in which the model's answers read."""

    def make(cancelled: Cancelled) -> tuple[VerifiedAlignment, tuple[int, ...]]:
        made = recipe.make_port(
            services.host, created_at=utc_seconds(), rank=rank or recipe.DEFAULT_RANK, cancelled=cancelled
        )
        verified = sign_alignment(made.manifest, made.port.to_tensors(), services.key)
        load_port(verified)  # a number that halves cannot hold is told now, and nothing is kept
        return verified, made.critical_layers

    verified, critical_layers = await _result_of(services, make)
    return await services.in_store(services.alignments.put, verified), critical_layers


def _fitting(
    services: Services,
    reader: Reader,
    read_by: str,
    lessons: Sequence[Lesson],
    ending: _Ending,
    options: recipe.MapOptions,
    standing: recipe.Standing | None,
) -> Callable[[Told, Cancelled], AlignmentMap]:
    """The fit as the model's thread does it."""
    host = services.host
    depends_on = {
        "kvnet": VERSION,
        "source": reader.fingerprint.digest,
        "reader": read_by,  # what one peer said is never mixed with what another does
        "receiver": host.fingerprint.digest,
        "port": ending.port_id,
        "options": to_plain(options),
        "corpus": digest_lessons(lessons),
    }

    def act(told: Told, cancelled: Cancelled) -> AlignmentMap:
        kept = KeptState(services.config.home.root / FITS, depends_on, FitState)
        state = kept.load()

        def saved(state: FitState) -> None:
            # After what it learned first, and after its last lesson, comes what no state is kept of.
            kept.note(state, at_once=state.num_done in (0, len(lessons)))

        try:
            made = recipe.make_map(
                reader,
                host,
                lessons,
                created_at=utc_seconds(),
                port=ending.port,
                port_id=ending.port_id,
                critical=ending.critical_layers or recipe.find_critical_layers(host, cancelled=cancelled),
                options=options,
                standing=standing,
                state=state,
                progress=told,
                saved=saved,
                cancelled=cancelled,
            )
        except BaseException:
            kept.save()
            raise
        kept.drop()
        return made

    return act


async def standing_map(services: Services, reader: Reader, peer_name: str) -> recipe.Standing | None:
    """The map in use from the model that a peer says it reads with; a model of this machine is no claim.

    Raises IncompatibleModel for a peer that says its model has another shape than that map knows it with.
    """
    if not peer_name:
        return None
    while (manifest := known_map(services, reader.fingerprint, services.host.fingerprint)) is not None:
        try:
            loaded = await loaded_map(services, manifest)
        except StateCorrupt:
            continue  # damaged, and passed over from now on
        found, known = (_shape(geometry) for geometry in (reader.geometry, manifest.source_geometry))
        if found != known:
            raise IncompatibleModel(
                f"{peer_name}: says that {reader.fingerprint.model} has {found} layers, KV heads and "
                f"head_dim, {manifest.id} knows it with {known}; ask whoever runs that node"
            )
        return recipe.Standing(loaded.alignment, loaded.port)
    return None


def _shape(geometry: Geometry) -> tuple[int, int, int]:
    return geometry.num_layers, geometry.num_kv_heads, geometry.head_dim


def signed(services: Services, made: AlignmentMap, port: Port | None) -> VerifiedAlignment:
    """A map's file under this node's key. Raises MalformedFile for numbers that it cannot hold."""
    verified = sign_alignment(made.manifest, made.to_tensors(), services.key)
    load_map(verified, port)  # a number that halves cannot hold is told now, and nothing is kept
    return verified


def map_to_here(services: Services, wanted: str, act: str) -> MapManifest:
    """The map of this id, to the hosted model; `act` is what shall be done with it.

    Raises UnknownAlignment, and RequestError for a port or a map to another model.
    """
    manifest = services.alignments.find(wanted).manifest
    if isinstance(manifest, PortManifest):
        raise RequestError(f"{manifest.id}: is a port; name a map, see `kvnet align ls`")
    if manifest.receiver.digest != services.host.fingerprint.digest:
        raise RequestError(
            f"{manifest.id}: maps to {manifest.receiver.model}, this node hosts {services.host.name}; "
            f"{act} it on a node that hosts the former"
        )
    return manifest


def require_source(reader: Reader, manifest: MapManifest) -> None:
    """Raise IncompatibleModel unless the reader's model is the one that the map leads from."""
    if reader.fingerprint.digest != manifest.source.digest:
        raise IncompatibleModel(
            f"{manifest.id}: maps memories of {manifest.source.model} {manifest.source.digest[:19]}…, not of "
            f"{reader.fingerprint.model} {reader.fingerprint.digest[:19]}…; name who hosts the former"
        )


@asynccontextmanager
async def reader_of(services: Services, peer_name: str, source: str) -> AsyncIterator[Reader]:
    """Who reads the texts: an added peer's model, or a second one on this machine, gone after the block."""
    if bool(peer_name) == bool(source):
        raise RequestError(
            "name who reads the texts: a peer (--peer), or a model here (--source), one of them"
        )
    if source:
        local = await read_here(services, source)
        _refuse_own(services, local)
        yield local
        return
    peer = services.peers.find(peer_name)
    hello, address, _ = await say_hello(services, peer)
    async with read_by_peer(services, peer, hello, address) as reader:
        _refuse_own(services, reader)
        yield reader


def _refuse_own(services: Services, reader: Reader) -> None:
    if reader.fingerprint.digest == services.host.fingerprint.digest:
        raise RequestError(
            f"{reader.fingerprint.model} is the very model that is hosted here, its memories need no map; "
            "name another model"
        )


def lessons_of(
    corpus: str,
    count: int,
    make: Callable[[int], Sequence[Lesson]],
    *,
    default: int,
    most: int = MOST_LESSONS,
) -> Sequence[Lesson]:
    """At most `count` lessons, of a text file or as `make` makes them: `default` of these if count is 0.

    Blocks. Raises RequestError, TooFewSamples.
    """
    if not 0 <= count <= most:
        raise RequestError(f"{count} lessons: {LEAST_LESSONS} to {most} are taken")
    if corpus:
        path = Path(corpus)
        if not path.is_absolute():
            raise RequestError(f"corpus {corpus:.200}: give the file's absolute path")
        try:
            found: Sequence[Lesson] = read_lessons(path)[: count or None]
        except OSError as exc:
            raise RequestError(f"corpus {path}: cannot be read ({exc.strerror}); name a text file") from exc
    else:
        found = make(count or default)
    if len(found) < LEAST_LESSONS:
        raise TooFewSamples(f"{len(found)} texts for a map, at least {LEAST_LESSONS}; give more")
    return found


async def _result_of(services: Services, act: Callable[[Cancelled], T]) -> T:
    """`act(cancelled)` on the model's thread; it is cancelled when the caller is."""
    steps = working(services, lambda _, cancelled: act(cancelled))
    async with aclosing(steps):
        (found,) = [step async for step in steps if not isinstance(step, Progress)]
    return found
