"""What of a memory travels to a peer: in which coding, mapped or not, and with which text."""

from __future__ import annotations

from kvnet.codec.presets import PRESETS, preset_name
from kvnet.errors import AlignmentRefused, IncompatibleModel, RequestError
from kvnet.transfer.messages import MAX_TEXT_NBYTES, Hello
from kvnet.types import Coding, Compression, Scheme, Tier
from kvnetd import encoding
from kvnetd.alignments import MAPPED, PORT_BITS, UNMAPPED, map_into_port
from kvnetd.services import Services
from kvnetd.store.records import MemoryRecord
from kvnetd.store.texts import attached_text


async def record_to_send(
    services: Services, record: MemoryRecord, codec: str, hello: Hello, tier: Tier, *, has_text: bool
) -> MemoryRecord:
    """What shall travel: coordinates by a map that the peer holds too, else what a map of its own can use.

    Raises RequestError or AlignmentRefused for coordinates that were asked for and cannot be made, and
    IncompatibleModel, before anything is encoded, where the peer decodes none of it.
    """
    is_raw = record.header.coding.scheme is not Scheme.PORT
    if is_raw and tier in MAPPED and codec in PORT_BITS:
        source = record.header.fingerprint
        manifest = map_into_port(services, source, hello.fingerprint, held=hello.maps_from(source))
        if manifest is not None:
            from kvnetd.projection import project  # torch, which a node without a model never loads

            bits = PORT_BITS[codec]
            require_decoder(hello, Coding(Scheme.PORT, bits, bits), {Compression.ZSTD})
            try:
                return await project(services, record, manifest, bits=bits)
            except AlignmentRefused as refused:
                # Not for this memory: whether the peer can use it, the peer says. But no map can use what it
                # was not fitted on.
                if codec or (UNMAPPED in refused.details and not has_text):
                    raise
        if not codec:
            return await encoding.record_to_map(services, record)
    if is_raw and codec and codec in PORT_BITS:
        raise RequestError(
            f"codec {codec}: no admitted map here leads from {record.header.fingerprint.model} into a port "
            f"of {hello.fingerprint.model} that {hello.name} holds too; give one to the other node with "
            "`kvnet align export` and `kvnet align import`, or send with another codec"
        )
    await _require_preset(services, record, codec, hello)
    return await encoding.record_to_send(services, record, codec)


async def text_of(services: Services, record: MemoryRecord) -> str:
    """The text that is kept beside a memory, or else what its own model reads out of it.

    Raises RequestError where there is neither, or one too long to send.
    """
    if record.header.start_pos:
        raise RequestError(
            f"memory {record.id}: goes on behind another, and its text alone says little; send it without"
        )
    text = await services.in_pool(attached_text, services.memories, record.header)
    text = text or await recovered_text(services, record)
    nbytes = len(text.encode())
    if nbytes > MAX_TEXT_NBYTES:
        raise RequestError(
            f"memory {record.id}: its text has {nbytes} bytes, at most {MAX_TEXT_NBYTES} go with a memory; "
            "send it without"
        )
    return text


async def recovered_text(services: Services, record: MemoryRecord) -> str:
    """A whole memory tells its text to the model that made it (SECURITY.md).

    Raises RequestError where it does not, or another model made it.
    """
    header = record.header
    if header.fingerprint != services.host.fingerprint or header.coding.scheme is Scheme.PORT:
        raise RequestError(
            f"memory {record.id}: no text is kept beside it; read it again with `kvnet remember --keep-text`"
        )
    from kvnet.model.recover import recover_text  # torch

    memory = await services.in_pool(services.memories.load, record)
    basis = await encoding.basis_of(services, header.coding, header.geometry)
    return await services.runner.run(recover_text, services.host, memory, basis=basis)


async def _require_preset(services: Services, record: MemoryRecord, codec: str, hello: Hello) -> None:
    """`require_decoder` of a coding that would have to be made first: before it is."""
    name = await encoding.preset_to_send(services, record, codec)
    if name is not None:
        require_decoder(hello, PRESETS[name].coding, {PRESETS[name].compression})


def require_decoder(hello: Hello, coding: Coding, used: set[Compression]) -> None:
    """Require that a peer decodes what would be sent. Raises IncompatibleModel, in names of codecs."""
    limits = hello.limits
    names = {choice.name.lower() for choice in used}
    if coding.scheme not in limits.schemes:
        missing = preset_name(coding)
        taken = [name for name, preset in PRESETS.items() if preset.coding.scheme in limits.schemes]
    elif names - set(limits.compressions):
        missing, taken = min(names - set(limits.compressions)), list(limits.compressions)
    else:
        return
    only = ", ".join(taken) or "nothing"
    raise IncompatibleModel(f"{hello.name}: does not decode {missing}, only {only}; send with another codec")
