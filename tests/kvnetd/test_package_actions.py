"""What the daemon does for packages: it signs lists of files and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from kvnetd.actions import files, packages
from kvnetd.services import Services

from kvnet.errors import MalformedPackage, RequestError
from kvnet.files.package import PACKAGE_TYPE, Package, write_package
from kvnet.identity.signing import verify_message
from kvnet.types import canonical_json
from tests.builders import MAP_ID, make_memory, make_port
from tests.files.packages import make_parts, write_memory
from tests.kvnetd.nodes import MEMORY, making


def test_the_list_of_a_package_is_signed(services: Services, tmp_path: Path) -> None:
    parts = make_parts(write_memory(tmp_path / "m.awkg"))
    write_package(tmp_path / "p", parts, lambda body: packages.sign(services, body))
    with Package.open(tmp_path / "p") as package:
        assert package.signed_by == services.key.node_id


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"anything",
        b"[]",
        canonical_json([{"path": "x", "sha256": "0" * 64, "size": 1}]),
        b"[" * 2_000_000,
    ],
    ids=["empty", "words", "no files", "no file of a package", "huge"],
)
def test_other_bytes_are_not_signed(services: Services, body: bytes) -> None:
    with pytest.raises(MalformedPackage):
        packages.sign(services, body)


def test_what_is_signed_is_of_the_type_of_packages(services: Services, tmp_path: Path) -> None:
    parts = make_parts(write_memory(tmp_path / "m.awkg"))
    bodies: list[bytes] = []
    write_package(tmp_path / "p", parts, lambda body: bodies.append(body) or packages.sign(services, body))
    signed = packages.sign(services, bodies[0])
    verify_message(signed, type_=PACKAGE_TYPE, max_nbytes=len(bodies[0]))


async def test_a_memory_without_a_codec_is_packed_as_it_lies_here(services: Services) -> None:
    record = services.memories.put(MEMORY, making(), services.key)
    assert await packages.coded(services, record.id, "") == record
    assert await packages.coded(services, record.id, "exact") == record
    with pytest.raises(RequestError, match="none of exact, int8"):
        await packages.coded(services, record.id, "int9")


async def test_a_memory_in_coordinates_is_told_of_as_not_measured(services: Services) -> None:
    coding, port = make_port()
    services.bases.put(port)
    services.memories.put(MEMORY, making(), services.key)
    mapped = make_memory(coding=coding, derived_from=MEMORY.header.id)
    record = services.memories.put(mapped, making(alignment=MAP_ID), services.key)
    assert (await packages.lineage(services, record.id, measured=True)).measurements == ()


async def test_a_memory_that_needs_no_calibration_exports_none(services: Services) -> None:
    record = services.memories.put(MEMORY, making(), services.key)
    with pytest.raises(RequestError, match="coded without a calibration"):
        await anext(files.export(services, record.id, basis=True))
