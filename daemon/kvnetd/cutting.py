"""The last tokens of a memory as a memory of their own, for a receiver that reads the first ones itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kvnet.codec.basis import Basis
from kvnet.codec.presets import preset_name
from kvnet.errors import RequestError
from kvnet.model.host import ModelHost
from kvnet.model.memory import cut_memory, digest_tokens, encode_memory
from kvnet.types import RawMemory
from kvnetd import encoding
from kvnetd.services import Services
from kvnetd.store.records import MemoryRecord


async def tokens_of(services: Services, record: MemoryRecord, text: str) -> tuple[int, ...]:
    """The tokens of a memory, by the text that it is of. Raises RequestError where they are not its own."""
    header, host = record.header, services.host
    if header.start_pos or header.fingerprint != host.fingerprint:
        raise RequestError(
            f"memory {record.id}: only a whole memory of the hosted model is sent as text; "
            "send it with `--mode transfer`"
        )
    token_ids = tuple(await services.in_pool(host.tokenize_context, text))
    if digest_tokens(token_ids) != header.token_digest:
        raise RequestError(
            f"memory {record.id}: the text beside it is cut into other tokens; send it with `--mode transfer`"
        )
    return token_ids


async def tail_of(
    services: Services, record: MemoryRecord, token_ids: Sequence[int], start: int, codec: str
) -> MemoryRecord:
    """What is behind the first `start` tokens, in a codec; kept beside the memory, and gone with it."""
    preset = await _preset_of(services, record, codec)
    basis = await encoding.basis_for(services, preset)
    for known in services.memories.encodings_of(record.id):
        same = preset_name(known.header.coding) == preset
        if same and known.header.start_pos == start and known.id not in services.memories.damaged:
            return known
    source_basis = await encoding.basis_of(services, record.header.coding)
    memory = await services.in_pool(services.memories.load, record)
    cut = await services.runner.run(
        _cut, services.host, memory, token_ids, start, preset, basis, source_basis
    )
    compression, level = encoding.compression_for(cut.header.coding, preset)
    making = encoding.new_making(services, record.notes, compression, level)
    return await encoding.keep_encoding(services, record, cut, making)


async def _preset_of(services: Services, record: MemoryRecord, codec: str) -> str:
    """As `encoding.preset_to_send`, with a name for what stays as it is."""
    preset = await encoding.preset_to_send(services, record, codec)
    return preset or "exact"


def _cut(
    host: ModelHost,
    memory: RawMemory,
    token_ids: Sequence[int],
    start: int,
    preset: str,
    basis: Basis | None,
    source_basis: Basis | None,
) -> RawMemory:
    tail = cut_memory(memory, token_ids, start, basis=source_basis)
    coded = encode_memory(tail, preset, basis=basis)
    return replace(coded, header=replace(coded.header, derived_from=memory.header.id))
