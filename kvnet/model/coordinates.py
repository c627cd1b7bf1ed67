"""A memory in the coordinates of a port: made from codes, and read back. Knows no port, no map, no model.

What the codes are worth, and which rows they expand to, is the port's to say. Source: FORMAT.md §8.5.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from kvnet.codec.coordinates import pack_coordinates, unpack_coordinates
from kvnet.errors import MalformedChunk, RequestError
from kvnet.model.memory import digest_chunks
from kvnet.plan import check_coding, plan_memory
from kvnet.types import Coding, KeySpace, MemoryHeader, RawMemory, Scheme


def memory_of_coordinates(
    source: MemoryHeader,
    codes: torch.Tensor,
    slot_indices: torch.Tensor,
    *,
    bits: int,
    port_digest: str,
    port_nbytes: int,
) -> RawMemory:
    """The memory `source` as coordinates in a port: a memory of its own, `derived_from` that one.

    `codes` is int8 [n_sent, rank], within ±127 (8 bits) or ±7 (4 bits); row i is of slot `slot_indices[i]`
    (int64 [n_sent], ascending, below seq_len). The port is named by the digest and size of its artefact.
    Raises RequestError for a port that no coding can name, ValueError for codes or slots of another form.
    """
    header = replace(
        source,
        key_space=KeySpace.CONTENT,
        coding=Coding(Scheme.PORT, bits, bits, basis=port_digest, basis_nbytes=port_nbytes),
        attention_heads=0,
        derived_from=source.id,
    )
    if problem := check_coding(header):
        raise RequestError(f"the memory cannot be sent in coordinates: {problem}; make the port again")
    ends = slot_indices[[0, -1]].tolist() if len(slot_indices) else []
    ascending = bool((slot_indices.diff() > 0).all())
    if not ascending or any(not 0 <= slot < source.seq_len for slot in ends):
        raise ValueError(f"slots from {ends} of {source.seq_len} are not ascending within the memory")
    sent = torch.zeros(source.seq_len, dtype=torch.bool)
    sent[slot_indices.cpu()] = True
    chunks, done = [], 0
    for key in plan_memory(header):
        part = sent[key.start : key.stop]
        until = done + int(part.sum())
        chunks.append(pack_coordinates(codes[done:until], part, bits))
        done = until
    if done != len(codes):
        raise ValueError(f"codes of {len(codes)} slots, {done} are sent")
    return RawMemory(replace(header, content_digest=digest_chunks(chunks)), tuple(chunks))


def coordinates_of(memory: RawMemory, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inverse of `memory_of_coordinates`: (codes int8 [n_sent, rank], slot indices int64 [n_sent]).

    `rank` is that of the port the memory names. Raises MalformedChunk for a memory whose chunks contradict
    its header, the rank or FORMAT.md §8.5.
    """
    header = memory.header
    problem = check_coding(header)
    if problem or header.coding.scheme is not Scheme.PORT:
        problem = problem or f"its coding is {header.coding.scheme}"
        raise MalformedChunk(f"the memory holds no coordinates of a port: {problem}; ask for it again")
    plan = plan_memory(header)
    if len(memory.chunks) != len(plan):
        raise MalformedChunk(
            f"a memory of {header.seq_len} slots has {len(memory.chunks)} chunks, its header needs "
            f"{len(plan)}; ask for it again"
        )
    codes, slots = [], []
    for key, chunk in zip(plan, memory.chunks, strict=True):
        part, sent = unpack_coordinates(chunk, key.stop - key.start, rank, header.coding.key_bits)
        codes.append(part)
        slots.append(sent.nonzero().flatten() + key.start)
    return torch.cat(codes), torch.cat(slots)
