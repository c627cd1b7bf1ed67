"""check: whether a memory is what the hosted model makes of its text, or says something else."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from kvnet.api import MemoryCheck
from kvnet.codec.basis import Basis
from kvnet.compat import decide_tier
from kvnet.errors import IncompatibleModel, RequestError, TextMismatch
from kvnet.model.spotcheck import SpotCheck, check_text
from kvnet.types import RawMemory, Scheme, Tier
from kvnetd import encoding
from kvnetd.actions.choosing import recovered_text
from kvnetd.actions.memories import find
from kvnetd.parties import untrusted_source
from kvnetd.services import Services
from kvnetd.store.records import MemoryRecord
from kvnetd.store.texts import attached_text

_SEED_BITS = 53  # what JSON's readers keep of a number


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to check, and against which text."""

    memory: str
    text: str = ""  # the kept one, or else what the memory itself tells
    samples: int = 0  # slots; all of them if 0
    seed: int | None = None  # chosen anew, so that nobody who forges can know it


async def check_memory(services: Services, wanted: Wanted) -> MemoryCheck:
    """Read the memory's text here, and compare.

    Raises UnknownMemory, IncompatibleModel for a memory of another model, RequestError where there is no text
    or nothing to compare in this coding, and as the store's `load`.
    """
    record = await find(services, wanted.memory)
    return await _check(services, record, wanted)


async def require_agreement(services: Services, record: MemoryRecord) -> None:
    """That a memory agrees with its text in every slot. Raises TextMismatch, and as `check_memory`."""
    found = await _check(services, record, Wanted(record.id))
    if found.verdict != "agrees":
        raise TextMismatch(
            f"memory {record.id}: {_what_is_wrong(found)}; do not use it, and ask "
            f"{found.untrusted_source or 'whoever made it'} why"
        )


async def _check(services: Services, record: MemoryRecord, wanted: Wanted) -> MemoryCheck:
    began = time.perf_counter()
    basis = await _trusted_basis(services, record)
    text, text_from = await _text(services, record, wanted.text)
    memory = await services.in_pool(services.memories.load, record)
    seed = secrets.randbits(_SEED_BITS) if wanted.seed is None else wanted.seed
    make = partial(_compare, services, memory, text, basis, wanted.samples, seed)
    async with aclosing(services.runner.stream(make)) as found:
        checked = await anext(found)
    return MemoryCheck(
        memory=record.id,
        verdict="agrees" if checked.agrees else "differs" if checked.is_same_text else "other text",
        text_from=text_from,
        slots=checked.slots,
        samples=checked.samples,
        agreement=checked.agreement,
        worst_error=checked.worst_error,
        tolerance=checked.tolerance,
        seed=checked.seed,
        untrusted_source=untrusted_source(services, record),
        seconds=round(time.perf_counter() - began, 6),
    )


def _compare(
    services: Services,
    memory: RawMemory,
    text: str,
    basis: Basis | None,
    samples: int,
    seed: int,
    cancelled: Callable[[], bool],
) -> Iterator[SpotCheck]:
    host = services.host
    yield check_text(host, memory, text, samples=samples, seed=seed, basis=basis, cancelled=cancelled)


async def _trusted_basis(services: Services, record: MemoryRecord) -> Basis | None:
    """The basis of a memory that can be checked here, None where it needs none.

    Raises IncompatibleModel, and RequestError for a calibration that somebody else made: it can be such that
    every memory looks alike in it.
    """
    header, host = record.header, services.host
    if header.start_pos:
        raise RequestError(
            f"memory {record.id}: goes on behind another, and only whole memories are compared with a text; "
            "have the whole text read here"
        )
    tier = decide_tier((header.fingerprint, header.geometry), (host.fingerprint, host.geometry))
    if header.coding.scheme is Scheme.PORT or tier not in (Tier.EXACT, Tier.IDENTITY):
        raise IncompatibleModel(
            f"memory {record.id}: only {header.fingerprint.model} itself can tell what it makes of a text, "
            f"and {host.name} is hosted here; check it at a node that hosts that model, or use its text"
        )
    if header.coding.scheme is not Scheme.TRANSFORM:
        return None
    own = await encoding.basis_for(services, "compact", required=False)
    if own is None or own.digest != header.coding.basis:
        raise RequestError(
            f"memory {record.id}: was coded with a calibration that this node did not make, and cannot be "
            "checked; ask for it with `kvnet send --codec int8`"
        )
    return own


async def _text(services: Services, record: MemoryRecord, given: str) -> tuple[str, str]:
    """The text to read, and where it is from."""
    if given:
        return given, "given"
    text = await services.in_pool(attached_text, services.memories, record.header)
    return (text, "kept") if text else (await recovered_text(services, record), "recovered")


def _what_is_wrong(found: MemoryCheck) -> str:
    if found.verdict == "other text":
        return f"its tokens are not those of the text {found.text_from} with it"
    changed = round((1 - found.agreement) * found.samples)
    return (
        f"{changed} of {found.samples} slots are not what this node's own reading of its text has "
        f"(off by up to {found.worst_error:.2g}, at most {found.tolerance:.2g} is arithmetic)"
    )
