"""verify, inspect, unpack, pack, mem export, mem import: memories as files and packages.

The first three need neither a daemon nor a model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from kvnet.api import NodeStatus, PackagedAlignment, PeerInfo
from kvnet.cli.inspection import Inspection, inspect_memory, inspection_lines
from kvnet.cli.outbox import is_receipt, verify_receipt_file
from kvnet.cli.output import Json, nbytes_text, print_json, printable
from kvnet.cli.picture import glyphs
from kvnet.cli.progress import layer_bar
from kvnet.client import Node
from kvnet.codec.presets import CODECS
from kvnet.errors import MalformedMessage, OperatorError, RequestError
from kvnet.files.documents import is_alignment_path
from kvnet.files.package import Package, is_package
from kvnet.files.reader import MemoryFile
from kvnet.format import strict_json
from kvnet.identity.keys import grouped
from kvnet.types import Tier

MemoryName = Annotated[str, typer.Argument(metavar="MEMORY", help="Id, start of an id, or name.")]
MemoryOrPackage = Annotated[
    Path, typer.Argument(metavar="PATH", help="A memory file (.awkg), a package folder, or its zip.")
]
Verifiable = Annotated[
    Path,
    typer.Argument(metavar="PATH", help="A memory file (.awkg), a package folder, its zip, or a receipt."),
]
Codec = Annotated[
    str, typer.Option(help=f"Encode it first, as one of {', '.join(CODECS)}; as it lies here if not given.")
]


@dataclass(frozen=True, slots=True)
class Verification:
    """A file or package of which every byte was checked; the package's fields are empty for a file."""

    path: str
    kind: str  # memory or package
    memory: str
    memory_signed_by: str
    sections: int
    nbytes: int
    package_id: str
    package_signed_by: str
    files: int


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A package that lies in a folder now."""

    package_id: str
    path: str
    memory: str
    signed_by: str
    nbytes: int
    alignments: tuple[PackagedAlignment, ...]  # and whether the node that runs here took them in


def verify(path: Verifiable, as_json: Json = False) -> None:
    """Check every byte of a memory file, a package or a receipt against its signatures."""
    if is_receipt(path):
        verify_receipt_file(path, as_json=as_json)
        return
    with _percent("verifying") as show:
        found = _verify_package(path, show) if is_package(path) else _verify_memory(path, show)
    if as_json:
        print_json(found)
        return
    print(f"{path}: as it was signed, {nbytes_text(found.nbytes)}")
    if found.kind == "package":
        print(f"{found.package_id} with {found.files} files, listed by {grouped(found.package_signed_by)}")
    print(f"{found.memory} with {found.sections} sections, signed by {grouped(found.memory_signed_by)}")
    print("a signature says who, not that the contents are harmless")


def inspect(path: MemoryOrPackage, as_json: Json = False) -> None:
    """Show what a memory file or a package holds, who signed it, and what each layer cost."""
    found = _inspect(path)
    if as_json:
        print_json(found)
    else:
        print("\n".join(inspection_lines(found, glyphs())))


def unpack(
    package: Annotated[Path, typer.Argument(help="A package, usually a zip.")],
    folder: Annotated[Path, typer.Argument(help="A folder that is new or empty.")],
    as_json: Json = False,
) -> None:
    """Verify a package and write its files to a folder; a node that runs here takes its maps and ports."""
    with Package.open(package) as opened, _percent("unpacking") as show:
        opened.unpack(folder, show)
        files, manifest, signed_by = opened.files, opened.manifest, opened.signed_by
    with MemoryFile.open(folder / manifest.kv_cache_file) as memory:
        memory_id = memory.memory_id
    nbytes = sum(file.size for file in files)
    carries = any(is_alignment_path(file.path) for file in files)
    alignments = _take_alignments(folder) if carries else ()
    done = Unpacked(manifest.package_id, str(folder), memory_id, signed_by, nbytes, alignments)
    if as_json:
        print_json(done)
        return
    print(f"{done.package_id} in {folder}: {len(files)} files, {nbytes_text(nbytes)}, verified")
    _print_alignments(alignments)


def pack(
    memory: MemoryName,
    target: Annotated[Path, typer.Argument(help="A new or empty folder, or a name that ends in .zip.")],
    name: Annotated[str, typer.Option(help="What to call the package; the memory's name if not given.")] = "",
    description: Annotated[str, typer.Option(help="What is in it, for people.")] = "",
    domain: Annotated[str, typer.Option(help="A field of knowledge.")] = "",
    tags: Annotated[str, typer.Option(help="Separated by commas.")] = "",
    license: Annotated[str, typer.Option(help="Carried along, never interpreted.")] = "",
    pricing: Annotated[str, typer.Option(help="A JSON object; carried along, never interpreted.")] = "",
    quality: Annotated[
        bool, typer.Option("--quality/--no-quality", help="Measure how far it is from the uncompressed one.")
    ] = True,
    codec: Codec = "",
    alignment: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="A map or port to carry along; repeatable. A map brings its port."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a memory, where it came from and how good it is as one signed package."""
    with Node() as node:
        report = node.pack(
            memory,
            target.absolute(),
            name=name,
            description=description,
            domain=domain,
            tags=tuple(tag.strip() for tag in tags.split(",") if tag.strip()),
            license=license,
            pricing=_json_object(pricing) if pricing else None,
            quality=quality,
            codec=codec,
            alignments=alignment or (),
        )
    if as_json:
        print_json(report)
        return
    measured = "quality measured" if report.quality_measured else "quality not measured"
    print(
        f"{report.package_id} of {report.memory[:16]} in {target}: {nbytes_text(report.nbytes)}, {measured}"
    )


