"""Writes the corpus of hostile files: `python -m tests.hostile.make_corpus` from the root of the repository.

Each is a valid file, or package, that breaks exactly one rule of FORMAT.md and is signed correctly wherever
the signature is not the point; `expected.json` says what each is refused as. A few stand on the right side
of a border and are "ok". Transform-coded files use one basis, `basis.safetensors`, those in coordinates of a
port one port, `port.safetensors`; the names of the latter begin with `port_`. Folders with links or
with names that not every disk holds are not in git: whoever tests makes them from the same recipe.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.hostile import (
    recipes_codecs,
    recipes_header,
    recipes_json,
    recipes_numbers,
    recipes_package,
    recipes_package_memory,
    recipes_packing,
    recipes_port,
    recipes_prelude,
    recipes_rope,
    recipes_signature,
    recipes_table,
)
from tests.hostile.bases import Case, transform

CORPUS = Path(__file__).parent / "corpus"
EXPECTED = "expected.json"
BASIS = "basis.safetensors"
PORT = "port.safetensors"
_PAGES = (
    recipes_prelude,
    recipes_json,
    recipes_header,
    recipes_rope,
    recipes_table,
    recipes_signature,
    recipes_codecs,
    recipes_numbers,
    recipes_package,
    recipes_package_memory,
    recipes_packing,
    recipes_port,
)


def all_cases() -> Iterator[Case]:
    """Every case; a name that comes twice is a mistake in a recipe."""
    seen: set[str] = set()
    for page in _PAGES:
        for case in page.cases():
            if case.name in seen:
                raise AssertionError(f"two cases are named {case.name}")
            seen.add(case.name)
            yield case


def write_case(case: Case, root: Path) -> Path:
    """Put one case under `root`; returns its path."""
    path = root / (case.name + case.suffix)
    if case.suffix:
        path.write_bytes(case.files[""])
        return path
    for name, data in case.files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    for name, target in case.links.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).symlink_to(target)
    return path


def write_corpus(root: Path) -> dict[str, str]:
    """Every case that git can hold, basis, port and the expected codes under `root`; returns the codes."""
    root.mkdir(parents=True, exist_ok=True)
    expected = {}
    for case in all_cases():
        if not case.made_at_test:
            write_case(case, root)
        expected[case.name] = case.code
    (root / BASIS).write_bytes(transform().basis or b"")
    (root / PORT).write_bytes(recipes_port.port())
    (root / EXPECTED).write_text(json.dumps(expected, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    return expected


def named_by(case_name: str, root: Path) -> bytes:
    """The bytes that a case's memory names, where it names any: the basis, or the port."""
    return (root / (PORT if case_name.startswith("port_") else BASIS)).read_bytes()


def main() -> None:
    """Replace the corpus beside this file."""
    shutil.rmtree(CORPUS, ignore_errors=True)
    expected = write_corpus(CORPUS)
    nbytes = sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file())
    print(f"{len(expected)} cases, {nbytes} bytes in {CORPUS}")


if __name__ == "__main__":
    main()
