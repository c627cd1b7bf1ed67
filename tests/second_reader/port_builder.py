"""An independent writer of memories in coordinates of a port, and of a file that can stand for one.

Imports nothing of kvnet. Source: FORMAT.md §8.5.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from tests.second_reader import port
from tests.second_reader.awkg_builder import PACKERS, Draft, make_header
from tests.second_reader.basis import write_basis
from tests.second_reader.strict import base32, sha256_text


def make_port(rank: int, row_width: int = 64) -> bytes:
    """A file with a port's tensors, all of them zero, and no manifest: enough to read codes by."""
    shapes = {"basis": (rank, row_width), "mean": (row_width,), "project": (row_width, rank)}
    shapes |= {"step8": (rank,), "step4": (rank,)}
    return write_basis({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})


def port_draft(seed: int, *, rank: int = 3, bits: int = 8, wanted: str = "none", **changes: Any) -> Draft:
    """Random coordinates of some slots, packed and described; `changes` go to the header."""
    rng = random.Random(seed)
    artefact = make_port(rank)
    coding = {"scheme": "port", "keyBits": bits, "valueBits": bits}
    coding |= {"basis": sha256_text(artefact), "basisNbytes": len(artefact)}
    plain: dict[str, Any] = {"keySpace": "content", "quantization": f"port{bits}"}
    plain["wMatrixReference"] = "map_" + base32(rng.randbytes(32))
    header = make_header({"scheme": "raw"}, **(plain | changes)) | {"coding": coding, "compression": wanted}
    draft = Draft(header, port.plan(header["sequenceLength"]), basis=artefact)
    share = rng.choice([0, 0.2, 1])
    for _, _, start, stop in draft.plan:
        sent = [rng.random() < share for _ in range(start, stop)]
        draft.raws.append(pack_chunk(sent, [_row(rng, rank, bits) for one in sent if one], bits))
        draft.codecs.append(wanted)
    return draft.pack().describe()


def pack_chunk(sent: list[bool], rows: list[list[int]], bits: int) -> bytes:
    """A bitmap of the slots that are sent, and their codes."""
    marks = sum(1 << i for i, one in enumerate(sent) if one)
    packed = marks.to_bytes((len(sent) + 7) // 8, "little")
    for row in rows:
        number = sum((code % (1 << bits)) << (bits * j) for j, code in enumerate(row))
        packed += number.to_bytes((len(row) * bits + 7) // 8, "little")
    return packed


def random_port_draft(seed: int) -> Draft:
    """A valid file of random length, rank, bits and compression; the same for the same seed."""
    rng = random.Random(seed)
    return port_draft(
        seed,
        rank=rng.choice([1, 2, 3, 8, 17, port.MAX_RANK if seed % 20 == 0 else 5]),
        bits=rng.choice([4, 8]),
        wanted=rng.choice([codec for codec in PACKERS if codec != "split"]),
        sequenceLength=rng.choice([1, 7, 8, 9, rng.randint(10, 60), rng.randint(990, 2010)]),
        numLayers=rng.randint(1, 3),
        dtype=rng.choice(["float32", "float16", "bfloat16"]),
        rope={"ropeType": rng.choice(["default", "yarn", "new"]), "ropeTheta": rng.choice([0, 1e4, 1e99])},
        derivedFrom="mem_" + base32(rng.randbytes(32)),
    )


def _row(rng: random.Random, rank: int, bits: int) -> list[int]:
    most = (1 << (bits - 1)) - 1
    return [rng.randint(-most, most) for _ in range(rank)]