def mem_export(
    memory: MemoryName,
    file: Annotated[Path, typer.Argument(help="A new file, usually NAME.awkg.")],
    codec: Codec = "",
    as_json: Json = False,
) -> None:
    """Write a memory to a file, under the signature of the node that made it."""
    with Node() as node:
        report = node.export_memory(memory, file.absolute(), codec=codec)
    if as_json:
        print_json(report)
        return
    print(f"{report.memory} in {file}: {nbytes_text(report.nbytes)}, signed by {grouped(report.signed_by)}")
    if report.needs_basis:
        print(
            f"to decode it takes the calibration {report.needs_basis}, which is not in the file; "
            "`kvnet pack` sends both"
        )


def mem_import(path: MemoryOrPackage, as_json: Json = False) -> None:
    """Verify a memory file or a package and keep what is in it on this node."""
    with Node() as node:
        found = node.import_memory(path)
        alignments = node.import_packaged_alignments(path) if is_package(path) else []
        if as_json:
            print_json(found)
            _print_alignments([told for told in alignments if told.problem], to=sys.stderr)
            return
        own = node.status()
        signer = _who(found.signed_by, own, node.peers())
    print(f"{found.id}: {found.tokens} tokens, {nbytes_text(found.nbytes)}, read by {found.model}")
    print(f"signed by {signer}")
    if found.tier == Tier.REFUSED:
        print(f"{own.model}, which this node hosts, cannot use it; host {found.model} to ask it something")
    if found.needs_basis:
        print(
            f"to decode it takes the calibration {found.needs_basis}, which is not here; "
            "import a package of it, or have it sent by a node"
        )
    _print_alignments(alignments)


def _take_alignments(package: Path) -> tuple[PackagedAlignment, ...]:
    """Hand what a package carries to the daemon; without one it is as if each was refused."""
    try:
        with Node() as node:
            return tuple(node.import_packaged_alignments(package))
    except OperatorError as absent:
        with Package.open(package) as opened:
            paths = [file.path for file in opened.files if is_alignment_path(file.path)]
        return tuple(PackagedAlignment(path, "", absent.message) for path in paths)


def _print_alignments(alignments: Sequence[PackagedAlignment], *, to: TextIO | None = None) -> None:
    for told in alignments:
        line = (
            f"{told.path} not taken in: {printable(told.problem)}" if told.problem else f"{told.id} taken in"
        )
        print(line, file=to)


def _who(signer: str, own: NodeStatus, peers: Sequence[PeerInfo]) -> str:
    """A node id, and what this node has to do with it."""
    if signer == own.node_id:
        return f"{grouped(signer)}, this node"
    names = [peer.name for peer in peers if peer.added and peer.node_id == signer]
    return f"{grouped(signer)}, " + (f"the peer {printable(names[0])}" if names else "no peer of this node")


def _verify_memory(path: Path, show: Callable[[int, int], None]) -> Verification:
    with MemoryFile.open(path) as file:
        file.verify(show)
        header, nbytes = file.header, file.head.file_nbytes
        sections = len(header.sections)
        return Verification(
            str(path), "memory", file.memory_id, header.signed_by, sections, nbytes, "", "", 0
        )


def _verify_package(path: Path, show: Callable[[int, int], None]) -> Verification:
    with Package.open(path) as package:
        package.verify(show)
        with package.open_memory() as file:
            memory_id, header = file.memory_id, file.header
        return Verification(
            path=str(path),
            kind="package",
            memory=memory_id,
            memory_signed_by=header.signed_by,
            sections=len(header.sections),
            nbytes=sum(listed.size for listed in package.files),
            package_id=package.manifest.package_id,
            package_signed_by=package.signed_by,
            files=len(package.files),
        )


def _inspect(path: Path) -> Inspection:
    if not is_package(path):
        with MemoryFile.open(path) as file:
            return inspect_memory(file, path)
    with Package.open(path) as package, package.open_memory() as file:
        return inspect_memory(file, path, package)


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = strict_json.loads(text.encode(), what="pricing")
    except (MalformedMessage, UnicodeEncodeError) as exc:
        raise RequestError(f"this is no JSON, {exc}; quote it for your shell") from exc
    if not isinstance(found, dict):
        raise RequestError(f"pricing: {text:.60}, wanted a JSON object")
    return found


@contextmanager
def _percent(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of a hundred steps, fed with bytes done and their total."""
    with layer_bar(title) as show:
        yield lambda done, total: show(100 * done // total, 100)
