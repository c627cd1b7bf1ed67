"""Packages whose documents, list or signature break FORMAT.md §9; how they are packed is another page."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tests.hostile.bases import BAD_SIGNATURE, OK, Case, small
from tests.hostile.bases import MALFORMED_PACKAGE as MALFORMED
from tests.hostile.zips import Entry, write_zip
from tests.second_reader.awkg_builder import OTHER_KEY, node_id
from tests.second_reader.package_builder import (
    Files,
    dump,
    list_files,
    make_documents,
    package_id,
    sign_list,
    sign_package,
)
from tests.second_reader.strict import base32

Documents = dict[str, Any]
DOCUMENTS = ("manifest.json", "preview.json", "provenance.json", "quality-report.json")
ALIGNMENT = "alignments/to-b.bin"


def plain_files(change: Callable[[Documents], Any] = lambda documents: None) -> Files:
    """A raw memory, its documents after `change`, and one alignment. Not listed, not signed."""
    draft = small()
    awkg = draft.sign()
    documents = make_documents(awkg, draft.header, ("to-b",))
    change(documents)
    return {"kv-cache.awkg": awkg, ALIGNMENT: b"alignment"} | dump(documents)


def zipped(name: str, code: str, files: Files) -> Case:
    """A case that is a plain zip of these files."""
    return Case(name, code, ".zip", {"": write_zip([Entry(path, data) for path, data in files.items()])})


def cases() -> Iterator[Case]:
    """Every case of this page."""
    yield zipped("package_valid", OK, sign_package(plain_files()))
    yield Case("package_valid_folder", OK, "", sign_package(plain_files()))
    yield from _files()
    yield from _lists()
    yield from _signature_documents()
    yield from _signatures()
    yield from _documents()
    yield from _repeats()


def _files() -> Iterator[Case]:
    for name in ("manifest.json", "kv-cache.awkg", "provenance.json", "quality-report.json", "preview.json"):
        files = plain_files()
        del files[name]
        yield zipped(f"package_without_{name}", MALFORMED, sign_package(files))
        listed = sign_package(plain_files())
        del listed[name]
        yield zipped(f"package_listed_without_{name}", MALFORMED, listed)
    yield zipped("package_without_signature.sig", MALFORMED, plain_files())
    listed = sign_package(plain_files())
    del listed[ALIGNMENT]
    yield zipped("package_without_listed_alignment", MALFORMED, listed)
    extra = ("README.md", "manifest.json.bak", ".hidden", "kv-cache.awkg2", "alignments/x.txt", "codec/other")
    for name in (
        *extra,
        "alignments/a/b.bin",
        "alignments/.bin",
        "Manifest.json",
        "sub/manifest.json",
        "x.bin",
    ):
        files = plain_files() | {name: b"extra"}
        yield zipped(f"package_with_{name.replace('/', '_')}", MALFORMED, sign_package(files))
    for name in ("README.md", "alignments/to-c.bin"):
        unlisted = sign_package(plain_files()) | {name: b"extra"}
        yield zipped(f"package_with_unlisted_{name.replace('/', '_')}", MALFORMED, unlisted)
        yield Case(f"folder_with_unlisted_{name.replace('/', '_')}", MALFORMED, "", unlisted)
    yield zipped("package_empty", MALFORMED, {})
    yield Case("package_not_a_zip", MALFORMED, ".zip", {"": b"not a zip"})
    yield Case("package_empty_file", MALFORMED, ".zip", {"": b""})


def _rename_first(path: str, listed: list[dict[str, Any]]) -> None:
    listed[0]["path"] = path


def _with(name: str, key: str, value: Any) -> Callable[[Documents], None]:
    """A change that gives one key of one document this value."""
    return lambda documents: documents[name].update({key: value})


def _without(name: str, key: str) -> Callable[[Documents], Any]:
    return lambda documents: documents[name].pop(key)


def _relisted(change: Callable[[list[dict[str, Any]]], Any]) -> Files:
    """A package whose list was changed before it was signed."""
    files = plain_files()
    listed = list_files(files)
    change(listed)
    return files | {"signature.sig": json.dumps(sign_list(listed)).encode()}


def _lists() -> Iterator[Case]:
    entry = {"path": "README.md", "size": 0, "sha256": "0" * 64}
    changes: dict[str, tuple[Callable[[list[dict[str, Any]]], Any], str]] = {
        "empty": (lambda listed: listed.clear(), MALFORMED),
        "reversed": (lambda listed: listed.reverse(), MALFORMED),
        "first_twice": (lambda listed: listed.insert(0, dict(listed[0])), MALFORMED),
        "without_last": (lambda listed: listed.pop(), MALFORMED),
        "with_a_file_not_there": (lambda listed: listed.insert(0, entry), MALFORMED),
        "with_itself": (lambda listed: listed.append(entry | {"path": "signature.sig"}), MALFORMED),
        "size_one_more": (lambda listed: listed[1].update(size=listed[1]["size"] + 1), BAD_SIGNATURE),
        "size_one_less": (lambda listed: listed[1].update(size=listed[1]["size"] - 1), BAD_SIGNATURE),
        "size_0": (lambda listed: listed[1].update(size=0), BAD_SIGNATURE),
        "size_2_63_less_1": (lambda listed: listed[1].update(size=2**63 - 1), BAD_SIGNATURE),
        "size_2_63": (lambda listed: listed[1].update(size=2**63), MALFORMED),
        "size_negative": (lambda listed: listed[1].update(size=-1), MALFORMED),
        "size_float": (lambda listed: listed[1].update(size=float(listed[1]["size"])), MALFORMED),
        "size_true": (lambda listed: listed[1].update(size=True), MALFORMED),
        "size_text": (lambda listed: listed[1].update(size="9"), MALFORMED),
        "digest_zero": (lambda listed: listed[0].update(sha256="0" * 64), BAD_SIGNATURE),
        "digest_of_another": (lambda listed: listed[0].update(sha256=listed[1]["sha256"]), BAD_SIGNATURE),
        "digest_upper_case": (lambda listed: listed[0].update(sha256=listed[0]["sha256"].upper()), MALFORMED),
        "digest_short": (lambda listed: listed[0].update(sha256="0" * 63), MALFORMED),
        "digest_prefixed": (lambda listed: listed[0].update(sha256="sha256:" + "0" * 64), MALFORMED),
        "unknown_key": (lambda listed: listed[0].update(mode=420), MALFORMED),
        "without_size": (lambda listed: listed[0].pop("size"), MALFORMED),
        "without_sha256": (lambda listed: listed[0].pop("sha256"), MALFORMED),
        "without_path": (lambda listed: listed[0].pop("path"), MALFORMED),
        "path_null": (lambda listed: listed[0].update(path=None), MALFORMED),
    }
    paths = {
        "dotted": "./alignments/to-b.bin",
        "absolute": "/alignments/to-b.bin",
        "up": "../alignments/to-b.bin",
    }
    paths |= {
        "back": "alignments\\to-b.bin",
        "around": "codec/../alignments/to-b.bin",
        "nul": "alignments/to-b.bin\0",
    }
    for name, path in paths.items():
        changes[f"path_{name}"] = (partial(_rename_first, path), MALFORMED)
    for name, (change, code) in changes.items():
        yield zipped(f"package_list_{name}", code, _relisted(change))


def _signature_documents() -> Iterator[Case]:
    def document() -> dict[str, Any]:
        return sign_list(list_files(plain_files()))

    for key in ("files", "signedBy", "signature", "version"):
        without = document()
        del without[key]
        yield _with_signature(f"without_{key}", MALFORMED, json.dumps(without))
        yield _with_signature(f"with_{key}_null", MALFORMED, json.dumps(document() | {key: None}))
    for version in (0, 2, 1.0, True, "1"):
        text = json.dumps(document() | {"version": version})
        yield _with_signature(f"of_version_{version}", MALFORMED, text)
    signed = document()["signature"]
    texts = {
        "unpadded": signed.rstrip("="),
        "hex": base64.b64decode(signed).hex(),
        "empty": "",
        "short": signed[4:],
    }
    texts |= {"with_a_newline": signed[:40] + "\n" + signed[40:], "with_bits_behind": signed[:85] + "/=="}
    for name, text in texts.items():
        if text != signed:
            whole = json.dumps(document() | {"signature": text})
            yield _with_signature(f"with_signature_{name}", MALFORMED, whole)
    whole = json.dumps(document())
    forms = {
        "with_a_key_twice": whole.replace('"version": 1', '"version": 1, "version": 1'),
        "with_an_unknown_key": whole.replace('"version": 1', '"version": 1, "x-note": 1'),
        "with_nan": whole.replace('"version": 1', '"version": NaN'),
        "nested": "[" * 9000,
        "of_two_documents": whole + whole,
        "that_is_a_list": f"[{whole}]",
        "that_is_empty": "",
        "with_a_bom": "\ufeff" + whole,
    }
    for name, text in forms.items():
        yield _with_signature(name, MALFORMED, text)


def _with_signature(name: str, code: str, text: str) -> Case:
    return zipped(f"package_signature_{name}", code, plain_files() | {"signature.sig": text.encode()})


def _signatures() -> Iterator[Case]:
    def signed(**changes: Any) -> str:
        return json.dumps(sign_list(list_files(plain_files())) | changes)

    files = plain_files()
    yield _with_signature(
        "by_another_key", BAD_SIGNATURE, json.dumps(sign_list(list_files(files), key=OTHER_KEY))
    )
    yield _with_signature("names_another_key", BAD_SIGNATURE, signed(signedBy=node_id(OTHER_KEY)))
    for i, kind in enumerate(("kvnet/awkg/v3", "kvnet/package/v2", "")):
        text = json.dumps(sign_list(list_files(files), kind=kind))
        yield _with_signature(f"of_another_type_{i}", BAD_SIGNATURE, text)
    yield _with_signature("zero", BAD_SIGNATURE, signed(signature=base64.b64encode(bytes(64)).decode()))
    yield _with_signature("of_the_zero_key", BAD_SIGNATURE, signed(signedBy=base32(bytes(32))))
    identity = b"\1" + bytes(31)
    forged = base64.b64encode(identity + bytes(32)).decode()
    yield _with_signature("of_a_weak_key", BAD_SIGNATURE, signed(signedBy=base32(identity), signature=forged))
    yield _with_signature("of_no_node", MALFORMED, signed(signedBy="a" * 51 + "b"))
    other = sign_list(list_files(files | {ALIGNMENT: b"other"}))["signature"]
    yield _with_signature("of_another_package", BAD_SIGNATURE, signed(signature=other))
    for name in ("kv-cache.awkg", "manifest.json", ALIGNMENT):
        changed = sign_package(plain_files())
        changed[name] = changed[name][:-1] + bytes([changed[name][-1] ^ 1])
        yield zipped(f"package_changed_after_signing_{name.replace('/', '_')}", BAD_SIGNATURE, changed)
        longer = sign_package(plain_files())
        longer[name] += b" "
        yield zipped(f"package_longer_after_signing_{name.replace('/', '_')}", BAD_SIGNATURE, longer)


def _documents() -> Iterator[Case]:
    required = {
        "manifest.json": "version name tags kvCacheFile alignments createdAt",
        "preview.json": "geometry",
    }
    required |= {"provenance.json": "creationMethod integrityHash", "quality-report.json": "measurements"}
    for name, keys in required.items():
        for key in ("packageId", *keys.split()):
            yield _documented(f"{name}_without_{key}", _without(name, key))
            yield _documented(f"{name}_{key}_null", _with(name, key, None))
        yield _documented(f"{name}_with_unknown_key", _with(name, "critical", 1))
        for form, data in {
            "list": b"[]",
            "empty": b"",
            "key_twice": b'{"a":1,"a":1}',
            "bom": b"\xef\xbb\xbf{}",
        }.items():
            yield zipped(f"package_{name}_is_{form}", MALFORMED, sign_package(plain_files() | {name: data}))
    manifest: dict[str, Any] = {
        "kvCacheFile": "other.awkg",
        "tokenCount": "3",
        "tags": [""],
        "createdAt": "2026-13-01T00:00:00Z",
        "quality": {"kl": -1, "top1": 2, "tokensChecked": 0},
        "alignments": {"b": "../to-b.bin"},
    }
    for key, value in manifest.items():
        yield _documented(f"manifest_{key}_wrong", _with("manifest.json", key, value))
    measured = {
        "kl": -0.1,
        "top1": 1.5,
        "tokensChecked": 1,
        "against": "mem_x",
        "probe": "",
        "measuredBy": "",
    }
    yield _documented(
        "quality_measurement_wrong", lambda d: d["quality-report.json"].update(measurements=[measured])
    )


def _documented(name: str, change: Callable[[Documents], Any]) -> Case:
    return zipped(f"package_{name}", MALFORMED, sign_package(plain_files(change)))


def _repeats() -> Iterator[Case]:
    other = package_id(b"another memory")
    for name in DOCUMENTS:
        yield _documented(f"{name}_of_another_package", _with(name, "packageId", other))
    zero = "sha256:" + "0" * 64
    yield _documented("integrity_hash_of_another", lambda d: d["provenance.json"].update(integrityHash=zero))
    facts: dict[str, Any] = {"fileNbytes": 1, "quantization": "int8", "sourceModel": "other", "tokenCount": 4}
    facts["geometry"] = {"numLayers": 2, "numKvHeads": 2, "headDim": 4, "dtype": "float32"}
    for key, value in facts.items():
        yield _documented(f"preview_{key}_of_another", _with("preview.json", key, value))
    for key in ("sourceModel", "tokenCount"):
        yield _documented(f"manifest_{key}_of_another", _with("manifest.json", key, facts[key]))
    missing = {"b": ALIGNMENT, "c": "alignments/to-c.bin"}
    yield _documented(
        "manifest_names_a_missing_alignment", lambda d: d["manifest.json"].update(alignments=missing)
    )
