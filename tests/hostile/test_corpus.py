"""The corpus is what its recipes make, and both readers refuse each of its files by the code it says."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.make_corpus import CORPUS, EXPECTED, all_cases, named_by, write_case, write_corpus
from tests.hostile.open_differences import OPEN_DIFFERENCES
from tests.second_reader import awkg_reader, package_reader
from tests.second_reader.strict import Refused

ROOT = Path(__file__).resolve().parents[2]
MOST_RISE_NBYTES = (16 + 2) << 20  # 16 MiB beyond the two chunks of a mebibyte that a reader may hold


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole corpus, made anew; also what git cannot hold."""
    root = tmp_path_factory.mktemp("corpus")
    write_corpus(root)
    for case in all_cases():
        if case.made_at_test:
            write_case(case, root)
    return root


@pytest.fixture(scope="module")
def judged(made: Path) -> dict[str, Any]:
    """What kvnet says of each file."""
    command = [sys.executable, "-m", "tests.hostile.judge", str(made)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def _expected(root: Path) -> dict[str, str]:
    return json.loads((root / EXPECTED).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _digests(root: Path, names: set[str]) -> dict[str, str]:
    """SHA-256 of every file by its path, of the cases with these names."""
    files = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    listed = {path.relative_to(root): path for path in files}
    wanted = {rel: path for rel, path in listed.items() if rel.parts[0] not in names}
    return {rel.as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for rel, path in wanted.items()}


def _second_verdict(path: Path, basis: bytes) -> str:
    try:
        if path.suffix == ".awkg":
            awkg_reader.read(path, basis)
        else:
            package_reader.read(path)
    except Refused as exc:
        return exc.code
    return "ok"


def test_the_corpus_in_git_is_what_its_recipes_make(made: Path) -> None:
    at_test = {case.name for case in all_cases() if case.made_at_test}
    assert _digests(CORPUS, at_test) == _digests(made, at_test)


def test_the_corpus_has_three_hundred_files_and_every_code() -> None:
    codes = list(_expected(CORPUS).values())
    assert len(codes) >= 300
    assert set(codes) == {
        "ok",
        "malformed_file",
        "malformed_chunk",
        "malformed_package",
        "bad_signature",
        "not_finite",
        "unsupported_format",
        "unknown_basis",
        "unknown_alignment",
    }


def test_the_second_reader_gives_the_expected_code_for_each_file(made: Path) -> None:
    verdicts = {
        case.name: _second_verdict(made / (case.name + case.suffix), named_by(case.name, made))
        for case in all_cases()
    }
    assert verdicts == _expected(made)


def test_kvnet_gives_the_expected_code_for_each_file_within_a_second(
    made: Path, judged: dict[str, Any]
) -> None:
    found = {
        name: (judged["verdicts"][name], code)
        for name, code in _expected(made).items()
        if judged["verdicts"][name] != code
    }
    assert set(found) == OPEN_DIFFERENCES, found


def test_kvnet_needs_no_more_memory_for_a_hostile_file_than_for_a_valid_one(judged: dict[str, Any]) -> None:
    assert judged["rise_nbytes"] < MOST_RISE_NBYTES
