"""Packages whose zip or folder breaks a rule of FORMAT.md §9; the list inside is right and signed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tests.hostile.bases import BAD_SIGNATURE, OK, Case
from tests.hostile.bases import MALFORMED_PACKAGE as MALFORMED
from tests.hostile.frames import deflate_zeros
from tests.hostile.recipes_package import ALIGNMENT, plain_files
from tests.hostile.zips import DEFLATE, FIFO, FOLDER, SYMBOLIC_LINK, Entry, write_zip
from tests.second_reader.package_builder import sign_package

_MIB = 1 << 20


def cases() -> Iterator[Case]:
    """Every case of this page."""
    yield from _names()
    yield from _kinds()
    yield from _repeats()
    yield from _fields()
    yield from _bombs()
    yield from _records()
    yield from _folders()


def _entries() -> list[Entry]:
    return [Entry(path, data) for path, data in sign_package(plain_files()).items()]


def _zip(name: str, entries: list[Entry], code: str = MALFORMED, **fields: Any) -> Case:
    return Case(f"zip_{name}", code, ".zip", {"": write_zip(entries, **fields)})


def _with(path: str, **fields: Any) -> list[Entry]:
    """The plain entries, with one of them changed."""
    return [replace(entry, **fields) if entry.name == path else entry for entry in _entries()]


def _names() -> Iterator[Case]:
    names: dict[str, str | bytes] = {
        "up": "../x",
        "far_up": "../../../../etc/passwd",
        "up_within": "alignments/../../x.bin",
        "around": "alignments/../manifest2.json",
        "absolute": "/etc/passwd",
        "absolute_bin": "/alignments/x.bin",
        "double_slash": "alignments//x.bin",
        "dot": "./x",
        "dot_only": ".",
        "up_only": "..",
        "backslash": "alignments\\x.bin",
        "backslash_up": "..\\x",
        "drive": "C:\\x",
        "drive_slash": "C:/x",
        "share": "\\\\host\\share",
        "nul": b"alignments/x.bin\0.txt",
        "nul_only": b"\0",
        "empty": "",
        "newline": "alignments/x\n.bin",
        "blank_behind": "manifest.json ",
        "dot_behind": "manifest.json.",
        "stream": "manifest.json:x",
        "device": "alignments/CON",
        "long": "alignments/" + "a" * 300 + ".bin",
        "latin_1": b"alignments/\xe9.bin",
        "utf_8": "alignments/\u00e9.bin",
        "right_to_left": "alignments/\u202egnp.bin",
        "within_the_folder": "package/manifest.json",
    }
    for name, path in names.items():
        yield _zip(f"name_{name}", [*_entries(), Entry(path, b"hostile")])
    nested = [replace(entry, name=f"package/{entry.name!s}") for entry in _entries()]
    yield _zip("with_the_folders_own_name", nested)


def _kinds() -> Iterator[Case]:
    link = Entry("alignments/link.bin", b"../../../etc/passwd", mode=SYMBOLIC_LINK)
    yield _zip("symbolic_link", [*_entries(), link])
    yield _zip("listed_file_is_a_link", _with(ALIGNMENT, mode=SYMBOLIC_LINK))
    yield _zip("listed_file_is_a_fifo", _with(ALIGNMENT, mode=FIFO))
    yield _zip("folder_entry", [Entry("alignments/", b"", mode=FOLDER), *_entries()])
    yield _zip("folder_entry_with_data", [Entry("codec/", b"data", mode=FOLDER), *_entries()])


def _repeats() -> Iterator[Case]:
    entries = _entries()
    for name in ("manifest.json", "kv-cache.awkg", "signature.sig", ALIGNMENT):
        again = next(entry for entry in entries if entry.name == name)
        label = name.replace("/", "_")
        yield _zip(f"{label}_twice", [*entries, again])
        yield _zip(f"{label}_twice_with_other_bytes", [replace(again, data=b"{}"), *entries])
    upper = sign_package(plain_files() | {"alignments/TO-B.bin": b"upper"})
    yield _zip("names_differ_in_case_only", [Entry(path, data) for path, data in upper.items()])
    manifest = next(entry for entry in entries if entry.name == "manifest.json")
    yield _zip("manifest_twice_in_other_case", [*entries, replace(manifest, name="MANIFEST.JSON")])
    aliased = Entry("alignments/alias.bin", b"alias", offset=0)
    yield _zip("two_names_for_one_entry", [*entries, aliased])


def _fields() -> Iterator[Case]:
    for name, flags in {"encrypted": 1, "strongly_encrypted": 0x41}.items():
        yield _zip(name, _with(ALIGNMENT, flags=flags))
    for method in (1, 9, 14, 93, 99, 65535):
        yield _zip(f"method_{method}", _with(ALIGNMENT, method=method))
    data = b"alignment"
    stream = b"\x01\x09\x00\xf6\xff" + data  # one stored deflate block
    yield _zip("valid_deflated", _with(ALIGNMENT, method=DEFLATE, stored=stream), OK)
    streams = {
        "noise": b"\xff" * 12,
        "truncated": stream[:-1],
        "never_ends": b"\x00" + stream[1:],
        "two_streams": stream + stream,
        "bytes_behind": stream + b"\0",
        "empty": b"",
        "zlib_wrapped": b"\x78\x9c" + stream,
        "one_byte_less": b"\x01\x08\x00\xf7\xff" + data[:-1],
        "one_byte_more": b"\x01\x0a\x00\xf5\xff" + data + b"!",
    }
    for name, stored in streams.items():
        yield _zip(f"deflated_{name}", _with(ALIGNMENT, method=DEFLATE, stored=stored))
    for size in (0, 8, 10):  # sizes that a stream of this length could have: they differ from the list
        lying = _with(ALIGNMENT, method=DEFLATE, stored=stream, size=size)
        yield _zip(f"deflated_declares_{size}_of_9", lying, BAD_SIGNATURE)
    for size in (10, 2**31, 2**32 - 2):
        yield _zip(f"stored_declares_{size}_of_9", _with(ALIGNMENT, size=size))
    for size in (2**20, 2**32 - 2):
        yield _zip(f"packed_size_{size}", _with(ALIGNMENT, packed_size=size))
    yield _zip("local_name_is_another", _with(ALIGNMENT, local_name=b"alignments/to-c.bin"))
    for size in (0, 8, 10, 2**32 - 1):
        yield _zip(f"local_size_{size}_of_9", _with(ALIGNMENT, local_size=size))
    yield _zip("local_name_goes_up", _with(ALIGNMENT, local_name=b"../../../../to-b.bin"))
    yield _zip("offset_beyond_the_end", [*_entries(), Entry("alignments/z.bin", b"z", offset=2**31)])


def _bombs() -> Iterator[Case]:
    big = 2 * _MIB
    stream = deflate_zeros(big)
    lying = _with(ALIGNMENT, method=DEFLATE, stored=stream)
    yield _zip("bomb_that_declares_9_bytes", lying)
    for name in ("manifest.json", "signature.sig"):
        files = sign_package(plain_files() | ({} if name == "signature.sig" else {name: bytes(big)}))
        bomb = [Entry(path, data) for path, data in files.items() if path != name]
        bomb.append(Entry(name, bytes(big), stored=stream, method=DEFLATE))
        yield _zip(f"bomb_as_{name}", bomb)
        plain = sign_package(plain_files())
        bomb = [Entry(path, data) for path, data in plain.items() if path != name]
        bomb.append(Entry(name, plain[name], stored=stream, method=DEFLATE))
        yield _zip(f"bomb_as_{name}_that_declares_its_size", bomb)


def _records() -> Iterator[Case]:
    plain = write_zip(_entries())
    records = {
        "byte_before": b"\0" + plain,
        "program_before": b"#!/bin/sh\nexit\n" + plain,
        "byte_behind": plain + b"\0",
        "zip_behind": plain + plain,
        "truncated": plain[:-1],
        "without_end_record": plain[:-22],
        "end_record_alone": plain[-22:],
        "cut_in_half": plain[: len(plain) // 2],
    }
    for name, data in records.items():
        yield Case(f"zip_{name}", MALFORMED, ".zip", {"": data})
    entries = _entries()
    yield _zip("comment", entries, comment=b"hidden")
    yield _zip("bytes_between_entries", _with(ALIGNMENT, before=b"hidden"))
    yield _zip("bytes_before_the_first_entry", [replace(entries[0], before=b"hidden"), *entries[1:]])
    for count in (0, len(entries) - 1, len(entries) + 1, 65535):
        yield _zip(f"says_it_has_{count}_entries", entries, count=count)
    for shift in (-1, 1, 2**31):
        yield _zip(f"directory_shifted_by_{shift}", entries, directory_shift=shift)


def _folders() -> Iterator[Case]:
    files = sign_package(plain_files())
    without = {path: data for path, data in files.items() if path not in (ALIGNMENT, "manifest.json")}
    links = {
        "outside": (files, {"alignments/link.bin": "/etc/passwd"}),
        "dangling": (files, {"alignments/link.bin": "nowhere"}),
        "to_itself": (files, {"alignments/link.bin": "link.bin"}),
        "in_place_of_a_file": (
            without | {"manifest.json": files["manifest.json"]},
            {ALIGNMENT: "../manifest.json"},
        ),
        "in_place_of_a_document": (
            without | {ALIGNMENT: files[ALIGNMENT]},
            {"manifest.json": "preview.json"},
        ),
        "in_place_of_a_folder": (files | {}, {"codec": "alignments"}),
        "around_in_a_loop": (files, {"alignments/up": ".."}),
    }
    for name, (contents, linked) in links.items():
        yield Case(f"folder_link_{name}", MALFORMED, "", contents, linked, made_at_test=True)
    for name, path in {
        "backslash": "..\\x",
        "blank": "manifest.json ",
        "other_case": "MANIFEST.JSON",
    }.items():
        yield Case(f"folder_name_{name}", MALFORMED, "", files | {path: b"x"}, made_at_test=True)
    yield Case("folder_with_a_folder", MALFORMED, "", files | {"sub/manifest.json": b"{}"})
    yield Case("folder_with_a_nested_folder", MALFORMED, "", files | {"alignments/a/b.bin": b"x"})
    shorter = files | {ALIGNMENT: files[ALIGNMENT][:-1]}
    yield Case("folder_file_shorter_than_listed", BAD_SIGNATURE, "", shorter)
    yield Case("folder_file_changed", BAD_SIGNATURE, "", files | {ALIGNMENT: b"alignmenu"})
    for name in ("manifest.json", "signature.sig", "kv-cache.awkg"):
        missing = {path: data for path, data in files.items() if path != name}
        yield Case(f"folder_without_{name.partition('.')[0]}", MALFORMED, "", missing)
